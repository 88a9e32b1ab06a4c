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
from tests.conftest import start_python
from tests.runs import assert_equal_runs, epochs_of, run, start_run

pytestmark = pytest.mark.usefixtures("quick_compilation")

EPOCHS = 12


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
    assert len(errors.splitlines()) == 1, errors
    return errors


def test_full_in_mid_run(disk, tiny_config, cartoon_folder, cache_folder, tmp_path):
    """Whatever comes first to the full disk says so: an epoch's line, or a checkpoint."""
    arguments = (disk / "run", cartoon_folder, cache_folder, "--notensorboard")
    process = start_run(*arguments, epochs=EPOCHS)
    while len(checkpoint.list_steps(disk / "run" / "checkpoints")) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    fill(disk, 0)
    assert re.match(r"error: cannot write .*[\d,]+ bytes.* No space left", error_of(process))
    kept = checkpoint.list_steps(disk / "run" / "checkpoints")
    trained = load(disk / "run", "latest")
    for step in kept:
        checkpoint.read(disk / "run" / "checkpoints", step, trained.state)

    (disk / "filler").unlink()
    said, config = [], epochs_of(tiny_config, EPOCHS)
    run(config, disk / "run", cache_folder, said.append)
    assert f"resuming after epoch {kept[0] // 6} (step {kept[0]})" in said
    run(config, tmp_path / "whole", cache_folder)
    assert_equal_runs(disk / "run", tmp_path / "whole")


# Of twenty arrays that Orbax writes one by one: all fail, with a page each.
SAVES = """
import pathlib, sys
import numpy as np
from bn_vgg import checkpoint, cli
from tests.test_full_disk import fill

def main():
    disk, left = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    state = {f"block{i}": np.full(500, i, np.float32) for i in range(20)}
    with checkpoint.Checkpointer(disk / "checkpoints") as checkpointer:
        for step in (1, 2):
            progress = checkpoint.Progress().after_epoch(
                step=step, valid_error_rate=0.1, seconds=1)
            checkpointer.save(state, progress)
            checkpointer.wait()
            fill(disk, left)

sys.argv, given = sys.argv[:1], sys.argv[1:]
cli.run(lambda: (sys.argv.extend(given), main())[1])
"""


def test_no_room_for_a_checkpoint_is_told_of_in_one_line(disk):
    process = start_python("-c", SAVES, disk, 24576)
    what = r"cannot write a checkpoint of 40,000 bytes in \S+ \([\d,]+ bytes are free\): .*space"
    assert re.match(f"error: {what}", error_of(process))
    assert checkpoint.list_steps(disk / "checkpoints") == [1]


def test_no_room_for_tensorboards_files(disk):
    board = writers.TensorBoard(epath.Path(disk), "run")
    fill(disk, 0)

    def write():
        for step in range(100):
            board.write_epoch(step, {"train/loss": 1.0}, {}, {"mean_distance/a": np.arange(1000)})

    message = rf"TensorBoard's files in {disk} \(0 bytes are free\): .*space"
    with pytest.raises(UserError, match=f"cannot write {message}"):
        write()


def test_read_only(disk, tiny_config, cache_folder):
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    message = f"cannot write the working directory {disk}/run: Read-only file system"
    with pytest.raises(UserError, match=message):
        run(tiny_config, disk / "run", cache_folder)


def test_no_room_for_the_image_cache(disk, tiny_config, tmp_path):
    tiny_config.data.source, tiny_config.data.min_side = "cartoons:72", 160
    message = f"cannot write the image cache in {disk}, of at least 5,529,600 bytes: No space left"
    with pytest.raises(UserError, match=message):
        run(tiny_config, tmp_path / "run", disk)
    assert [path.name for path in disk.glob("[!.]*")] == []
