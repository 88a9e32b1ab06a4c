"""Sweeps by SkyPilot: its task file read by itself, its calls against a stand-in."""

import shlex
import threading
import types

import pytest

from bn_vgg.errors import UserError
from bn_vgg.run_dir import Workdir
from experiments.sweeping import sky_jobs
from experiments.sweeping.plan import PlannedRun
from experiments.sweeping.sky_jobs import DEVICES, TASK, SkyJobs

RUN = PlannedRun("full-demo", 1, "configs/full.py:demo", {"num_epochs": "3"}, num_epochs=3)
OUT = "gs://bucket/some sweep"


class Status:
    def __init__(self, value):
        self.value = value

    def is_terminal(self):
        return self.value in ("SUCCEEDED", "FAILED", "CANCELLED")


class StandIn:
    """SkyPilot: a request's id is what it will return."""

    def __init__(self, statuses=("RUNNING", "SUCCEEDED"), reason=None, unfinished=()):
        self.statuses, self.reason, self.unfinished = list(statuses), reason, unfinished
        self.launched, self.cancelled, self.asked = [], [], []
        self.accelerators = {"tpu-v5litepod-1": 1}
        self.jobs = self
        self.Task = self

    def get(self, request):
        return request

    def from_yaml(self, path):
        task = types.SimpleNamespace(
            resources=[types.SimpleNamespace(accelerators=self.accelerators)],
            envs={"ARGUMENTS": "", "COMMIT": ""},
        )
        task.update_envs = task.envs.update
        return task

    def launch(self, task, name):
        self.launched.append((name, task.envs, task.workdir))
        return [7], None

    def queue_v2(self, refresh, **which):
        self.asked.append(which)
        if "name_match" in which:
            return [types.SimpleNamespace(job_id=id) for id in self.unfinished], 0, {}, 0
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        record = types.SimpleNamespace(status=Status(status), failure_reason=self.reason)
        return [record], 1, {}, 1

    def cancel(self, job_ids):
        self.cancelled += job_ids


@pytest.fixture
def make_jobs(monkeypatch, tmp_path):
    """Returns the backend of a stand-in, whose bucket is a folder."""

    def make(sky):
        monkeypatch.setattr(sky_jobs, "_import_sky", lambda: sky)
        monkeypatch.setattr(sky_jobs, "_SECONDS_BETWEEN_LOOKS", 0.01)
        jobs = SkyJobs(OUT, ["--notensorboard"], str(TASK))
        monkeypatch.setattr(jobs, "workdir", lambda run: Workdir(str(tmp_path), writes=False))
        return jobs

    return make


def execute(jobs):
    said = []
    (slot,) = jobs.slots([RUN], said.append)
    return slot, slot.execute(RUN), said


def test_skypilot_reads_the_task_file():
    sky = pytest.importorskip("sky")
    task = sky.Task.from_yaml(str(TASK))
    (resources,) = task.resources
    assert resources.accelerators == {"tpu-v5litepod-1": 1}
    assert resources.accelerator_args["runtime_version"] == "v2-alpha-tpuv5-lite"
    assert resources.use_spot
    assert set(resources.accelerators) <= DEVICES.keys()
    task.update_envs({"ARGUMENTS": "--config='a b'", "COMMIT": "c0ffee"})
    assert task.envs["ARGUMENTS"] == "--config='a b'"
    SkyJobs(OUT, [], str(TASK))


def test_a_job_does_what_the_run_needs_from_this_checkout(make_jobs, tmp_path):
    sky = StandIn()
    (tmp_path / "result.json").write_text("{}")
    jobs = make_jobs(sky)
    _, outcome, said = execute(jobs)
    assert outcome.error is None
    ((name, envs, workdir),) = sky.launched
    assert name == jobs.job_name(RUN)
    assert shlex.split(envs["ARGUMENTS"]) == [
        "--config=configs/full.py:demo", "--config.seed=1", "--config.num_epochs=3",
        "--workdir=gs://bucket/some sweep/full-demo/seed1", "--notensorboard",
    ]  # fmt: skip
    assert workdir == str(sky_jobs._ROOT)
    assert said[-1] == "full-demo/seed1: managed job 7, `sky jobs logs 7`"
    assert not sky.cancelled
    (command,) = jobs.commands([RUN])
    assert f"--env=ARGUMENTS={envs['ARGUMENTS']}" in shlex.split(command)


def test_a_sweep_that_was_killed_finds_its_job_again(make_jobs, tmp_path):
    sky = StandIn(unfinished=[5])
    (tmp_path / "result.json").write_text("{}")
    _, outcome, said = execute(make_jobs(sky))
    assert outcome.error is None
    assert not sky.launched
    assert "managed job 5" in said[-1]
    assert {"job_ids": [5]} in sky.asked


def test_a_job_that_fails_says_why(make_jobs):
    _, outcome, _ = execute(make_jobs(StandIn(["FAILED"], reason="exit\n status 2")))
    assert outcome.error == "job 7 is FAILED: exit status 2"
    assert not outcome.lost


def test_a_job_without_a_result_is_no_success(make_jobs):
    _, outcome, _ = execute(make_jobs(StandIn(["SUCCEEDED"])))
    assert outcome.error.startswith("it ended well, but there is no result.json in ")


def test_what_skypilot_raises_is_said_in_a_line(make_jobs, monkeypatch):
    sky = StandIn()
    jobs = make_jobs(sky)
    monkeypatch.setattr(sky, "launch", lambda *_, **__: 1 / 0)
    _, outcome, _ = execute(jobs)
    assert outcome.error == "SkyPilot: ZeroDivisionError: division by zero"


def test_a_sweep_that_is_stopped_cancels_its_jobs(make_jobs):
    sky = StandIn(["RUNNING"])
    (slot,) = make_jobs(sky).slots([RUN], lambda _: None)
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(slot.execute(RUN)))
    thread.start()
    slot.stop()
    thread.join(10)
    assert sky.cancelled == [7]
    assert outcomes[0].lost


def test_chips_that_cannot_share_a_batch_are_refused_before_anything_is_launched(make_jobs):
    sky = StandIn()
    sky.accelerators = {"tpu-v5litepod-8": 1}
    with pytest.raises(UserError, match=r"the 8 devices of tpu-v5litepod-8 cannot share batches"):
        make_jobs(sky).slots([RUN], lambda _: None)
    assert not sky.launched


def test_a_tpu_that_is_not_there_is_refused(make_jobs):
    sky = StandIn()
    sky.accelerators = {"tpu-v5litepod-3": 1}
    with pytest.raises(UserError, match=r"no TPU tpu-v5litepod-3; there are: tpu-v5litepod-1, "):
        make_jobs(sky)


def test_a_task_file_that_is_none_is_refused(tmp_path):
    pytest.importorskip("sky")
    path = tmp_path / "task.yaml"
    with pytest.raises(UserError, match="--sky_task="):
        SkyJobs(OUT, [], str(path))
    path.write_text("run: echo hello\n")
    with pytest.raises(UserError, match="has no ARGUMENTS among its envs"):
        SkyJobs(OUT, [], str(path))
