"""Stopped by a signal within an epoch, a run goes on as if it had not been."""

import os
import re
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from bn_vgg import api, loop
from bn_vgg.checkpoint import list_steps
from bn_vgg.data import pipeline
from bn_vgg.errors import Interrupted, UserError
from bn_vgg.run_dir import Workdir
from tests.conftest import ROOT
from tests.runs import assert_equal_runs, run, start_run, wait_for_checkpoint
from tests.tiny_config import get_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Of an epoch of the tiny configuration, two in each chunk.
STEPS = 6
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@pytest.fixture
def config(tiny_config, monkeypatch):
    monkeypatch.setattr(pipeline, "_MAX_STEPS", 2)
    tiny_config.model.dropout_rate = 0.3
    return tiny_config


def send(number):
    """A lost terminal and a shutdown may send theirs twice; a second Ctrl-C would end the tests."""
    for _ in range(1 if number == signal.SIGINT else 2):
        os.kill(os.getpid(), number)
        time.sleep(0.2)  # a thread of the run's listens


def test_a_run_goes_on_within_the_epoch_bit_for_bit(
    config, cache_folder, tmp_path, before_step, capsys
):
    config.model.norm, config.optimizer.average_decay = "full", 0.9
    run(config, tmp_path / "whole", cache_folder)
    path, said = tmp_path / "stopped", []
    handlers = [signal.getsignal(number) for number in SIGNALS]
    for number, at in zip(SIGNALS, (0, 2, STEPS + 2), strict=True):
        before_step(at, partial(send, number))
        with pytest.raises(Interrupted, match=f"saved after step {at + 2};") as caught:
            run(config, path, cache_folder)
        assert caught.value.status == 128 + number
        assert "stopping after this chunk of steps" in capsys.readouterr().err
        assert list_steps(Workdir(str(path)).checkpoints)[0] == at + 2
        with pytest.raises(UserError, match=f"no precise statistics at step {at + 2}, within an"):
            api.load(path, "latest")
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    run(config, path, cache_folder, said.append)
    assert f"resuming after epoch 1 (step {STEPS + 4})" in said
    assert_equal_runs(path, tmp_path / "whole")


@pytest.fixture(scope="module")
def whole(cartoon_folder, cache_folder, tmp_path_factory):
    """A run of `config` that nothing stopped."""
    config, folder = get_config(), tmp_path_factory.mktemp("whole")
    config.data.source, config.model.dropout_rate = str(cartoon_folder), 0.3
    run(config, folder, cache_folder)
    return folder


@pytest.mark.parametrize(
    ("call", "kept"),
    # The first epoch's validation; the test split at the end.
    [(3, STEPS), (7, 2 * STEPS)],
)
def test_stopped_while_it_evaluates(
    call, kept, config, whole, cache_folder, tmp_path, monkeypatch, before_step
):
    """The epoch's steps are not taken again; its checkpoint takes the place of this one."""
    fold, calls = loop.Run._run_chunks, []

    def interrupted(*args):
        calls.append(None)
        if len(calls) == call:
            send(signal.SIGTERM)
        return fold(*args)

    monkeypatch.setattr(loop.Run, "_run_chunks", interrupted)
    with pytest.raises(Interrupted, match=f"saved after step {kept};"):
        run(config, tmp_path / "stopped", cache_folder)
    for at in range(0, kept, 2):
        before_step(at, partial(pytest.fail, "a step was taken twice"))
    run(config, tmp_path / "stopped", cache_folder)
    assert_equal_runs(tmp_path / "stopped", whole)
    # Of an epoch that had no step left there is no speed to tell.
    stopped = Workdir(str(tmp_path / "stopped"))
    speeds = [line.get("train/images_per_second") for line in stopped.read_metrics()]
    assert (speeds[0] is None) == (kept == STEPS)
    assert speeds[1] is not None


@pytest.fixture
def start(cartoon_folder, cache_folder, tmp_path):
    """Starts the command for a long run; none outlives the test."""
    started = []

    def start(*more):
        arguments = (tmp_path / "run", cartoon_folder, cache_folder, "--notensorboard", *more)
        started.append(start_run(*arguments, epochs=1000))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_what_the_command_says_and_its_statuses(start, tmp_path):
    """In the middle of training."""
    process = start()
    wait_for_checkpoint(tmp_path / "run", process, 2)
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "tiny seed 0" in out
    _, first, error = errors.splitlines()
    assert first == "stopping after this chunk of steps"
    pattern = r"error: stopped by SIGTERM; state saved after step (\d+); run the same command"
    kept = int(re.match(pattern, error)[1])
    assert list_steps(Workdir(str(tmp_path / "run")).checkpoints)[0] == kept


def test_a_second_ctrl_c_ends_it_at_once(start, tmp_path):
    """While it compiles, where no handler of Python's runs for many seconds."""
    process = start(
        "--config.data.min_side=96", "--config.data.crop_size=96", "--config.batch_size=48",
        "--config.model.features=(64,64,64,64,64,64)", "--config.model.norm=full",
    )  # fmt: skip
    log = tmp_path / "run/log.txt"
    while not log.exists() or "Total:" not in log.read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = [process.stderr.readline() for _ in range(2)]
    assert said == ["\n", "stopping after this chunk of steps\n"]
    time.sleep(0.5)
    assert process.poll() is None
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < 4
    assert process.returncode == 128 + signal.SIGINT
    assert errors == "\nstopped at once; the same command resumes from the last checkpoint\n"


def test_stopped_before_it_trains(start, tmp_path):
    process = start()
    while not (tmp_path / "run").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in errors


def test_a_signal_within_a_callback_is_not_lost():
    """Python ignores what a weak reference's callback raises."""
    code = "import os, time, weakref; from bn_vgg import cli; X = type('X', (), {}); x = X()\n"
    code += "ref = weakref.ref(x, lambda _: (os.kill(os.getpid(), 15), sum(map(int, '123'))))\n"
    code += "cli.run(lambda: (globals().update(x=0), time.sleep(9)) and None)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 128 + 15


def test_a_hangup_that_nohup_ignores_stays_ignored():
    code = "import os, signal; from bn_vgg import stopping; stopping.raise_on_terminate()\n"
    code += "stopping.StopRequest().run_and_listen(lambda: os.kill(os.getpid(), signal.SIGHUP))"
    nohup = subprocess.run(["nohup", sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    assert nohup.returncode == 0, nohup.stderr
