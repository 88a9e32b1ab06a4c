"""A sweep's own file, OUT/sweep.json, and how far each of its runs is.

sweep.json has the runs that were last asked for and those that have begun, and how the last attempt
at each ended. How far a run is, is read from its own folder: result.json and metrics.jsonl.
"""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from etils import epath

from bn_vgg import cli, locking
from bn_vgg.errors import UserError, cannot_write
from bn_vgg.run_dir import ONLY_SPEED, Workdir
from experiments.plan import PlannedRun

SWEEP, _LOCK = "sweep.json", ".sweep.lock"
_FORMAT = 2

DONE, RUNNING, FAILED, TO_DO = "done", "running", "failed", "to do"


@dataclass(frozen=True)
class RunState:
    """How far a run is: `DONE`, `RUNNING`, `FAILED` or `TO_DO`, and what it has given so far."""

    state: str
    epochs: int = 0  # finished
    best_error_rate: float | None = None  # of validation
    test_error_rate: float | None = None  # of a finished run
    seconds: float = 0.0  # until its last epoch
    error: str | None = None  # of the last attempt, in a line


@dataclass
class Sweep:
    """The runs of a sweep, and how the last attempt at each ended."""

    out: str  # folder or address
    runs: list[PlannedRun]  # that were asked for
    attempts: dict[str, dict[str, Any]] = field(default_factory=dict)  # by the run's folder
    others: list[PlannedRun] = field(default_factory=list)  # begun earlier, not asked for now
    writes: bool = False  # sweep.json, which only one process may

    def note(self, run: PlannedRun, state: str, error: str | None = None) -> None:
        """Notes the state of a run."""
        self.attempts[run.folder] = {"state": state, "error": error}
        if self.writes:
            try:
                self.write()
            except UserError as full_disk:  # the runs do not need it
                self.writes = False
                why = full_disk.__cause__ or full_disk
                cli.show(f"{self.out}/{SWEEP} stays as it is, and the runs go on: {why}")

    def write(self) -> None:
        """Writes sweep.json."""
        runs = [asdict(run) for run in self.others + self.runs]
        content = {"format": _FORMAT, "runs": runs, "attempts": self.attempts}
        Workdir(self.out).write(SWEEP, content)

    def states(self, *, driven: bool = True) -> list[RunState]:
        """Reads how far each run is; where no process drives the sweep, none is running."""
        return [self._state(run, driven) for run in self.runs]

    def unfinished(self) -> list[PlannedRun]:
        """The runs that are not done."""
        return [run for run in self.runs if self._state(run).state != DONE]

    def _state(self, run: PlannedRun, driven: bool = True) -> RunState:
        workdir = Workdir(run.workdir(self.out), writes=False)
        noted = self.attempts.get(run.folder, {"state": TO_DO, "error": None})
        state, test_error_rate = noted["state"], None
        if state == DONE or (state == RUNNING and not driven):
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
        """Copies all but what is large to a folder beside `out`, and returns it."""
        target = Path(f"{self.out.rstrip('/')}_results")
        left_out = ("checkpoints", "damaged", "events*", "wandb", ".*", "*.partial")
        ignore = shutil.ignore_patterns(*left_out)
        with cannot_write(str(target)):
            return shutil.copytree(self.out, target, ignore=ignore, dirs_exist_ok=True)


@contextlib.contextmanager
def driving(
    out: str, runs: list[PlannedRun], wait: Callable[[str], None] | None = None
) -> Iterator[Sweep]:
    """Takes a folder for a sweep, or goes on with it. An address such as gs:// has no lock.

    `wait` is as in `locking.held`.

    Raises:
      UserError: another process is in charge, or the folder holds other files or runs with other
        settings, or cannot be written.
    """
    folder = Workdir(out).checkpoints.parent  # raises where Orbax cannot write
    with contextlib.ExitStack() as stack:
        with cannot_write(out):
            others = [each for each in folder.glob("[!.]*") if each.name != f"{SWEEP}.partial"]
            if others and not (folder / SWEEP).exists():
                raise UserError(
                    f"{out} holds other files, but no {SWEEP} of a sweep: name another --out"
                )
            folder.mkdir(parents=True, exist_ok=True)
            if "://" not in out:
                stack.enter_context(locking.held(Path(out) / _LOCK, wait=wait))
            sweep = Sweep(out, runs, writes=True)
            if (folder / SWEEP).exists():
                _go_on(sweep, read_sweep(out))
            sweep.write()
        yield sweep


def _go_on(sweep: Sweep, before: Sweep) -> None:
    """Takes over what is known of a sweep; more seeds and epochs may be asked for."""
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
                f"{sweep.out} holds {old.folder} with {was}, but {now} is asked for: name another "
                "--out"
            )


def _settings(run: PlannedRun) -> str:
    fixed = {k: x for k, x in run.overrides.items() if k not in ("num_epochs", *ONLY_SPEED)}
    return " ".join([run.config, *(f"{key}={value}" for key, value in sorted(fixed.items()))])


def is_driven(out: str) -> bool:
    """Whether a process is in charge; without locks, as of gs://, one may be."""
    if "://" in out or not (Path(out) / _LOCK).exists():
        return "://" in out
    try:
        with locking.held(Path(out) / _LOCK):
            return False
    except (OSError, UserError):
        return True


def read_sweep(out: str) -> Sweep:
    """Reads sweep.json; a UserError if there is none, or it is damaged or of another version."""
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
