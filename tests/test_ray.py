"""A sweep on a real Ray cluster of three nodes on this machine, one of which is killed."""

import os
import sys

import psutil
import pytest

from bn_vgg.errors import UserError
from bn_vgg.run_dir import Workdir
from experiments.sweeping.backend import EpochReporter
from experiments.sweeping.plan import PlannedRun
from experiments.sweeping.ray_cluster import (
    _FRACTION,
    _OLD_FRACTION,
    RayCluster,
    _Task,
    take_share,
)
from tests.runs import lines, wait_for_checkpoint
from tests.sweep_runs import finish, start, write_preset

pytestmark = pytest.mark.usefixtures("quick_compilation")

RUNS = [f"{norm}/seed{seed}" for norm in ("none", "mean_only") for seed in (0, 1)]


@pytest.fixture(scope="module")
def cluster():
    """A head without room for runs, and two nodes with room for one each."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    from ray.cluster_utils import Cluster

    patched = pytest.MonkeyPatch()
    patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's processes are otherwise so nice that beside other tests they hardly get on.
    patched.setenv("RAY_worker_niceness", "0")
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    found.workers = [found.add_node(num_cpus=1) for _ in range(2)]
    yield found
    found.shutdown()
    patched.undo()


def node_of(run, cluster):
    """The node that a run is on: its raylet is the parent of a process named after the run."""
    (node,) = [
        node for node in cluster.workers for raylet in node.all_processes["raylet"]
        for child in psutil.Process(raylet.process.pid).children(recursive=True)
        if run in " ".join(child.cmdline())
    ]  # fmt: skip
    return node


@pytest.mark.slow
def test_a_killed_node_costs_no_run_and_changes_no_number(
    cluster, tmp_path, cartoon_folder, cache_folder
):
    preset = write_preset(tmp_path, cartoon_folder, epochs=40)
    flags = [f"--preset={preset}", "--seeds=2", "--notensorboard", f"--cache_dir={cache_folder}"]
    on_ray = ["--backend=ray", f"--ray_address={cluster.address}"]
    process = start(*flags, *on_ray, f"--out={tmp_path / 'ray'}")
    wait_for_checkpoint(tmp_path / "ray" / RUNS[0], process)
    cluster.remove_node(node_of(RUNS[0], cluster), allow_graceful=False)
    out, _ = finish(process)
    assert "4 runs to do on a Ray cluster of 3 nodes" in out
    assert "none/seed0: epoch 40/40" in out
    assert out.splitlines()[-1] == "4 runs: 4 done"
    assert "resuming after epoch" in (tmp_path / "ray" / RUNS[0] / "log.txt").read_text()

    # The killed run, and one that nothing happened to.
    finish(start(*flags, "--seeds=1", f"--out={tmp_path / 'local'}"))
    for run in (RUNS[0], RUNS[2]):
        assert lines(tmp_path / "ray" / run) == lines(tmp_path / "local" / run)


@pytest.mark.slow
def test_what_no_node_has_is_said_at_once(cluster, tmp_path, cartoon_folder):
    preset = write_preset(tmp_path, cartoon_folder)
    process = start(
        f"--preset={preset}", "--backend=ray", f"--ray_address={cluster.address}",
        "--set=resources.TPU=4", f"--out={tmp_path / 'out'}",
    )  # fmt: skip
    _, errors = finish(process, status=2)
    assert "none/seed0 asks for {'CPU': 1.0, 'TPU': 4.0} (config.resources)" in errors


@pytest.mark.slow
def test_where_there_is_no_cluster_it_says_how_to_start_one(tmp_path, cartoon_folder):
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    preset = write_preset(tmp_path, cartoon_folder)
    process = start(
        f"--preset={preset}", "--backend=ray", "--ray_address=127.0.0.1:1",
        f"--out={tmp_path / 'out'}",
    )  # fmt: skip
    _, errors = finish(process, status=2)
    assert "--ray_address=127.0.0.1:1: no Ray cluster there; start one with" in errors


class TestDevices:
    def test_each_run_has_a_process_of_its_own(self, tmp_path):
        """JAX lets go of a device's memory at the process's end; Ray keeps processes."""
        ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
        asked = []

        class Remote:
            exceptions = ray.exceptions

            def remote(self, **options):
                asked.append(options)
                return self.decorate

            def decorate(self, function):
                return self

            def options(self, name):
                raise ray.exceptions.RayError("enough")

        run = PlannedRun("a", 0, "configs/baseline.py", {}, resources={"CPU": 1, "GPU": 0.25})
        with pytest.raises(ray.exceptions.RayError):
            _Task("a", Remote(), str(tmp_path), [], print).execute(run)
        assert [(of["max_calls"], of["num_gpus"]) for of in asked] == [(1, 0.25)]

    @pytest.mark.parametrize(
        ("gpus", "given", "share"),
        [(0.25, {}, "0.188"), (1, {}, None), (0, {}, None), (0.5, {_FRACTION: "0.4"}, "0.4"),
         (0.5, {_OLD_FRACTION: "0.4"}, None)],
    )  # fmt: skip
    def test_a_share_of_a_gpu_is_a_share_of_its_memory(self, gpus, given, share, monkeypatch):
        for name in (_FRACTION, _OLD_FRACTION):
            monkeypatch.delenv(name, raising=False)
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv(_FRACTION, os.environ.get(_FRACTION, ""))  # so that it is undone
        if not os.environ[_FRACTION]:
            del os.environ[_FRACTION]
        take_share(gpus)
        assert os.environ.get(_FRACTION) == share


def test_an_attempt_that_breaks_off_leaves_no_task_and_the_next_one_its_own(tmp_path):
    """As where nobody reads on: the slot itself has not been stopped."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    cancelled, waits = [], iter([ValueError("a bug"), None])

    class Remote:
        exceptions = ray.exceptions

        def remote(self, *_, **__):
            return lambda function: self

        def options(self, name):
            self.remote = lambda *_: name
            return self

        def wait(self, tasks, timeout):
            error = next(waits)
            if error:
                raise error
            return tasks, []

        def get(self, task):
            return None

        def cancel(self, task, force):
            cancelled.append(task)

    run = PlannedRun("a", 0, "configs/baseline.py", {})
    slot = _Task("a", Remote(), str(tmp_path), [], print)
    with pytest.raises(ValueError, match="a bug"):
        slot.execute(run)
    assert cancelled == ["a/seed0"]
    slot._ray = again = Remote()
    assert slot.execute(run).error is None
    assert (slot._ray, cancelled) == (again, ["a/seed0"])


def test_a_look_that_fails_is_no_end_of_a_run(tmp_path):
    """A network's disk may be away for a moment."""
    run = PlannedRun("a", 0, "configs/baseline.py", {})
    (tmp_path / "metrics.jsonl").mkdir()
    EpochReporter(Workdir(str(tmp_path), writes=False), run, print).say_new()


def test_without_ray_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"--backend=ray needs Ray: pip install -e '\.\[ray\]'"):
        RayCluster("out", [])


def test_the_tasks_commands_name_an_absolute_folder(tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    monkeypatch.chdir(tmp_path)
    run = PlannedRun("a", 0, "configs/baseline.py", {})
    (command,) = RayCluster("out", ["--notensorboard"]).commands([run])
    assert f"--workdir={tmp_path}/out/a/seed0 --notensorboard" in command
