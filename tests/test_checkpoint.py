"""Checkpoints that were damaged on disk: noticed, set aside, and the one before is used."""

import json
import pickle
import shutil

import jax
import numpy as np
import pytest

from bn_vgg import checkpoint
from bn_vgg.checkpoint import Checkpoints, DamagedError, Progress, read, steps
from bn_vgg.errors import UserError
from bn_vgg.run_dir import Workdir
from bn_vgg.trained import load
from tests.runs import KilledError, assert_equal_runs, epochs_of, run, same

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Of an epoch of the tiny configuration.
STEPS = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoint") / "run"


@pytest.fixture
def two_epochs(folder, tiny_config, open_cache):
    """A run with two checkpoints, made by the first test that asks; never changed."""
    if not folder.exists():
        # A learning rate with which the second epoch is the better one.
        tiny_config.optimizer.learning_rate = 1e-3
        run(tiny_config, open_cache(tiny_config), folder)
    assert steps(Workdir(str(folder)).checkpoints) == [2 * STEPS, STEPS]
    return folder


@pytest.fixture
def copy(two_epochs, tmp_path):
    return shutil.copytree(two_epochs, tmp_path / "copy")


def newest(path, like):
    workdir = Workdir(str(path))
    checkpoints = Checkpoints(workdir.checkpoints, set_aside=workdir.damaged)
    return checkpoints.newest(like)


def flip(path, position):
    content = bytearray(path.read_bytes())
    content[int(position * (len(content) - 1))] ^= 0x10
    path.write_bytes(content)


def cut(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


DAMAGES = {
    "a byte at the start": lambda path: flip(path, 0),
    "a byte": lambda path: flip(path, 0.37),
    "a byte in the middle": lambda path: flip(path, 0.5),
    "a byte at the end": lambda path: flip(path, 1),
    "half is missing": lambda path: cut(path, 0.5),
    "all is missing": lambda path: cut(path, 0),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "it is not there": lambda path: path.unlink(),
}


@pytest.mark.slow
def test_every_file_damaged_in_every_way(two_epochs, tmp_path):
    """Either the damage does not matter, and what is read is equal, or the one before is taken."""
    state = load(str(two_epochs), "latest").state
    folder = Workdir(str(two_epochs)).checkpoints
    earlier = read(folder, STEPS, state)[1]
    files = sorted(
        path.relative_to(two_epochs)
        for path in (two_epochs / "checkpoints" / str(2 * STEPS)).rglob("*") if path.is_file()
    )  # fmt: skip
    noticed = 0
    for name in files:
        for what, damage in DAMAGES.items():
            path = shutil.copytree(two_epochs, tmp_path / "copy")
            damage(path / name)
            progress, found, wrong = newest(path, state)
            if progress.step == STEPS:
                noticed += 1
                assert str(path / "checkpoints" / str(2 * STEPS)) in wrong[0], (name, what)
                assert "\n" not in wrong[0]
                same(found, earlier)
                assert [each.name for each in (path / "damaged").iterdir()] == ["12-0"]
            else:
                same(found, state)
            shutil.rmtree(path)
    assert noticed > len(files)


def test_the_run_falls_back_says_so_and_ends_as_if_nothing_had_been(
    tiny_config, open_cache, tmp_path
):
    cache = open_cache(tiny_config)
    three = epochs_of(tiny_config, 3)
    run(three, cache, tmp_path / "whole")

    def kill(step):
        if step == 3 * STEPS:
            raise KilledError

    path = tmp_path / "damaged"
    with pytest.raises(KilledError):
        run(three, cache, path, actions=[kill])
    written = (path / "checkpoints/12/state/ocdbt.process_0/d").iterdir()
    cut(max(written, key=lambda file: file.stat().st_size), 0.5)
    said = []
    run(three, cache, path, say=said.append)
    (told,) = [line for line in said if "checkpoints/12" in line]
    assert told.endswith(f"it is kept in {path}/damaged")
    assert said[said.index(told) + 1] == "resuming after epoch 1 (step 6)"
    assert_equal_runs(path, tmp_path / "whole")


def test_none_intact_is_an_error_and_changes_nothing(tiny_config, open_cache, copy):
    for step in (STEPS, 2 * STEPS):
        cut(copy / f"checkpoints/{step}/metrics/metrics", 0.5)
    before = sorted(path for path in copy.rglob("*"))
    tiny_config.optimizer.learning_rate = 1e-3
    with pytest.raises(UserError, match="no checkpoint of this run is intact; nothing was c"):
        run(epochs_of(tiny_config, 3), open_cache(tiny_config), copy)
    assert sorted(path for path in copy.rglob("*")) == before


@pytest.fixture
def save(tmp_path):
    """Saves a checkpoint after each of some epochs of given errors, of a step each."""

    def save_them(*errors):
        folder, progress = Workdir(str(tmp_path)).checkpoints, Progress()
        with Checkpoints(folder, set_aside=tmp_path / "aside") as checkpoints:
            for step, error in enumerate(errors, start=1):
                progress = progress.after_epoch(step=step, valid_error_rate=error, seconds=step)
                checkpoints.save({"weights": np.full(3, step, np.float32)}, progress)

    return save_them


LIKE = {"weights": np.zeros(3, np.float32)}


def test_a_lost_best_one_is_an_error(save, tmp_path):
    """To go on without it would make another epoch's the result."""
    save(0.2, 0.4, 0.3)
    cut(tmp_path / "checkpoints/1/metrics/metrics", 0.5)
    with pytest.raises(UserError, match=r"checkpoints/1 .* run's best.* that is intact is 3: py"):
        newest(tmp_path, LIKE)
    assert steps(Workdir(str(tmp_path)).checkpoints) == [3, 2, 1]


def test_without_a_new_best_one_the_best_is_the_one_of_before(save, tmp_path, tmp_path_factory):
    save(0.5, 0.3, 0.4, 0.4, 0.2)
    assert steps(Workdir(str(tmp_path)).checkpoints) == [5, 4, 2]
    flip(tmp_path / "checkpoints/5/metrics/metrics", 0.5)
    progress, state, (wrong,) = newest(tmp_path, LIKE)
    assert (progress.step, progress.best_step, state["weights"][0]) == (4, 2, 4)
    assert "checkpoints/5" in wrong


def test_all_that_is_damaged_is_told_of(save, tmp_path):
    save(0.2, 0.4, 0.3)
    for step in (1, 3):
        cut(tmp_path / f"checkpoints/{step}/metrics/metrics", 0.5)
    with pytest.raises(UserError, match=r"checkpoints/3 .*; .*checkpoints/1 .* intact is 2: py"):
        newest(tmp_path, LIKE)


def test_what_the_system_cannot_read_now_is_not_damaged(save, tmp_path, monkeypatch):
    """A network's disk that was away: nothing is set aside, and nothing older is taken."""
    save(0.2, 0.1)

    def stale(self, *_):
        raise OSError(116, "Stale file handle", str(self))

    monkeypatch.setattr(type(Workdir(str(tmp_path)).checkpoints), "read_text", stale)
    with pytest.raises(UserError, match=r"cannot read .*checkpoints/2: .*Stale .*; nothing was"):
        newest(tmp_path, LIKE)
    monkeypatch.undo()
    assert newest(tmp_path, LIKE)[0].step == 2


def test_what_tensorstore_cannot_reach_is_not_damaged(save, tmp_path, monkeypatch):
    save(0.2, 0.1)

    def away(*_, **__):
        raise ValueError("UNAVAILABLE: Error opening driver: the disk is away")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.ocp.Checkpointer, "restore", away)
        with pytest.raises(
            UserError, match=r"cannot read .*checkpoints/2: UNAVAILABLE: .*; nothing"
        ):
            newest(tmp_path, LIKE)
    assert newest(tmp_path, LIKE)[0].step == 2


