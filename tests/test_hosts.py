"""Hosts that die, hang, fail or disagree: real processes, on one machine."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest

from bn_vgg import multihost
from bn_vgg.errors import EXIT_HOST_LOST, EXIT_TERMINATED, EXIT_USER_ERROR, UserError
from tests.conftest import ROOT
from tests.runs import assert_equal_runs, num_lines

pytestmark = pytest.mark.usefixtures("quick_compilation")

# 48 images in batches of 6, for two or three devices; few programs, quickly compiled.
NUM_EPOCHS = 16
ARGUMENTS = (
    f"--config={ROOT}/tests/tiny_config.py", f"--config.num_epochs={NUM_EPOCHS}",
    "--config.batch_size=6", "--config.eval.precise_examples=0", "--config.model.norm=none",
    "--notensorboard",
)  # fmt: skip
# Longer than a busy machine takes for anything between two steps that does not compile.
TIMEOUT = 20
SHORT = f"--host_timeout_seconds={TIMEOUT}"
# For so long at most a process that is gone is waited for where XLA does not notice.
SILENT = 90
# What else may pass until all have ended: farewells, and a busy machine.
GRACE = 60
MAIN = ("-m", "bn_vgg.main")


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


class Hosts:
    """Processes that run one command, each with its own output, folder and environment."""

    def __init__(self, folder, cache_folder):
        self.folder, self.cache_folder = folder, cache_folder
        self.processes = []

    def start(self, *arguments, count=2, own=None):
        """Starts them; `own` gives some of them what differs, by their number."""
        address = free_address()
        self.processes = []
        for i in range(count):
            its = {"python": MAIN, "arguments": (), "cwd": ROOT, "code": ROOT}
            its |= (own or {}).get(i, {})
            with self.output(i).open("w") as output:
                process = subprocess.Popen(
                    [
                        sys.executable, *its["python"], *map(str, arguments), *its["arguments"],
                        f"--coordinator_address={address}", f"--num_processes={count}",
                        f"--process_id={i}",
                    ],
                    cwd=its["cwd"],
                    env=os.environ
                    | {"BN_VGG_CACHE": str(self.cache_folder)}
                    | {"PYTHONPATH": str(its["code"])},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )  # fmt: skip
            self.processes.append(process)

    def output(self, i):
        return self.folder / f"output{i}.txt"

    def said(self, i):
        return self.output(i).read_text()

    def wait_until(self, happened):
        """Waits for an event; none of the processes may end before it."""
        while not happened():
            assert [process.poll() for process in self.processes] == [None] * len(self.processes)
            time.sleep(0.02)

    def end(self, *survivors):
        """Returns the survivors' exit statuses, and the seconds until they had ended."""
        began = time.monotonic()
        statuses = [self.processes[i].wait(timeout=300) for i in survivors]
        return statuses, time.monotonic() - began

    def kill(self):
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def hosts(tmp_path, cache_folder):
    hosts = Hosts(tmp_path, cache_folder)
    yield hosts
    hosts.kill()


@pytest.mark.slow
def test_after_hosts_were_lost_the_same_command_makes_the_same_run(hosts, cartoon_folder, tmp_path):
    source = f"--config.data.source={cartoon_folder}"
    hosts.start(*ARGUMENTS, source, f"--workdir={tmp_path / 'undisturbed'}")
    assert hosts.end(0, 1)[0] == [0, 0], hosts.said(0)

    workdir = tmp_path / "disturbed"
    command = (*ARGUMENTS, source, f"--workdir={workdir}")
    # One that is killed: the connection to it ends, or the first waits in a barrier of Orbax's.
    hosts.start(*command)
    hosts.wait_until(lambda: num_lines(workdir) >= 2)
    hosts.processes[1].kill()
    statuses, seconds = hosts.end(0)
    assert statuses == [EXIT_HOST_LOST], hosts.said(0)
    assert "error: another host is gone (" in hosts.said(0)
    assert "Traceback" not in hosts.said(0)
    assert seconds < SILENT + GRACE

    # One that is told to end: all keep the same step, within an epoch or at its end.
    done = num_lines(workdir)
    hosts.start(*command)
    hosts.wait_until(lambda: num_lines(workdir) > done)
    hosts.processes[1].terminate()
    assert hosts.end(0, 1)[0] == [EXIT_TERMINATED] * 2, hosts.said(0)
    said = [re.search(r"kept after step (\d+); run the same", hosts.said(i)) for i in range(2)]
    assert said[0][1] == said[1][1]

    # The first, that stops: nothing happens.
    done = num_lines(workdir)
    assert done < NUM_EPOCHS
    hosts.start(*command, SHORT)
    hosts.wait_until(lambda: num_lines(workdir) >= done + 2)
    assert "resuming after epoch" in hosts.said(0)
    hosts.processes[0].send_signal(signal.SIGSTOP)
    statuses, seconds = hosts.end(1)
    assert statuses == [EXIT_HOST_LOST], hosts.said(1)
    assert f"error: nothing has happened for {TIMEOUT} seconds" in hosts.said(1)
    assert seconds < TIMEOUT + GRACE
    hosts.kill()

    assert num_lines(workdir) < NUM_EPOCHS
    hosts.start(*command)
    assert hosts.end(0, 1)[0] == [0, 0], hosts.said(0)
    assert_equal_runs(workdir, tmp_path / "undisturbed")


