"""Kills runs at random moments until they have been killed often enough, then lets them finish.

python -m tests.kill_runs --kills=200 --seed=1

The processes are real and killed by SIGKILL. Most are forked by a server that has imported the
package and done nothing else, because imports are most of a start; every eighth is the command
as a person types it. A forked one says by a byte of shared memory what it is doing, so that a
kill can be aimed: it is sent a random moment after a phase has begun. Where it lands is looked
up afterwards, and every phase is aimed at until some have landed there. A run that has ended
before that is followed by another of the same configuration.
"""

import argparse
import collections
import contextlib
import json
import mmap
import multiprocessing
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

from tests.conftest import ROOT
from tests.runs import assert_equal_runs, num_lines

# The first is where a process is before it says anything. A checkpoint is begun in a moment and
# written while the next epoch's steps are taken: killed there is what leaves one half written.
PHASES = ("start", "cache", "step", "evaluation", "checkpoint", "end", "between")
# Seconds after a phase has begun in which it is killed: about as long as it lasts.
LASTS = {
    "start": 2.0, "cache": 0.5, "step": 0.1, "evaluation": 0.02, "checkpoint": 0.1, "end": 0.03,
}  # fmt: skip
EPOCHS = 6
NORMS = ("none", "mean_only", "full")
_FORKING = multiprocessing.get_context("forkserver")


def arguments(norm, folder, cache):
    """Of the command, for a run in `folder` whose cache takes long enough to be hit."""
    return [
        "--config=tests/tiny_config.py", f"--config.model.norm={norm}",
        "--config.model.dropout_rate=0.3", "--config.data.source=cartoons:400",
        f"--config.num_epochs={EPOCHS}", f"--workdir={folder}", f"--cache_dir={cache}",
        "--notensorboard",
    ]  # fmt: skip