def test_a_part_that_is_gone_is_named(save, tmp_path):
    save(0.2, 0.1)
    shutil.rmtree(tmp_path / "checkpoints/2/state")
    (why,) = newest(tmp_path, LIKE)[2]
    assert "checkpoints/2/state" in why


def test_an_error_within_a_write_is_told_once(tmp_path, monkeypatch):
    """The folder is opened, by Orbax, within the first write."""

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_Manager", full)
    with Checkpoints(Workdir(str(tmp_path)).checkpoints, set_aside=tmp_path) as checkpoints:
        with pytest.raises(UserError) as found:
            checkpoints.save(LIKE, Progress())
        assert str(found.value).count("cannot write") == 1
        assert isinstance(found.value.__cause__, OSError)


def test_an_older_one_that_nothing_needs_is_not_told_of(save, tmp_path):
    """Such as one that a process was killed while deleting."""
    save(0.2, 0.4, 0.3)
    shutil.rmtree(tmp_path / "checkpoints/2/state")
    progress, state, wrong = newest(tmp_path, LIKE)
    assert (progress.step, progress.best_step, state["weights"][0], wrong) == (3, 1, 3, [])
    assert steps(Workdir(str(tmp_path)).checkpoints) == [3, 1]


def test_predict_and_export_pass_over_a_damaged_latest_one(copy, caplog):
    lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    lines[0]["valid/error_rate"] = 0.0  # the first epoch's is the best
    (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    flip(copy / "checkpoints/12/metrics/metrics", 0.5)
    assert [load(str(copy), which).step for which in ("best", "latest")] == [6, 6]
    assert "checkpoints/12" in caplog.text
    assert "step 6 is the newest that is intact" in caplog.text


def test_predict_and_export_name_a_damaged_best_one(copy):
    flip(copy / "checkpoints/12/metrics/metrics", 0.5)
    with pytest.raises(UserError, match="checkpoints/12"):
        load(str(copy))


def test_nothing_is_unpickled(two_epochs, copy, monkeypatch):
    state = load(str(two_epochs), "latest").state

    def refuse(*_, **__):
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    found = newest(copy, state)
    monkeypatch.undo()
    same(found[1], state)


def test_another_network_does_not_fit(two_epochs):
    state = load(str(two_epochs), "latest").state
    other = jax.tree.map(lambda x: jax.ShapeDtypeStruct((*x.shape, 2), x.dtype), state)
    with pytest.raises(DamagedError, match="cannot be read: an array is "):
        read(Workdir(str(two_epochs)).checkpoints, 2 * STEPS, other)