# A process that is alive, and answers, but does nothing after some steps.
STUCK = """
import runpy, time
from bn_vgg import multihost
step_done, calls = multihost.step_done, []
def done_or_hang():
    step_done()
    calls.append(None)
    if len(calls) >= 20:
        print("stuck", flush=True)
        time.sleep(10000)
multihost.step_done = done_or_hang
runpy.run_module("bn_vgg.main", run_name="__main__")
"""


@pytest.mark.slow
def test_of_three_one_hangs_and_then_the_first_is_killed(hosts, cartoon_folder, tmp_path):
    workdir = tmp_path / "run"
    command = (*ARGUMENTS, f"--config.data.source={cartoon_folder}", f"--workdir={workdir}")
    hosts.start(*command, SHORT, count=3, own={2: {"python": ("-c", STUCK)}})
    hosts.wait_until(lambda: "stuck" in hosts.said(2))
    statuses, seconds = hosts.end(0, 1, 2)
    assert statuses == [EXIT_HOST_LOST] * 3
    for i in range(3):
        assert f"nothing has happened for {TIMEOUT} seconds" in hosts.said(i)
        assert hosts.said(i).count("error:") == 1
    assert seconds < TIMEOUT + GRACE

    done = num_lines(workdir)
    hosts.start(*command, count=3)
    hosts.wait_until(lambda: num_lines(workdir) >= done + 2)
    hosts.processes[0].kill()
    statuses, seconds = hosts.end(1, 2)
    # The first keeps the list of the processes: without it, XLA aborts the others at once.
    assert set(statuses) <= {EXIT_HOST_LOST, -signal.SIGABRT}, statuses
    assert seconds < GRACE


@pytest.mark.slow
def test_hosts_that_disagree_refuse_to_start(hosts, cartoon_folder, tmp_path):
    other_code = tmp_path / "code"
    shutil.copytree(ROOT / "bn_vgg", other_code / "bn_vgg")
    (other_code / "configs").symlink_to(ROOT / "configs")
    (other_code / "bn_vgg" / "__init__.py").write_text('__version__ = "0.0.7"\n')
    workdir = tmp_path / "run"
    command = (*ARGUMENTS, "--config.data.source=./pictures", f"--workdir={workdir}")
    other = {"arguments": ("--config.seed=1",), "cwd": other_code, "code": other_code}
    hosts.start(*command, own={1: other})
    assert hosts.end(0, 1)[0] == [EXIT_USER_ERROR] * 2, hosts.said(0)
    for i in range(2):
        (line,) = [line for line in hosts.said(i).splitlines() if line.startswith("error: ")]
        host = socket.gethostname()
        assert line.startswith(f"error: process 1 ({host}) differs from process 0 ({host}): code.")
        assert "; code.version is 0.0.7, not " in line
        assert "; config.seed is 1, not 0" in line

    # The same name, but an image less.
    for name in "ab":
        shutil.copytree(cartoon_folder, tmp_path / name / "pictures")
    min((tmp_path / "b" / "pictures").iterdir()).unlink()
    hosts.start(*command, own={i: {"cwd": tmp_path / name} for i, name in enumerate("ab")})
    assert hosts.end(0, 1)[0] == [EXIT_USER_ERROR] * 2, hosts.said(0)
    for i in range(2):
        assert "data.examples.train is 47, not 48; data.fingerprint is " in hosts.said(i)

    # One that fails by itself says why everywhere, and nobody waits for it.
    (tmp_path / "a" / "pictures").rename(tmp_path / "a" / "drawings")
    command = (*command, "--config.data.source=./drawings")
    own = {i: {"cwd": tmp_path / name} for i, name in enumerate("aab")}
    # Not where the others may have made a cache of them already.
    own[2]["arguments"] = (f"--cache_dir={tmp_path / 'cache'}",)
    hosts.start(*command, count=3, own=own)
    statuses, seconds = hosts.end(0, 1, 2)
    assert statuses == [EXIT_USER_ERROR] * 3, hosts.said(0)
    assert "error: './drawings' does not exist in " in hosts.said(2)
    for i in range(2):
        assert f"error: process 2 ({host}): './drawings' does not exist in " in hosts.said(i)
    assert seconds < GRACE
    # Nothing of a run: the first one may have held its lock when it was ended.
    assert {path.name for path in workdir.glob("*")} <= {".lock", ".lock.json"}


