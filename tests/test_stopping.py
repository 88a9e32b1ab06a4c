"""Stopped by a signal within an epoch, a run goes on as if it had not been."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from bn_vgg import feed
from bn_vgg.checkpoint import steps
from bn_vgg.errors import Interrupted
from bn_vgg.evaluation import Evaluator
from bn_vgg.run_dir import Workdir
from bn_vgg.stopping import StopRequest
from tests.conftest import ROOT
from tests.runs import KilledError, assert_equal_runs, run, start_run, wait_for_checkpoint

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Of an epoch of the tiny configuration, 2 at once.
STEPS = 6


@pytest.fixture
def config(tiny_config, monkeypatch):
    monkeypatch.setattr(feed, "_BATCHES_PER_DISPATCH", 2)
    tiny_config.model.dropout_rate = 0.3
    return tiny_config


def send(number, at):
    """An action that sends this process a signal after so many steps."""

    def action(step):
        if step == at:
            os.kill(os.getpid(), number)

    return action


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["mean_only", "full", "none"])
def test_a_run_goes_on_within_the_epoch_bit_for_bit(norm, config, open_cache, tmp_path):
    config.model.norm = norm
    cache = open_cache(config)
    run(config, cache, tmp_path / "whole")
    path = tmp_path / "stopped"
    for number, at in [(signal.SIGTERM, 2), (signal.SIGINT, 4), (signal.SIGHUP, STEPS + 4)]:
        with pytest.raises(Interrupted, match=f"kept after step {at};") as caught:
            run(config, cache, path, actions=[send(number, at)])
        assert caught.value.status == 128 + number
        assert steps(Workdir(str(path)).checkpoints)[0] == at
    said, seen = [], []
    run(config, cache, path, say=said.append, actions=[seen.append])
    assert f"resuming after epoch 1 (step {STEPS + 4})" in said
    assert seen == [2 * STEPS]
    assert_equal_runs(path, tmp_path / "whole")


def test_the_usual_handlers_are_back_afterwards(config, open_cache, tmp_path):
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    with pytest.raises(Interrupted):
        run(config, open_cache(config), tmp_path, actions=[send(signal.SIGTERM, 2)])
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_second_signal_does_what_it_always_does():
    stop = StopRequest()
    with stop.listening():
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked() == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("what", ["evaluate", "observe"])
def test_stopped_while_it_evaluates(what, config, open_cache, tmp_path, monkeypatch):
    """The epoch's steps are not taken again; its checkpoint takes the place of this one."""
    cache = open_cache(config)
    run(config, cache, tmp_path / "whole")
    with monkeypatch.context() as patched:
        evaluate = getattr(Evaluator, what)

        def interrupted(*args):
            os.kill(os.getpid(), signal.SIGTERM)
            return evaluate(*args)

        patched.setattr(Evaluator, what, interrupted)
        with pytest.raises(Interrupted, match=f"kept after step {STEPS};"):
            run(config, cache, tmp_path / "stopped")
    assert not (tmp_path / "stopped/metrics.jsonl").exists()
    seen = []
    run(config, cache, tmp_path / "stopped", actions=[seen.append])
    assert seen == [STEPS + 2, STEPS + 4, 2 * STEPS]
    assert_equal_runs(tmp_path / "stopped", tmp_path / "whole")
    # Of the epoch that had no step left there is no speed to tell.
    stopped = Workdir(str(tmp_path / "stopped"))
    speeds = [line.get("train/images_per_second") for line in stopped.read_metrics()]
    assert speeds == [None, stopped.read("result.json")["images_per_second"]]


def test_stopped_after_its_last_epoch(config, open_cache, tmp_path, monkeypatch):
    """While it evaluates the test split: there is nothing to keep that is not kept."""
    cache = open_cache(config)
    run(config, cache, tmp_path / "whole")
    with monkeypatch.context() as patched:
        evaluate = Evaluator.evaluate

        def interrupted(self, state, split):
            if len(split.images.labels) == config.data.test_examples:
                os.kill(os.getpid(), signal.SIGTERM)
            return evaluate(self, state, split)

        patched.setattr(Evaluator, "evaluate", interrupted)
        with pytest.raises(Interrupted):
            run(config, cache, tmp_path / "stopped")
    run(config, cache, tmp_path / "stopped")
    assert_equal_runs(tmp_path / "stopped", tmp_path / "whole")


def test_checkpoints_within_epochs(config, open_cache, tmp_path):
    """Of every third step, rounded up to a dispatch's end; a kill costs the steps since."""
    cache = open_cache(config)
    run(config, cache, tmp_path / "whole")
    config.checkpoint.every_steps = 3

    def kill(step):
        if step == STEPS + 6:
            raise KilledError

    with pytest.raises(KilledError):
        run(config, cache, tmp_path / "killed", actions=[kill])
    # The latest two, and, of a single epoch that has an error, another in the second best's place.
    assert steps(Workdir(str(tmp_path / "killed")).checkpoints) == [STEPS + 4, STEPS, 4]
    config.checkpoint.every_steps = 0
    run(config, cache, tmp_path / "killed")
    assert_equal_runs(tmp_path / "killed", tmp_path / "whole")


@pytest.fixture
def start(cartoon_folder, cache_folder, tmp_path):
    """Starts the command for a long run; none outlives the test."""
    started = []

    def start():
        arguments = (tmp_path / "run", cartoon_folder, cache_folder, "--notensorboard")
        started.append(start_run(*arguments, epochs=1000))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_commands_statuses(number, start, tmp_path):
    process = start()
    wait_for_checkpoint(tmp_path / "run", process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    (error,) = errors.splitlines()
    pattern = rf"error: stopped by {number.name} and kept after step (\d+); run the same command"
    step = int(re.match(pattern, error)[1])
    assert steps(Workdir(str(tmp_path / "run")).checkpoints)[0] == step
    again = start()
    while f"(step {step})" not in (tmp_path / "run" / "log.txt").read_text():
        assert again.poll() is None
        time.sleep(0.05)


def test_a_hangup_that_nohup_ignores_stays_ignored():
    code = "import os, signal; from bn_vgg import stopping; stopping.raise_on_terminate()\n"
    code += "with stopping.StopRequest().listening(): os.kill(os.getpid(), signal.SIGHUP)"
    nohup = subprocess.run(["nohup", sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    assert nohup.returncode == 0, nohup.stderr


def test_stopped_before_it_trains(start, tmp_path):
    process = start()
    while not (tmp_path / "run").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "Traceback" not in errors
