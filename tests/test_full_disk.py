"""A disk that is full, or gone, while a run writes to it: a real one, if a small one."""

import re
import subprocess
import time

import numpy as np
import pytest
from etils import epath

from bn_vgg import checkpoint, writers
from bn_vgg.api import load
from bn_vgg.errors import UserError
from bn_vgg.run_dir import Workdir
from tests.runs import assert_equal_runs, start_run

pytestmark = pytest.mark.usefixtures("quick_compilation")

EPOCHS = 25


@pytest.fixture
def disk(tmp_path):
    """Mounts a file system of 4 MiB of memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError as error:
        pytest.skip(f"no disk can be mounted: {error}")
    if done.returncode:
        pytest.skip(f"no disk can be mounted: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture(scope="module")
def start(cartoon_folder, cache_folder):
    """Starts the command for a run in a folder."""

    def start_it(folder, *more):
        return start_run(folder, cartoon_folder, cache_folder, *more, epochs=EPOCHS)

    return start_it


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """The same run on a disk with room."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    process = start(folder, "--notensorboard")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return folder


def after_some_epochs(process, folder):
    """Waits until at least two checkpoints are complete."""
    while len(checkpoint.steps(folder / "checkpoints")) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def fill(disk, left):
    """Leaves so many bytes of it free."""
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            file.truncate(file.tell() // 4096 * 4096 - left)


def error_of(process):
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    (line,) = errors.splitlines()
    return line


@pytest.mark.slow
@pytest.mark.parametrize("flags", [["--notensorboard"], []], ids=["plain", "tensorboard"])
def test_full_in_mid_run(flags, disk, start, whole):
    """Whatever comes first to the full disk says so: TensorBoard, an epoch's line, a checkpoint."""
    process = start(disk / "run", *flags)
    after_some_epochs(process, disk / "run")
    fill(disk, 0)
    assert re.match(r"error: cannot write .*[\d,]+ bytes.* No space left", error_of(process))
    kept = checkpoint.steps(disk / "run" / "checkpoints")
    state = load(disk / "run", "latest").state
    for step in kept:
        checkpoint.read(disk / "run" / "checkpoints", step, state)

    (disk / "filler").unlink()
    again = start(disk / "run", "--notensorboard")
    out, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert f"(step {kept[0]})" in out
    assert_equal_runs(disk / "run", whole)


def test_no_room_for_a_checkpoint(disk):
    """It is told of by the next call, or at the end: it is written meanwhile."""
    state, progress = {"weights": np.zeros(10_000, np.float32)}, checkpoint.Progress()
    folder = Workdir(str(disk)).checkpoints
    with checkpoint.Checkpointer(folder, set_aside=disk / "damaged") as checkpointer:
        checkpointer.save(state, progress.after_epoch(step=1, valid_error_rate=0.1, seconds=1))
    fill(disk, 12 * 1024)
    message = rf"cannot write a checkpoint of 40,000 bytes \([\d,]+ are free\) in {folder}: .*space"
    with (
        pytest.raises(UserError, match=message),
        checkpoint.Checkpointer(folder, set_aside=disk / "damaged") as checkpointer,
    ):
        checkpointer.save(state, progress.after_epoch(step=2, valid_error_rate=0.1, seconds=1))
    assert checkpoint.read(folder, 1, state)[0].step == 1


def test_no_room_for_tensorboards_files(disk):
    board = writers.TensorBoard(epath.Path(disk), "run")
    fill(disk, 0)

    def write():
        for step in range(100):
            board.write_epoch(step, {"train/loss": 1.0}, {}, {"mean_distance/a": np.arange(1000)})

    message = rf"TensorBoard's files in {disk} \([\d,]+ bytes so far; 0 are free\): .*space"
    with pytest.raises(UserError, match=f"cannot write {message}"):
        write()


def test_read_only(disk, start):
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    message = error_of(start(disk / "run", "--notensorboard"))
    assert message == (
        f"error: cannot write the working directory {disk}/run: Read-only file system"
    )


def test_no_room_for_the_image_cache(disk, start, tmp_path):
    flags = [
        f"--cache_dir={disk}",
        "--config.data.source=cartoons:72",
        "--config.data.min_side=160",
    ]
    message = error_of(start(tmp_path / "run", "--notensorboard", *flags))
    assert message.startswith(
        f"error: cannot write the image cache in {disk}, of at least 5,529,600 bytes: No space left"
    )
    assert [path.name for path in disk.glob("[!.]*")] == []