# The first waits for what the third, which dies, would say: no connection tells of it.
KILLED = """
import os, signal, sys, time
from bn_vgg import multihost, watchdog
watchdog._SILENT_LOOKS = 2
given = dict(argument.lstrip("-").split("=") for argument in sys.argv[1:])
index = int(given["process_id"])
with multihost.joined(given["coordinator_address"], int(given["num_processes"]), index):
    multihost.agree({})
    if index == 1:
        # As one that has ended its part does; then it is not missed.
        multihost._watchdog.stop()
        time.sleep(25)
        print("not missed", flush=True)
    elif index == 2:
        time.sleep(25)
        os.kill(os.getpid(), signal.SIGKILL)
    multihost.agree({"for": "ever"})
"""


@pytest.mark.slow
def test_one_that_is_killed_while_another_waits_for_its_word_is_missed(hosts):
    hosts.start(count=3, own={i: {"python": ("-c", KILLED)} for i in range(3)})
    statuses, seconds = hosts.end(0)
    assert statuses == [EXIT_HOST_LOST], hosts.said(0)
    assert "error: another host is gone (process 2 gives no sign of life)" in hosts.said(0)
    assert "not missed" in hosts.said(1)
    assert seconds < SILENT + GRACE


# Calls as often as the others, but not at the same times.
PREEMPTED = """
import sys, time
from bn_vgg import multihost
given = dict(argument.lstrip("-").split("=") for argument in sys.argv[1:])
index = int(given["process_id"])
with multihost.joined(given["coordinator_address"], int(given["num_processes"]), index):
    print("joined", flush=True)
    calls = 0
    while not multihost.preempted():
        calls += 1
        time.sleep(0.02 + 0.02 * index)
    print("preempted after", calls, flush=True)
"""


def test_a_sigterm_to_one_process_is_heard_by_all_in_the_same_call(hosts):
    own = {i: {"python": ("-c", PREEMPTED)} for i in range(2)}
    hosts.start(own=own)
    hosts.wait_until(lambda: all("joined" in hosts.said(i) for i in range(2)))
    hosts.processes[1].terminate()
    assert hosts.end(0, 1)[0] == [0, 0]
    calls = [hosts.said(i).split("preempted after ")[1].split()[0] for i in range(2)]
    assert calls[0] == calls[1]


def test_a_process_alone_has_nobody_to_agree_with(tmp_path):
    with multihost.joined():
        multihost.agree({"seed": 1})
        multihost.check_shared(tmp_path / "missing")
        multihost.start()
        multihost.step_done()
        multihost.epoch_done()
        assert not multihost.preempted()


@pytest.mark.parametrize("index", [0, 1])
def test_a_process_that_meets_nobody_says_so(index):
    address = free_address()
    code = f"""
from bn_vgg import multihost
multihost._MEETING_SECONDS = 1
with multihost.joined({address!r}, 2, {index}):
    pass
"""
    alone = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert alone.returncode == EXIT_HOST_LOST, alone.stderr
    assert "error: the processes did not meet in 1 seconds" in alone.stderr


def test_a_part_of_the_arguments_is_refused():
    with pytest.raises(UserError, match="go together"), multihost.joined("host0:1"):
        pass


def test_differences_name_processes_facts_and_both_values():
    names = ["process 0 (a)", "process 1 (b)", "process 2 (c)"]
    facts = [{"x": 1, "y": "left"}, {"x": 1, "y": "left"}, {"y": "right", "z": [2]}]
    assert multihost.differences(names[:2], facts[:2]) == ""
    assert multihost.differences(names, facts) == (
        "process 2 (c) differs from process 0 (a): x is (not there), not 1; "
        "y is right, not left; z is [2], not (not there)"
    )


class FakeWatchdog(dict):
    """Of one process, and with what it has put."""

    index, count = 0, 1
    put = dict.__setitem__
    get = dict.__getitem__


def test_a_folder_that_a_host_does_not_see_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(multihost, "_watchdog", FakeWatchdog())
    monkeypatch.setattr(multihost, "_VISIBLE_SECONDS", 0)
    (tmp_path / "there").touch()
    multihost.check_shared(tmp_path / "there")
    with pytest.raises(UserError, match="missing, which the first process wrote, is not there"):
        multihost.check_shared(tmp_path / "missing")


@pytest.mark.parametrize(
    ("slurm", "meets"),
    [
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "n[1-4]"}, True),
        ({"SLURM_NTASKS": "4"}, False),  # sbatch's own script
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "n1"}, False),
    ],
)
def test_processes_of_srun_meet_and_sbatchs_script_is_one(slurm, meets, monkeypatch):
    asked = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **limits: asked.append(limits))
    monkeypatch.setattr(multihost, "_on_cloud_tpu", lambda: False)
    for name in ("SLURM_NTASKS", "SLURM_STEP_NODELIST"):
        monkeypatch.delenv(name, raising=False)
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    multihost._initialize(None, None, None, 10)
    assert bool(asked) == meets
