"""Checkpoints that were damaged on disk: noticed, set aside, and the one before is used."""

import json
import pickle
import shutil
from unittest.mock import Mock

import jax
import numpy as np
import pytest

from bn_vgg import checkpoint
from bn_vgg.api import load
from bn_vgg.checkpoint import Checkpointer, DamagedError, Progress, list_steps, read
from bn_vgg.errors import UserError
from bn_vgg.run_dir import Workdir
from tests.runs import assert_equal_runs, epochs_of, run, same

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Of an epoch of the tiny configuration.
STEPS = 6
LIKE = {"weights": np.zeros(3, np.float32)}


@pytest.fixture
def copy(trained_run, tmp_path):
    """Of a run with two checkpoints."""
    assert list_steps(Workdir(str(trained_run)).checkpoints) == [2 * STEPS, STEPS]
    return shutil.copytree(trained_run, tmp_path / "copy")


@pytest.fixture
def save(tmp_path):
    """Saves a checkpoint after each of some epochs of given errors, of a step each."""

    def save_them(*errors):
        folder, progress = Workdir(str(tmp_path)).checkpoints, Progress()
        with Checkpointer(folder) as checkpointer:
            for step, error in enumerate(errors, start=1):
                progress = progress.after_epoch(step=step, valid_error_rate=error, seconds=step)
                checkpointer.save({"weights": np.full(3, step, np.float32)}, progress)
        return list_steps(folder)

    return save_them


def restore(path, like=LIKE):
    workdir = Workdir(str(path))
    return checkpoint.restore(workdir.checkpoints, workdir.damaged, like)


def flip(path, position=0.5):
    content = bytearray(path.read_bytes())
    content[int(position * (len(content) - 1))] ^= 0x10
    path.write_bytes(content)


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


DAMAGES = {"a byte": flip, "half is missing": cut, "it is not there": lambda path: path.unlink()}


def test_every_file_damaged_in_every_way(trained_run, tmp_path):
    """Either the damage does not matter, and what is read is equal, or the one before is taken."""
    state = load(trained_run, "latest").state
    earlier = read(Workdir(str(trained_run)).checkpoints, STEPS, state)[1]
    newest = trained_run / f"checkpoints/{2 * STEPS}"
    files = sorted(p.relative_to(trained_run) for p in newest.rglob("*") if p.is_file())
    noticed = 0
    for name in files:
        for what, damage in DAMAGES.items():
            path = shutil.copytree(trained_run, tmp_path / "copy")
            damage(path / name)
            progress, found, wrong = restore(path, state)
            if progress.step == STEPS:
                noticed += 1
                assert str(path / "checkpoints" / str(2 * STEPS)) in wrong[0], (name, what)
                assert "\n" not in wrong[0]
                same(found, earlier)
                assert [each.name for each in (path / "damaged").iterdir()] == ["12-0"]
            else:
                same(found, state)
            shutil.rmtree(path)
    # As many as there are files, not more: in a network of two layers, instead of four, some bytes
    # of the larger files are never read.
    assert noticed >= len(files)


def test_the_run_falls_back_says_so_and_ends_as_if_nothing_had_been(
    tiny_config, cache_folder, tmp_path
):
    whole, path = tmp_path / "whole", tmp_path / "damaged"
    three = epochs_of(tiny_config, 3)
    run(three, whole, cache_folder)
    run(tiny_config, path, cache_folder)
    written = (path / "checkpoints/12/state/ocdbt.process_0/d").iterdir()
    cut(max(written, key=lambda file: file.stat().st_size))
    said = []
    run(three, path, cache_folder, say=said.append)
    (told,) = [line for line in said if "checkpoints/12" in line]
    assert told.endswith(f"it is kept in {path}/damaged")
    assert said[said.index(told) + 1] == "resuming after epoch 1 (step 6)"
    assert_equal_runs(path, whole)


