"""The files of a run: whole or absent, and none of another run's."""

from unittest.mock import Mock

import numpy as np
import pytest

from bn_vgg import api
from bn_vgg.checkpoint import Checkpointer, Progress, list_steps, read
from bn_vgg.errors import UserError, wrap_read_errors
from bn_vgg.run_dir import FORMAT, Workdir
from tests.runs import same

DATA = {"source": "s", "fingerprint": "f", "class_names": ["a"], "examples": {"train": 9}}
CONSTANT = {"schedule": {"name": "constant"}}
CONFIG = CONSTANT | {
    "num_epochs": 2, "seed": 0, "model": {"norm": "mine:Norm", "features": ((1, 2), (3,))},
}  # fmt: skip


@pytest.fixture
def workdir(tmp_path):
    return Workdir(str(tmp_path))


def test_all_differing_fields_are_named_and_only_the_epochs_may_grow(workdir):
    config = CONSTANT | {"num_epochs": 2, "seed": 0, "old": 1}
    workdir.claim({"seed": 7}, DATA)  # ended before it began
    workdir.claim(config, DATA)
    workdir.write_metrics([{"epoch": 1}])
    with pytest.raises(UserError) as raised:
        workdir.claim(CONSTANT | {"num_epochs": 3, "seed": 1, "new": 2}, DATA)
    message = str(raised.value)
    assert "configuration: its new is missing, not 2; old is 1, not missing; " in message
    assert "seed is 0, not 1. Name" in message
    assert "num_epochs is" not in message
    workdir.claim(config | {"num_epochs": 3, "checkpoint": {"every_steps": 3}}, DATA)
    with pytest.raises(UserError, match=r"num_epochs is 3, not 2\. .*only num_epochs may grow"):
        workdir.claim(config, DATA)


@pytest.mark.parametrize("other", [{"fingerprint": "g"}, {"examples": {"train": 8}}])
def test_other_data_are_refused(workdir, other):
    workdir.claim(CONFIG, DATA)
    workdir.write_metrics([{"epoch": 1}])
    with pytest.raises(UserError, match="on other data: s has changed"):
        workdir.claim(CONFIG, DATA | other)


def test_other_user_code_is_refused(workdir):
    workdir.claim(CONFIG, DATA, {"mine:Norm": "digest"})
    workdir.write_metrics([{"epoch": 1}])
    workdir.claim(CONFIG, DATA, {"mine:Norm": "digest"})
    with pytest.raises(UserError, match="the code of mine:Norm has changed since the run in"):
        workdir.claim(CONFIG, DATA, {"mine:Norm": "other"})


def test_checkpoints_alone_are_no_run(workdir):
    (workdir.checkpoints / "7").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds checkpoints, but no config\.json"):
        workdir.claim(CONFIG, DATA)


def test_a_bucket_that_cannot_be_reached_is_said_in_a_line(workdir, monkeypatch):
    tensorflow = {"__module__": "tensorflow.python.framework.errors_impl"}
    error = type("OpError", (Exception,), tensorflow)("no network\nsee the log")
    for name in ("exists", "mkdir"):
        monkeypatch.setattr(type(workdir.path), name, Mock(side_effect=error))
    for use, what in ((workdir.read_metrics, "read"), (lambda: workdir.claim({}, DATA), "write")):
        with pytest.raises(UserError, match=f"^cannot {what} .*: no network; run the same command"):
            use()


@pytest.mark.parametrize(("written", "named"), [
    (None, "of format 1; this"),
    ({"format": 2, "bn_vgg": "0.1.0"}, "of format 2, written by bn_vgg 0.1.0; this"),
    ({"format": FORMAT + 1, "bn_vgg": "7"}, f"of format {FORMAT + 1}, written by bn_vgg 7; this"),
])  # fmt: skip
def test_runs_of_other_versions_are_refused_by_name(written, named, workdir):
    """To go on with, and to read their weights; format 1 had no format.json."""
    workdir.claim(CONFIG, DATA)
    (workdir.path / "format.json").unlink()
    if written:
        workdir.write("format.json", written)
    before = {path: path.read_bytes() for path in workdir.path.iterdir()}
    for use in (lambda: workdir.claim(CONFIG, DATA), lambda: api.load(workdir.path)):
        with pytest.raises(UserError, match=named):
            use()
    assert {path: path.read_bytes() for path in workdir.path.iterdir()} == before


def test_a_failed_write_keeps_the_old_file(workdir):
    workdir.write("result.json", {"a": 1})
    with pytest.raises(TypeError):
        workdir.write("result.json", {"a": object()})
    assert workdir.read("result.json") == {"a": 1}
    assert [path.name for path in workdir.path.iterdir()] == ["result.json"]


def test_metrics_are_read_as_written_damaged_and_missing_files_are_named(workdir):
    assert workdir.read_metrics() == []
    workdir.write_metrics([{"epoch": 1}, {"epoch": 2}])
    assert workdir.read_metrics() == [{"epoch": 1}, {"epoch": 2}]
    with pytest.raises(UserError, match=r"holds no run: there is no result.json"):
        workdir.read("result.json")
    for content in (b"{", b"{\xb5"):
        (workdir.path / "result.json").write_bytes(content)
        with pytest.raises(UserError, match=r"result.json is damaged: "):
            workdir.read("result.json")
    (workdir.path / "metrics.jsonl").unlink()
    (workdir.path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"cannot read .*metrics.jsonl: Is a directory"):
        workdir.read_metrics()


@pytest.mark.parametrize(("error", "status"), [(TimeoutError(), 75), (PermissionError(), 2)])
def test_storage_that_does_not_answer_has_a_status_of_its_own(error, status):
    with pytest.raises(UserError) as raised, wrap_read_errors("gs://bucket"):
        raise error
    assert raised.value.status == status


@pytest.mark.parametrize("name", ["wd[1]", "a*", "a?", "a\\b", "a\udcff"])
def test_names_that_orbax_cannot_keep_checkpoints_under(name, tmp_path, monkeypatch):
    """Also those of a folder above it, and of the current one."""
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    for path in (str(tmp_path / name / "run"), "run"):
        with pytest.raises(UserError, match=r"no checkpoint can be kept .* another --workdir"):
            _ = Workdir(path).checkpoints


def test_odd_names_that_orbax_takes(tmp_path):
    folder = Workdir(str(tmp_path / " a{b,c}]\"'#%20$é☃~:\n x")).checkpoints
    state = {"weights": np.arange(3, dtype=np.float32)}
    for step in (1, 2):
        progress = Progress().after_epoch(step=step, valid_error_rate=0.1, seconds=1)
        with Checkpointer(folder) as checkpointer:
            checkpointer.save(state, progress)
    assert list_steps(folder) == [2, 1]
    same(read(folder, 2, state), (progress, state))


def test_other_hosts_write_nothing(tmp_path):
    workdir = Workdir(str(tmp_path / "run"), writes=False)
    workdir.claim({"num_epochs": 1}, DATA)
    workdir.write_metrics([{"epoch": 1}])
    assert list(tmp_path.iterdir()) == []


def test_buckets_stay_buckets():
    workdir = Workdir("gs://bucket/runs/a")
    assert str(workdir.path) == "gs://bucket/runs/a"
    assert str(workdir.checkpoints) == "gs://bucket/runs/a/checkpoints"
    assert Workdir("runs/a").checkpoints.is_absolute()
