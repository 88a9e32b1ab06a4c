"""Sweeps by SkyPilot: its task file read by itself, its calls against a stand-in."""

import shlex
import sys
import types

import pytest

from bn_vgg.errors import EXIT_BUG, EXIT_USER_ERROR, UserError
from experiments.executors.sky import CHIPS, TASK, Sky
from experiments.plan import PlannedRun, find_preset, parse_shard, plan

OUT = "gs://bucket/some sweep"
RUNS = [
    PlannedRun(
        "full-demo", seed, "configs/full.py:demo", {"num_epochs": "3"}, num_epochs=3, batch_size=50
    )
    for seed in range(5)
]


class StandIn(types.ModuleType):
    """SkyPilot: a request's id is what it will return."""

    def __init__(self):
        super().__init__("sky")
        self.status, self.reason, self.unfinished = "RUNNING", None, None
        self.launched, self.cancelled = [], []
        self.accelerators = {"tpu-v5litepod-1": 1}
        self.jobs = self
        self.Task = self.exceptions = self
        self.ClusterDoesNotExist = LookupError

    def get(self, request):
        if request is None:  # there is no jobs controller yet
            raise self.ClusterDoesNotExist
        return request

    def from_yaml(self, path):
        task = types.SimpleNamespace(
            resources=[types.SimpleNamespace(accelerators=self.accelerators)],
            envs={"ARGUMENTS": "", "COMMIT": ""},
            run="python $ARGUMENTS",
        )
        task.update_envs = task.envs.update
        return task

    def launch(self, task, name):
        self.launched.append((name, task.envs, task.workdir))
        return [7], None

    def queue_v2(self, refresh, fields, **which):
        assert fields is None  # the usual ones leave failure_reason out
        if "name_match" in which:
            assert which["skip_finished"]
            names = {k: x for k, x in (self.unfinished or {}).items() if which["name_match"] in x}
            jobs = [types.SimpleNamespace(job_id=id, job_name=x) for id, x in names.items()]
            return None if self.unfinished is None else (jobs, len(jobs), {}, 0)
        assert which == {"job_ids": [7]}
        ended = self.status not in ("PENDING", "RUNNING", "RECOVERING")
        status = types.SimpleNamespace(value=self.status, is_terminal=lambda: ended)
        record = types.SimpleNamespace(status=status, failure_reason=self.reason)
        return [record], 1, {}, 1

    def api_cancel(self, request):
        self.withdrawn = request

    def cancel(self, job_ids):
        self.cancelled += job_ids
        return job_ids


@pytest.fixture
def sky(monkeypatch):
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "sky", stand_in)
    return stand_in


def executor(jobs=None, per_run=None, task=TASK):
    sweep_flags = ["--preset=figure1", "--seeds=3", "--notensorboard"]
    return Sky(OUT, ["--notensorboard"], sweep_flags, str(task), jobs, per_run)


def test_skypilot_reads_the_task_file():
    sky = pytest.importorskip("sky")
    task = sky.Task.from_yaml(str(TASK))
    (resources,) = task.resources
    assert resources.accelerators == {"tpu-v5litepod-1": 1}
    assert resources.accelerator_args["runtime_version"] == "v2-alpha-tpuv5-lite"
    assert resources.use_spot
    assert set(resources.accelerators) <= CHIPS.keys()
    task.update_envs({"ARGUMENTS": "-m bn_vgg.main --config='a b'", "COMMIT": "c0ffee"})
    assert '/python "$ARGUMENTS"' in task.run
    assert len(executor().divide(RUNS)) == 5


def test_a_job_makes_a_run_from_this_checkout(sky):
    jobs = executor()
    work = jobs.divide(RUNS)[1]
    job = jobs.start(work, 0)
    ((name, envs, workdir),) = sky.launched
    assert name == jobs.job_name(work) != jobs.job_name(jobs.divide(RUNS)[0])
    assert shlex.split(envs["ARGUMENTS"]) == [
        "-m", "bn_vgg.main", "--config=configs/full.py:demo", "--config.seed=1",
        "--config.num_epochs=3", "--workdir=gs://bucket/some sweep/full-demo/seed1",
        "--notensorboard",
    ]  # fmt: skip
    assert workdir == str(TASK.parents[1])
    assert f"--env=ARGUMENTS={envs['ARGUMENTS']}" in shlex.split(jobs.command(work))
    assert jobs.poll(job) is None
    sky.status = "SUCCEEDED"
    assert jobs.poll(job).status == 0
    jobs.stop(job)
    assert sky.cancelled == [7]


def test_a_sweep_that_was_killed_finds_its_job_again(sky, capsys):
    jobs = executor()
    work = jobs.divide(RUNS)
    sky.unfinished = {7: jobs.job_name(work[0])}
    assert len(jobs.open(work)) == 5
    assert jobs.start(work[0], 0) == 7
    assert not sky.launched
    assert "full-demo/seed0: managed job 7, `sky jobs logs 7`" in capsys.readouterr().out
    sky.status = "CANCELLED"  # with the sweep that was killed
    assert jobs.poll(7).lost


def test_jobs_of_another_division_of_the_sweep_are_not_doubled(sky):
    sky.accelerators = {"tpu-v5litepod-4": 1}
    jobs = executor()
    before, now = jobs.divide(RUNS), jobs.divide(RUNS[:4])
    assert len(before) != len(now)
    sky.unfinished = {7: jobs.job_name(before[0])}
    with pytest.raises(UserError, match=f"other jobs .* are not done.*{sky.unfinished[7]}"):
        jobs.open(now)


