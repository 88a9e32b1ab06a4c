"""Hosts that work together, die, hang or disagree: real processes, on one machine."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest

from bn_vgg import multihost
from bn_vgg.errors import EXIT_HOST_LOST, EXIT_USER_ERROR
from tests.conftest import ROOT, start_python
from tests.runs import difference, lines, num_lines, state
from tests.test_devices import devices

pytestmark = pytest.mark.usefixtures("quick_compilation")

MAIN = ("-m", "bn_vgg.main")
NUM_EPOCHS = 10
# Longer than a busy machine takes for anything between two chunks that does not compile.
TIMEOUT = 12
# Within this time at most all processes end when one is lost: JAX misses its sign of life after a
# minute.
LOST = 90


# Nothing may blow a rounding up in runs that are compared within a tolerance. On plain areas, which
# drawings have, it decides which pixel of each pooling gets the gradient, for a whole area alike;
# noise has none. And the recipe's optimizer divides a weight's gradient by its own size, so that it
# takes a step from what is only the rounding of a gradient near 0; with this epsilon it is gradient
# descent.
# 72 images less 32 held out, in batches of 8: 5 steps an epoch.
ARGUMENTS = (
    "--config=tests/tiny_config.py", "--config.data.valid_examples=21",
    "--config.model.norm=full", "--config.augment.mixup=0.2",
    "--config.augment.horizontal_flip=True", "--config.optimizer.average_decay=0.9",
    "--config.optimizer.epsilon=1", "--config.optimizer.learning_rate=0.001",
    "--config.model.dropout_rate=0.3", "--notensorboard",
)  # fmt: skip


def assert_same_run(left, right, num_epochs):
    """Whole runs: order, crops, dropout, statistics and evaluations.

    The state to a hundredth of each array's largest value, which is what a single ReLU may
    make of a rounding next to 0; another order or mask makes far more.
    """
    states = [state(path) for path in (left, right)]
    assert int(states[0].step) == int(states[1].step) == 5 * num_epochs
    assert difference(*states) < 1e-2
    assert len(lines(left)) == len(lines(right)) == num_epochs
    for one, other in zip(lines(left), lines(right), strict=True):
        assert one.keys() == other.keys()
        for name, x in one.items():
            within = {"abs": 1e-6} if "error_rate" in name else {"rel": 2e-3, "abs": 1e-4}
            assert x == pytest.approx(other[name], **within), name


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


class Hosts:
    """Two processes that run one command, each with its own output."""

    def __init__(self, folder, cache_folder):
        self.folder, self.cache_folder, self.processes = folder, cache_folder, []

    def start(self, *arguments, own=((), ()), python=MAIN, **environment):
        """Starts them; `own` are the arguments in which they differ."""
        meet = (f"--coordinator_address={free_address()}", "--num_processes=2")
        cache = {"BN_VGG_CACHE": str(self.cache_folder)}
        for i in range(2):
            command = [*python, *arguments, *own[i], *meet, f"--process_id={i}"]
            with self.output(i).open("w") as output:
                process = subprocess.Popen(
                    [sys.executable, *map(str, command)], cwd=ROOT,
                    env=os.environ | cache | environment, stdout=output, stderr=subprocess.STDOUT,
                )  # fmt: skip
            self.processes[i:] = [process]

    def output(self, i):
        return self.folder / f"output{i}.txt"

    def said(self, i):
        return self.output(i).read_text()

    def errors(self):
        """The one line `error: …` of each."""
        found = [re.findall("^error: (.*)$", self.said(i), re.MULTILINE) for i in range(2)]
        assert [len(errors) for errors in found] == [1, 1], [self.said(i) for i in range(2)]
        assert "Traceback" not in self.said(0) + self.said(1)
        return [errors[0] for errors in found]

    def wait_until(self, happened):
        """Waits for an event; none of the processes may end before it."""
        while not happened():
            assert [process.poll() for process in self.processes] == [None, None], self.said(0)
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


def test_two_hosts_equal_one_also_when_some_are_lost(hosts, run_command, noise_folder, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    command = (
        *ARGUMENTS, f"--config.data.source={noise_folder}", f"--config.num_epochs={NUM_EPOCHS}"
    )  # fmt: skip
    run_command("main", *command, f"--workdir={one}")

    def start(**own):
        """Two devices each, behind a proxy, which knows no way to a machine of the same network."""
        proxy = "http://127.0.0.1:9"
        hosts.start(*command, f"--workdir={two}", http_proxy=proxy, **devices(2), **own)

    # One that is told to end: both keep the same step.
    start()
    hosts.wait_until(lambda: num_lines(two) > 0)
    hosts.processes[1].terminate()
    assert hosts.end(0, 1)[0] == [128 + signal.SIGTERM] * 2, hosts.said(0)
    first, second = hosts.errors()
    assert re.match(r"stopped by SIGTERM; state saved after step \d+; run the same", first)
    assert first == second

    # The first, that hangs, after a part of an epoch and a whole one: then all is compiled. It is
    # then let go on, and finds the other gone.
    done = num_lines(two)
    start(own=((), (f"--host_timeout_seconds={TIMEOUT}",)))
    hosts.wait_until(lambda: num_lines(two) >= done + 3)
    hosts.processes[0].send_signal(signal.SIGSTOP)
    statuses, seconds = hosts.end(1)
    hosts.processes[0].send_signal(signal.SIGCONT)
    (status,), more_seconds = hosts.end(0)
    assert statuses == [EXIT_HOST_LOST], hosts.said(1)
    # Where it hung in a barrier of Orbax's, JAX misses the other first, and aborts.
    assert status in (EXIT_HOST_LOST, -signal.SIGABRT), hosts.said(0)
    if status == EXIT_HOST_LOST:
        assert hosts.errors()[0].startswith("another host is gone (")
    assert f"error: nothing has happened for {TIMEOUT} seconds" in hosts.said(1)
    assert "Traceback" not in hosts.said(0) + hosts.said(1)
    assert max(seconds, more_seconds) < LOST

    assert num_lines(two) < NUM_EPOCHS
    start()
    assert hosts.end(0, 1)[0] == [0, 0], hosts.said(0)
    assert "resuming after epoch" in hosts.said(0)
    assert f"epoch  {NUM_EPOCHS}/{NUM_EPOCHS}" in hosts.said(0)
    assert "epoch" not in hosts.said(1)  # only the first speaks
    hardware = json.loads((two / "result.json").read_text())["hardware"]
    assert (hardware["num_devices"], hardware["num_hosts"]) == (4, 2)
    assert_same_run(one, two, NUM_EPOCHS)


def test_hosts_that_disagree_refuse_to_start(hosts, noise_folder, tmp_path):
    command = (*ARGUMENTS, f"--config.data.source={noise_folder}")
    shared, host = f"--workdir={tmp_path / 'run'}", socket.gethostname()
    hosts.start(*command, shared, own=((), ("--config.seed=1",)))
    assert hosts.end(0, 1)[0] == [EXIT_USER_ERROR] * 2, hosts.said(0)
    differs = f"process 1 ({host}) differs from process 0 ({host}): "
    assert hosts.errors() == [f"{differs}config.seed is 1, not 0"] * 2

    # What the first one has written is not there for the other.
    own = ((shared,), (f"--workdir={tmp_path / 'elsewhere'}",))
    code = "from bn_vgg import cli, main, multihost\nmultihost._VISIBLE_SECONDS = 2\n"
    hosts.start(*command, own=own, python=("-c", f"{code}cli.run(main.main)"))
    assert hosts.end(0, 1)[0] == [EXIT_USER_ERROR] * 2, hosts.said(0)
    unseen = "sees config.json in its --workdir is False, not True"
    assert hosts.errors() == [f"{differs}{unseen}; name a --workdir that all hosts see"] * 2


def meet(address, index, seconds=300):
    code = f"""
