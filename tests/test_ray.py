"""A sweep on a real Ray cluster of three nodes on this machine, one of which is killed."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest

from bn_vgg.errors import UserError
from experiments.executors import ray as executor
from tests.conftest import ROOT
from tests.runs import lines, wait_for_checkpoint
from tests.sweep_runs import finish, planned, run_alone, start, write_preset

pytestmark = pytest.mark.usefixtures("quick_compilation")

RUN = "long/seed0"


@pytest.fixture(scope="module")
def cluster():
    """A head without room for runs, and two nodes with room for one each."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False}
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Ray's processes are otherwise so nice that beside other tests they hardly get on.
        patched.setenv("RAY_worker_niceness", "0")
        found = Cluster(initialize_head=True, head_node_args=head)
        found.workers = [found.add_node(num_cpus=1) for _ in range(2)]
        yield found
        found.shutdown()


def node_of(run, cluster):
    """The node that a run is on: its raylet is an ancestor of a process of that run."""
    (node,) = [
        node for node in cluster.workers for raylet in node.all_processes["raylet"]
        if any(f"/{run}" in " ".join(child.cmdline())
               for child in psutil.Process(raylet.process.pid).children(recursive=True))
    ]  # fmt: skip
    return node


def test_a_killed_node_costs_no_run_and_changes_no_number(
    cluster, tmp_path, cartoon_folder, cache_folder, tiny_config
):
    preset = write_preset(tmp_path, cartoon_folder, epochs=20, short=False)
    process = start(
        f"--preset={preset}", "--notensorboard", f"--cache_dir={cache_folder}", "--executor=ray",
        f"--ray_address={cluster.address}", f"--out={tmp_path / 'ray'}",
    )  # fmt: skip
    wait_for_checkpoint(tmp_path / "ray" / RUN, process)
    cluster.remove_node(node_of(RUN, cluster), allow_graceful=False)
    out, _ = finish(process)
    assert "1 runs to do, 1 at once on a Ray cluster of 3 nodes" in out
    assert "long/seed0  epoch 20/20" in out
    assert "1 runs: 1 done" in out
    assert "resuming after epoch" in (tmp_path / "ray" / RUN / "log.txt").read_text()
    alone = run_alone(tiny_config, 20, tmp_path / "alone", cache_folder)
    assert lines(tmp_path / "ray" / RUN) == alone


def test_what_no_node_has_is_said_at_once(monkeypatch):
    nodes = [{"Alive": True, "Resources": {"CPU": 8.0}}, {"Alive": False, "Resources": {"TPU": 4}}]
    stand_in = SimpleNamespace(init=lambda *_, **__: None, nodes=lambda: nodes)
    monkeypatch.setitem(sys.modules, "ray", stand_in)
    jobs = executor.Ray("out", [])
    fits, not_there = (replace(planned("a"), resources=x) for x in ({"CPU": 8}, {"TPU": 4}))
    assert jobs.open(jobs.divide([fits])) == ["a Ray cluster of 1 nodes"]
    with pytest.raises(UserError, match=r"a/seed0 asks for {'TPU': 4} \(config.resources\)"):
        jobs.open(jobs.divide([not_there]))
    nodes[0]["Resources"]["GPU"] = 8.0
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    with pytest.raises(UserError, match="nodes have GPUs, but no run asks for one: add --set"):
        jobs.open(jobs.divide([fits]))


def test_where_there_is_no_cluster_it_says_how_to_start_one():
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    with pytest.raises(UserError, match="no Ray cluster there; start one with `ray start --head`"):
        executor.Ray("out", [], "127.0.0.1:1").open([])


def test_a_task_makes_a_process_and_says_how_it_ended(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)  # the task changes it
    code = "import os; print(os.environ['SHARED']); exit(3)"
    ended = executor._execute(["-c", code], str(tmp_path / "run.out"), {"SHARED": "yes"})
    assert (ended.status, ended.error) == (3, "exit status 3: yes")


def test_without_ray_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[ray\]'"):
        executor.Ray("out", [])