def test_none_intact_is_an_error_and_changes_nothing(save, tmp_path):
    save(0.2, 0.1)
    for step in (1, 2):
        cut(tmp_path / f"checkpoints/{step}/metrics/metrics")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="no checkpoint of this run is intact; nothing was c"):
        restore(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_latest_two_and_the_best_two_are_kept(save, tmp_path):
    """Of equal errors the earlier is the better."""
    assert save(0.1, 0.5, 0.2, 0.2, 0.1, 0.4, 0.3) == [7, 6, 5, 1]
    flip(tmp_path / "checkpoints/7/metrics/metrics")
    progress, state, (wrong,) = restore(tmp_path)
    assert (progress.step, progress.best_step, state["weights"][0]) == (6, 1, 6)
    assert "checkpoints/7" in wrong
    assert [path.name for path in (tmp_path / "damaged").iterdir()] == ["7-0"]


def test_a_lost_best_one_is_an_error(save, tmp_path):
    """To go on without it would make another epoch's the result. All damage is told of."""
    save(0.2, 0.4, 0.3)
    cut(tmp_path / "checkpoints/1/metrics/metrics")
    with pytest.raises(UserError, match=r"checkpoints/1 .* run's best.* that is intact is 3; noth"):
        restore(tmp_path)
    cut(tmp_path / "checkpoints/3/metrics/metrics")
    with pytest.raises(UserError, match=r"checkpoints/1 .*run's best.* intact is 2; noth"):
        restore(tmp_path)
    assert list_steps(Workdir(str(tmp_path)).checkpoints) == [3, 2, 1]


def test_an_older_one_that_nothing_needs_is_not_told_of(save, tmp_path):
    """Such as one that a process was killed while deleting. But where a newer one goes, it is."""
    save(0.2, 0.4, 0.3)
    shutil.rmtree(tmp_path / "checkpoints/2/state")
    progress, _, wrong = restore(tmp_path)
    assert (progress.step, progress.best_step, wrong) == (3, 1, [])
    assert list_steps(Workdir(str(tmp_path)).checkpoints) == [3, 1]
    shutil.rmtree(tmp_path / "checkpoints/3/state")
    assert "checkpoints/3/state" in restore(tmp_path)[2][0]


@pytest.mark.parametrize(("where", "error"), [
    ("read_text", OSError(116, "Stale file handle")),
    ("restore", ValueError("UNAVAILABLE: Error opening driver: the disk is away")),
])  # fmt: skip
def test_what_the_system_cannot_read_now_is_not_damaged(where, error, save, tmp_path, monkeypatch):
    """A network's disk that was away: nothing is set aside, and nothing older is taken."""
    save(0.2, 0.1)
    folder = Workdir(str(tmp_path)).checkpoints
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.ocp.Checkpointer if where == "restore" else type(folder),
                        where, Mock(side_effect=error))  # fmt: skip
        message = r"cannot read .*checkpoints/2 \(nothing was changed\): .*(Stale|UNAV).*; run"
        with pytest.raises(UserError, match=message):
            restore(tmp_path)
    assert restore(tmp_path)[0].step == 2


def test_predict_needs_only_the_best_one_intact(copy):
    lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    lines[0]["valid/error_rate"] = 0.0  # the first epoch's is the best
    (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    flip(copy / "checkpoints/12/metrics/metrics")
    assert load(copy).step == 6
    with pytest.raises(UserError, match="checkpoints/12"):
        load(copy, "latest")


def test_a_better_epoch_whose_checkpoint_is_not_written_yet_is_not_waited_for(copy):
    """A run's line comes before its checkpoint: this is a run in progress, or a killed one."""
    before = load(copy).step
    with (copy / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"epoch": 3, "step": 18, "valid/error_rate": 0.0}) + "\n")
    assert load(copy).step == before


def test_predict_and_export_name_a_damaged_best_one(copy):
    best = json.loads((copy / "result.json").read_text())["best_epoch"] * STEPS
    flip(copy / f"checkpoints/{best}/metrics/metrics")
    with pytest.raises(UserError, match=f"checkpoints/{best}"):
        load(copy)


def test_nothing_is_unpickled(trained_run, copy, monkeypatch):
    state = load(trained_run, "latest").state
    refuse = Mock(side_effect=AssertionError("something was unpickled"))
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    found = restore(copy, state)
    monkeypatch.undo()
    same(found[1], state)


def test_another_network_does_not_fit(trained_run):
    state = load(trained_run, "latest").state
    other = jax.tree.map(lambda x: jax.ShapeDtypeStruct((*x.shape, 2), x.dtype), state)
    with pytest.raises(DamagedError, match="cannot be read: an array is "):
        read(Workdir(str(trained_run)).checkpoints, 2 * STEPS, other)