def test_ctrl_c_withdraws_a_launch(sky, monkeypatch, capsys):
    def interrupt(request):
        if request == ([7], None):
            raise KeyboardInterrupt
        return StandIn.get(sky, request)

    monkeypatch.setattr(sky, "get", interrupt)
    jobs = executor()
    with pytest.raises(KeyboardInterrupt):
        jobs.start(jobs.divide(RUNS)[0], 0)
    assert sky.withdrawn == ([7], None)
    assert "sky jobs cancel -n bn-vgg-" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("state", "reason", "exit_status"),
    [
        ("FAILED", "Job exited with exit\n code 2 (user program failure).", EXIT_USER_ERROR),
        ("FAILED", "Job exited with exit code 134 (user program failure).", 134),
        ("FAILED", "Job exited with exit codes [0, 134] (user program failure).", 134),
        ("FAILED", "Job exited with exit codes [137, 2] (user program failure).", EXIT_USER_ERROR),
        ("FAILED", None, EXIT_BUG),
        ("FAILED_NO_RESOURCE", "no quota", EXIT_USER_ERROR),
        ("CANCELLED", "", EXIT_USER_ERROR),
    ],
)
def test_a_job_that_fails_says_why(sky, state, reason, exit_status):
    jobs = executor()
    job = jobs.start(jobs.divide(RUNS)[0], 0)
    sky.status, sky.reason = state, reason
    ended = jobs.poll(job)
    assert (ended.status, ended.lost) == (exit_status, False)
    assert ended.error.startswith(f"{state}: ")


def test_what_skypilot_raises_is_said_in_a_line_and_tried_again(sky, monkeypatch):
    jobs = executor()
    monkeypatch.setattr(sky, "launch", lambda *_, **__: 1 / 0)
    ended = jobs.poll(jobs.start(jobs.divide(RUNS)[0], 0))
    assert ended.error == "SkyPilot: ZeroDivisionError: division by zero"
    assert (ended.status, ended.lost) == (EXIT_BUG, False)


def test_a_job_that_cannot_be_looked_up_is_not_given_up(sky, monkeypatch):
    monkeypatch.setattr(Sky, "poll_seconds", 0)
    jobs = executor()
    work = jobs.divide(RUNS)[0]
    job = jobs.start(work, 0)
    monkeypatch.setattr(sky, "queue_v2", lambda **_: 1 / 0)
    assert jobs.poll(job).lost
    assert jobs.poll(jobs.start(work, 0)).lost


@pytest.mark.parametrize(
    ("accelerators", "per_run", "jobs", "shards"),
    [
        ({"tpu-v5litepod-4": 1}, None, None, [3, 2]),
        ({"tpu-v5litepod-8": 1}, None, 3, [5]),
        ({"tpu-v5p-8": 1}, None, 1, [5]),
        ({"H100": 2}, None, None, [2, 2, 1]),
    ],
)
def test_each_chip_of_a_host_makes_a_run_of_a_shard(sky, accelerators, per_run, jobs, shards):
    sky.accelerators = accelerators
    executed = executor(jobs, per_run).divide(RUNS)
    assert [len(work.runs) for work in executed] == shards
    assert {run.folder for work in executed for run in work.runs} == {run.folder for run in RUNS}
    flags = executed[0].arguments
    assert flags[:2] == ("-m", "experiments.sweep")
    assert f"--out={OUT}" in flags
    index, count = parse_shard(flags[-2].removeprefix("--shard="))
    assert executed[0].runs == tuple(RUNS[index::count])


@pytest.mark.parametrize(("accelerator", "per_run"), [("v5litepod-16", None), ("v6e-4", 4)])
def test_a_pod_or_all_chips_of_a_host_make_one_run_together(sky, accelerator, per_run):
    sky.accelerators = {f"tpu-{accelerator}": 1}
    runs = plan(find_preset("figure1"), variant="full", seeds=[0], settings={"batch_size": "160"})
    works = executor(per_run=per_run).divide(runs)
    assert [work.arguments[1] for work in works] == ["bn_vgg.main"] * 2


@pytest.mark.parametrize(
    ("accelerators", "per_run", "message"),
    [
        ({"tpu-v5litepod-16": 1}, None, "16 chips of tpu-v5litepod-16 cannot share batches of 50"),
        ({"tpu-v5litepod-8": 1}, 8, "8 chips of tpu-v5litepod-8 cannot share batches of 50"),
        ({"tpu-v5litepod-4": 1}, 5, "--devices_per_run=5 of 4"),
        ({"tpu-v5litepod-8": 1}, 2, "--devices_per_run=2 of 8: on a TPU 1 or all"),
        ({"tpu-v5litepod-3": 1}, None, "no TPU tpu-v5litepod-3; there are: tpu-v5litepod-1, "),
        ({"tpu-v6e-1": 1, "H100": 1}, None, "name one kind of accelerator"),
    ],
)
def test_hardware_that_does_not_suit_is_refused_before_a_launch(
    sky, accelerators, per_run, message
):
    sky.accelerators = accelerators
    with pytest.raises(UserError, match=message):
        executor(per_run=per_run).divide(RUNS)
    assert not sky.launched


def test_a_folder_of_this_machine_is_refused(sky):
    with pytest.raises(UserError, match="--executor=sky needs an address"):
        Sky("runs", [], [], str(TASK))


def test_a_task_file_that_is_none_is_refused(tmp_path):
    pytest.importorskip("sky")
    path = tmp_path / "task.yaml"
    with pytest.raises(UserError, match="--sky_task="):
        executor(task=path)
    path.write_text("run: echo hello\n")
    with pytest.raises(UserError, match=r"its `run` does not use \$ARGUMENTS"):
        executor(task=path)