def run_forked(given, phase_path, log_path):
    """A process's life: the command, with its phases told."""
    with open(phase_path, "r+b") as file:
        told = mmap.mmap(file.fileno(), 1)
    with open(log_path, "ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)

    def tell(owner, name, phase, afterwards="between"):
        told_of = getattr(owner, name)

        def telling(*args, **kwargs):
            before, told[0] = told[0], PHASES.index(phase)
            try:
                return told_of(*args, **kwargs)
            finally:
                told[0] = before or PHASES.index(afterwards)

        setattr(owner, name, telling)

    from bn_vgg import checkpoint, cli, evaluation, main, train
    from bn_vgg.data import cache

    tell(cache, "_build", "cache", afterwards="start")
    tell(train.Run, "_train_epoch", "step")
    tell(train.Run, "_finish", "end")
    tell(evaluation.Evaluator, "evaluate", "evaluation")
    tell(evaluation.Evaluator, "observe", "evaluation")
    tell(checkpoint.Checkpoints, "save", "checkpoint")
    tell(checkpoint.Checkpoints, "wait", "checkpoint")
    sys.argv = [str(ROOT / "bn_vgg" / "main.py"), *given]
    cli.run(main.main)


class Target:
    """Runs of one configuration, one after the other, that are killed again and again."""

    def __init__(self, norm, folder, seed):
        folder.mkdir()
        self.folder, self.random = folder, random.Random(f"{seed} {norm}")
        self.cache, self.run = folder / "cache", folder / "run0"
        self.arguments = arguments(norm, self.run, self.cache)
        self.landed, self.finished = collections.Counter(), []
        self._phase = folder / "phase"
        self._phase.write_bytes(b"\0")

    def killed(self, times):
        """Kills so often, some of them in every phase."""
        for number in range(4 * times):
            # Some of a random moment's kills come in another phase than it was meant for.
            least = max(1, times // (2 * len(LASTS)))
            lacking = [phase for phase in LASTS if self.landed[phase] < least]
            if not lacking and sum(self.landed.values()) - self.landed["too late"] >= times:
                return
            aims = [phase for phase in lacking or LASTS if self._is_to_come(phase)]
            if not aims:
                self._begin_another()
                aims = lacking or list(LASTS)
            before = self._newest()
            if number % 8 == 7:
                self._kill_command()
            else:
                # The cache is built once, and the run ends once: these come first and last.
                middle = [aim for aim in aims if aim != "end"] or aims
                self._kill_forked("cache" if "cache" in aims else self.random.choice(middle))
            self._check(before)
        raise AssertionError(f"{lacking} are hardly ever hit: {self.landed}")

    def _is_to_come(self, phase):
        if (self.run / "result.json").exists():
            return False
        if phase == "cache":
            return not list(self.cache.glob("images-*"))
        return phase in ("start", "end") or num_lines(self.run) < EPOCHS

    def _begin_another(self):
        """Lets the run finish. The cache is built anew; programs stay compiled."""
        self.finish()
        self.run = self.folder / f"run{len(self.finished)}"
        self.arguments = [*self.arguments, f"--workdir={self.run}"]
        for built in self.cache.glob("images-*"):
            shutil.rmtree(built)

    def _kill_forked(self, aim):
        self._phase.write_bytes(b"\0")
        left_before = self._half_written()
        process = _FORKING.Process(
            target=run_forked, args=(self.arguments, self._phase, self.folder / "said")
        )
        process.start()
        while PHASES[self._phase.read_bytes()[0]] != aim and process.is_alive():
            time.sleep(0.001)
        time.sleep(self.random.uniform(0, LASTS[aim]))
        process.kill()
        process.join()
        if process.exitcode == 0:
            self.landed["too late"] += 1
            return
        assert process.exitcode == -signal.SIGKILL, (self.folder / "said").read_text()
        writing = self._half_written() - left_before
        self.landed["checkpoint" if writing else PHASES[self._phase.read_bytes()[0]]] += 1

    def _kill_command(self):
        process = self._start()
        # From before its imports are done to the middle of its training.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(self.random.uniform(0.1, 12))
        process.kill()
        process.communicate()
        assert process.returncode in (0, -signal.SIGKILL)
        self.landed["the command" if process.returncode else "too late"] += 1

    def _start(self):
        return subprocess.Popen(
            [sys.executable, "-m", "bn_vgg.main", *self.arguments],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def finish(self):
        """Lets the run finish, by the command."""
        before = self._newest()
        process = self._start()
        out, errors = process.communicate()
        assert process.returncode == 0, out + errors
        self._check(before)
        assert not list(self.cache.glob("building-*"))
        self.finished.append(self.run)

    def _checkpoints(self):
        folder = self.run / "checkpoints"
        return list(folder.iterdir()) if folder.exists() else []

    def _half_written(self):
        """Checkpoints that were begun. What is left of one is removed by the next process."""
        begun = [path for path in self._checkpoints() if not path.name.isdigit()]
        return {(path.name, path.stat().st_ino, path.stat().st_mtime_ns) for path in begun}

    def _newest(self):
        """The step of the newest checkpoint that is complete, and the length of the log."""
        log = self.run / "log.txt"
        complete = [int(path.name) for path in self._checkpoints() if path.name.isdigit()]
        return max(complete, default=0), log.stat().st_size if log.exists() else 0

    def _check(self, before):
        """After a kill: what is there is whole, and what was complete has been gone on from."""
        newest, length = before
        path = self.run / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        assert [json.loads(line)["epoch"] for line in lines] == list(range(1, len(lines) + 1))
        log = self.run / "log.txt"
        said = log.read_bytes()[length:].decode() if log.exists() else ""
        for step in re.findall(r"resuming after epoch \d+ \(step (\d+)\)", said):
            assert int(step) >= newest


def kill_runs(folder, kills, seed):
    """Kills runs of each norm, `kills / 3` times, two norms side by side.

    Returns:
      The targets with their finished runs, and how many kills landed in which phase.
    """
    folder = pathlib.Path(folder)
    _FORKING.set_forkserver_preload(["bn_vgg.main", "bn_vgg.train", "orbax.checkpoint"])
    targets = {norm: Target(norm, folder / norm, seed) for norm in NORMS}
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda target: target.killed(-(-kills // len(NORMS))), targets.values()))
        list(pool.map(Target.finish, targets.values()))
    return targets, sum((target.landed for target in targets.values()), collections.Counter())


def assert_equal_to_undisturbed(targets):
    """Compares the runs of each target with one that is made here."""
    for norm, target in targets.items():
        undisturbed = target.folder / "undisturbed"
        subprocess.run(
            [sys.executable, "-m", "bn_vgg.main", *arguments(norm, undisturbed, target.cache)],
            cwd=ROOT, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        for run in target.finished:
            assert_equal_runs(run, undisturbed)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        targets, landed = kill_runs(folder, given.kills, given.seed)
        print(dict(landed), "in", sum(len(of.finished) for of in targets.values()), "runs")
        assert_equal_to_undisturbed(targets)
    print("all runs equal undisturbed ones")


if __name__ == "__main__":
    main()