from bn_vgg import multihost
multihost._CONNECT_SECONDS = {seconds}
print("meeting", flush=True)
with multihost.connect({address!r}, 2, {index}):
    pass
"""
    return start_python("-c", code)


def test_one_that_meets_nobody_says_so_and_ctrl_c_ends_it_at_once():
    alone = meet(free_address(), 1, seconds=1)
    _, errors = alone.communicate(timeout=60)
    assert alone.returncode == EXIT_HOST_LOST, errors
    assert "error: the processes did not connect within 1 seconds" in errors

    alone = meet(free_address(), 0)
    assert alone.stdout.readline() == "meeting\n"
    time.sleep(2)
    alone.send_signal(signal.SIGINT)
    began = time.monotonic()
    alone.communicate(timeout=60)
    assert alone.returncode == -signal.SIGINT
    assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    ("slurm", "meets"),
    [
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"}, 4),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "1(x4)"}, 4),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "2"}, 2),  # a step of a larger allocation
        ({"SLURM_NTASKS": "4"}, 0),  # sbatch's own script
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1"}, 0),
    ],
)
def test_tasks_of_one_srun_meet_and_no_others(slurm, meets, monkeypatch):
    asked = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *given, **_: asked.append(given))
    monkeypatch.setattr(multihost, "_on_cloud_tpu", lambda: False)
    for name in ("SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_TASKS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    multihost._initialize(None, None, None)
    # A node's only task has all of its GPUs; otherwise JAX gives each task one.
    devices = [] if "SLURM_STEP_TASKS_PER_NODE" in slurm else None
    assert asked == ([(None, meets, None, devices)] if meets else [])
