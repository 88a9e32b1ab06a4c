"""A sweep's file OUT/sweep.json, and the progress of its runs.

sweep.json lists the runs of the last command, those that have begun, and how the last attempt at
each ended. A run's progress is read from result.json and metrics.jsonl in its folder.
"""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from etils import epath

from bn_vgg import cli, locking
from bn_vgg.errors import UserError, wrap_write_errors
from bn_vgg.run_dir import ONLY_SPEED, Workdir
from experiments.plan import PlannedRun

SWEEP, _LOCK = "sweep.json", ".sweep.lock"
_FORMAT = 2

DONE, RUNNING, FAILED, TO_DO = "done", "running", "failed", "to do"


@dataclass(frozen=True)
class RunState:
    """A run's progress: `DONE`, `RUNNING`, `FAILED` or `TO_DO`, and its results so far."""

    state: str
    epochs: int = 0  # finished
    best_error_rate: float | None = None  # in validation
    test_error_rate: float | None = None  # only of a finished run
    seconds: float = 0.0  # until its last epoch
    error: str | None = None  # of the last attempt, one line


@dataclass
class Sweep:
    """A sweep's runs, and how the last attempt at each ended."""

    out: str  # folder or address
    runs: list[PlannedRun]  # of this command
    attempts: dict[str, dict[str, Any]] = field(default_factory=dict)  # by the run's folder
    others: list[PlannedRun] = field(default_factory=list)  # begun by earlier commands
    writes: bool = False  # whether to write sweep.json; only one process may

    def record(self, run: PlannedRun, state: str, error: str | None = None) -> None:
        """Records the state of a run in sweep.json."""
        self.attempts[run.folder] = {"state": state, "error": error}
        if self.writes:
            try:
                self.write()
            except UserError as failure:  # the runs can go on
                self.writes = False
                why = failure.__cause__ or failure
                cli.show(f"{self.out}/{SWEEP} stays as it is, and the runs go on: {why}")

    def write(self) -> None:
        """Writes sweep.json."""
        runs = [asdict(run) for run in self.others + self.runs]
        content = {"format": _FORMAT, "runs": runs, "attempts": self.attempts}
        Workdir(self.out).write(SWEEP, content)

    def states(self, *, active: bool = True) -> list[RunState]:
        """Returns the progress of each run. If the sweep is not `active`, no run is running."""
        return [self._state(run, active) for run in self.runs]

    def unfinished(self) -> list[PlannedRun]:
        """Returns the runs that are not done."""
        return [run for run in self.runs if self._state(run).state != DONE]

    def _state(self, run: PlannedRun, active: bool = True) -> RunState:
        workdir = Workdir(run.workdir(self.out), writes=False)
        noted = self.attempts.get(run.folder, {"state": TO_DO, "error": None})
        state, test_error_rate = noted["state"], None
        if state == RUNNING and not active:
            state = TO_DO
        try:
            last = (workdir.read_metrics() or [{}])[-1]
            if workdir.exists("result.json"):
                result = workdir.read("result.json")
                if result["config"]["num_epochs"] >= run.num_epochs:
                    state, test_error_rate = DONE, result.get("test_error_rate")
        except (KeyError, TypeError, UserError) as error:
            return RunState(FAILED, error=f"its folder is damaged: {error}")
        return RunState(
            state, last.get("epoch", 0), last.get("valid/best_error_rate"), test_error_rate,
            last.get("seconds", 0.0), None if state == DONE else noted["error"],
        )  # fmt: skip

    def copy_small_files(self) -> Path:
        """Copies the small files to a folder beside `out`, and returns that folder."""
        target = Path(f"{self.out.rstrip('/')}_results")
        left_out = ("checkpoints", "damaged", "events*", "wandb", ".*", "*.partial")
        ignore = shutil.ignore_patterns(*left_out)
        with wrap_write_errors(str(target)):
            return shutil.copytree(self.out, target, ignore=ignore, dirs_exist_ok=True)


@contextlib.contextmanager
def open_sweep(
    out: str, runs: list[PlannedRun], wait: Callable[[str], None] | None = None
) -> Iterator[Sweep]:
    """Locks a folder for a sweep and starts or resumes it; a gs:// address is not locked.

    `wait` is as in `locking.hold_lock`.

    Raises:
      UserError: another process holds the lock, or the folder holds other files or runs with other
        settings, or cannot be written.
    """
    folder = Workdir(out).checkpoints.parent  # refuses paths that Orbax cannot write to
    with contextlib.ExitStack() as stack:
        with wrap_write_errors(out):
            others = [each for each in folder.glob("[!.]*") if each.name != f"{SWEEP}.partial"]
            if others and not (folder / SWEEP).exists():
                raise UserError(
                    f"{out} holds other files, but no {SWEEP} of a sweep: name another --out"
                )
            folder.mkdir(parents=True, exist_ok=True)
            if "://" not in out:
                stack.enter_context(locking.hold_lock(Path(out) / _LOCK, wait=wait))
            sweep = Sweep(out, runs, writes=True)
            if (folder / SWEEP).exists():
                _resume(sweep, read_sweep(out))
            sweep.write()
        yield sweep


def _resume(sweep: Sweep, before: Sweep) -> None:
    """Takes over the runs of an earlier command; seeds and epochs may be added."""
    planned = {run.folder: run for run in sweep.runs}
    sweep.attempts = before.attempts
    for attempt in sweep.attempts.values():
        attempt["state"] = TO_DO if attempt["state"] == RUNNING else attempt["state"]
    for old in before.runs:
        new = planned.get(old.folder)
        if not (epath.Path(sweep.out) / old.folder / "config.json").exists():
            continue
        if new is None:
            sweep.others.append(old)
        elif (was := _settings(old)) != (now := _settings(new)):
            raise UserError(
                f"{sweep.out} holds {old.folder} with {was}, but this command asks for {now}: name "
                "another --out"
            )


def _settings(run: PlannedRun) -> str:
    fixed = {k: x for k, x in run.overrides.items() if k not in ("num_epochs", *ONLY_SPEED)}
    return " ".join([run.config, *(f"{key}={value}" for key, value in sorted(fixed.items()))])


def is_active(out: str) -> bool:
    """Whether a process runs the sweep; assumed for gs://, where there is no lock."""
    if "://" in out:
        return True
    if not (Path(out) / _LOCK).exists():
        return False
    try:
        with locking.hold_lock(Path(out) / _LOCK):
            return False
    except (OSError, UserError):
        return True


def read_sweep(out: str) -> Sweep:
    """Reads sweep.json; raises a UserError if it is missing, damaged or of another version."""
    folder = Workdir(out, writes=False)
    if not folder.exists(SWEEP):
        raise UserError(f"{out} holds no sweep: there is no {SWEEP} in it")
    found = folder.read(SWEEP)
    try:
        if found["format"] != _FORMAT:
            raise UserError(f"{out}/{SWEEP} is of format {found['format']}, not {_FORMAT}")
        return Sweep(out, [PlannedRun(**run) for run in found["runs"]], dict(found["attempts"]))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{out}/{SWEEP} is damaged: {error}") from error
