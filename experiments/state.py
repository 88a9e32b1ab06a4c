"""A sweep's own files, and how far each of its runs is.

OUT/sweep.json        the sweep, and its runs: those last asked for, and those that have begun;
OUT/sweep_state.json  who drives it, and how the last attempt at each run ended.

How far a run is, is read from its own folder: result.json and metrics.jsonl.
"""

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from etils import epath
from filelock import FileLock, Timeout

from bn_vgg import cli
from bn_vgg.errors import UserError
from bn_vgg.run_dir import ONLY_SPEED, Workdir
from experiments.plan import PlannedRun

FORMAT = 1
PLAN, STATE = "sweep.json", "sweep_state.json"
_LOCK = ".sweep.lock"
# Small files of a run; result.json comes last, because it says that the run is finished.
SMALL_FILES = ("config.json", "data.json", "metrics.jsonl", "result.json")
# Settings that may differ from start to start of a sweep, as they may of a run.
_MAY_DIFFER = {*ONLY_SPEED, "num_epochs"}

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


class DriverState:
    """sweep_state.json, kept by the one process that drives the sweep."""

    def __init__(self, out: str | None):
        """`out` is the sweep's folder; None writes nothing."""
        self.runs: dict[str, dict[str, Any]] = {}
        self._path = None if out is None else epath.Path(out) / STATE
        self._driver: dict[str, Any] | None = {"host": socket.gethostname(), "pid": os.getpid()}
        self._failed_to_write = False

    def note(self, folder: str, state: str, error: str | None = None) -> None:
        """Writes the state of a run."""
        self.runs[folder] = {"state": state, "error": error}
        self._write()

    def leave(self) -> None:
        """Gives up charge."""
        self._driver = None
        self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        try:
            _write(self._path, {"driver": self._driver, "runs": self.runs})
        except OSError as error:  # the runs do not need it
            if not self._failed_to_write:
                cli.show(f"cannot write {self._path}: {error.strerror or error}; the runs go on")
            self._failed_to_write = True


@contextlib.contextmanager
def driving(out: str) -> Iterator[DriverState]:
    """Takes charge of a sweep's folder. An address such as gs:// has no lock.

    Raises:
      UserError: another process is in charge, or the folder holds other files or cannot be
        written.
    """
    folder = epath.Path(out)
    lock = None if "://" in out else _lock(out)
    try:
        if folder.exists() and not (folder / PLAN).exists() and any(folder.glob("[!.]*")):
            raise UserError(
                f"{out} holds no sweep ({PLAN} is missing), but other files: name another --out"
            )
        folder.mkdir(parents=True, exist_ok=True)
        if lock is not None:
            lock.acquire(timeout=1)  # --status holds it for a moment
    except Timeout as error:
        driver = (read_driver(out) or {}).get("driver") or {"pid": "?", "host": "?"}
        raise UserError(
            f"{out} is driven by process {driver['pid']} on {driver['host']}: wait for it, stop "
            "it, or see --status"
        ) from error
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
    state = DriverState(out)
    try:
        yield state
    finally:
        state.leave()
        if lock is not None:
            lock.release()


def _lock(out: str) -> FileLock:
    # A lock that is a file's existence would outlive a killed driver.
    return FileLock(Path(out) / _LOCK, fallback_to_soft=False)


def read_driver(out: str) -> dict[str, Any] | None:
    """Reads sweep_state.json; None if there is none, or it is damaged."""
    try:
        found = json.loads((epath.Path(out) / STATE).read_text())
        return found if isinstance(found, dict) and "runs" in found else None
    except (FileNotFoundError, ValueError):
        return None


def is_driven(out: str) -> bool:
    """Whether a process is in charge. Without locks a killed one seems to be, until the next."""
    if "://" in out:
        return bool((read_driver(out) or {}).get("driver"))
    if not (Path(out) / _LOCK).exists():
        return False
    try:
        with _lock(out).acquire(timeout=0):
            return False
    except (Timeout, OSError):
        return True


def claim(
    out: str, preset: str, variant: str, settings: dict[str, str], runs: list[PlannedRun]
) -> None:
    """Takes the folder for a sweep, or goes on with it; more seeds and epochs may be asked for.

    Raises:
      UserError: it holds runs of another sweep, or cannot be written.
    """
    folder = epath.Path(out)
    told = {"preset": preset, "variant": variant, "settings": settings}
    planned = {run.folder: run for run in runs}
    try:
        if (folder / PLAN).exists():
            before = read_plan(out)
            begun = {
                run.folder: run
                for run in before["runs"]
                if (folder / run.folder / "config.json").exists()
            }
            if begun:
                _refuse_other(out, before, told)
            planned = begun | planned
        folder.mkdir(parents=True, exist_ok=True)
        of_runs = [{"folder": run.folder, **asdict(run)} for run in planned.values()]
        _write(folder / PLAN, {"format": FORMAT, **told, "runs": of_runs})
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error


def _refuse_other(out: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    for key, new in now.items():
        old = before[key]
        if key == "settings":
            old, new = ({k: x for k, x in of.items() if k not in _MAY_DIFFER} for of in (old, new))
        if old != new:
            raise UserError(
                f"{out} holds another sweep: its {key} was {old} and is {new}. Name another --out"
            )


def read_plan(out: str) -> dict[str, Any]:
    """Reads sweep.json: `preset`, `variant`, `settings` and `runs`, a list of `PlannedRun`s.

    Raises:
      UserError: there is none, it is damaged, or another version of this code wrote it.
    """
    path = epath.Path(out) / PLAN
    try:
        plan = json.loads(path.read_text())
        if plan["format"] != FORMAT:
            raise UserError(f"{path} is of format {plan['format']}, this code reads {FORMAT}")
        told = {key: plan[key] for key in ("preset", "variant", "settings")}
        runs = [{key: x for key, x in run.items() if key != "folder"} for run in plan["runs"]]
        return told | {"runs": [PlannedRun(**run) for run in runs]}
    except FileNotFoundError as error:
        raise UserError(f"{out} holds no sweep: there is no {PLAN} in it") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def read_states(out: str, runs: list[PlannedRun]) -> list[RunState]:
    """Reads how far each run is."""
    noted = (read_driver(out) or {"runs": {}})["runs"]
    driven = is_driven(out)
    return [_read_state(out, run, noted.get(run.folder, {}), driven) for run in runs]


def unfinished(out: str, runs: list[PlannedRun]) -> list[PlannedRun]:
    """The runs that are not done."""
    return [run for run in runs if _read_state(out, run, {}, False).state != DONE]


def _read_state(out: str, run: PlannedRun, noted: dict[str, Any], driven: bool) -> RunState:
    workdir = Workdir(run.workdir(out), writes=False)
    state, test_error_rate = noted.get("state", TO_DO), None
    if state == RUNNING and not driven:
        state = TO_DO
    try:
        last = (workdir.read_metrics() or [{}])[-1]
        if workdir.exists("result.json"):
            result = workdir.read("result.json")
            if result["config"]["num_epochs"] >= run.num_epochs:
                state, test_error_rate = DONE, result.get("test_error_rate")
    except (OSError, KeyError, TypeError, UserError) as error:
        return RunState(FAILED, error=f"its folder is damaged: {error}")
    return RunState(
        state, last.get("epoch", 0), last.get("valid/best_error_rate"), test_error_rate,
        last.get("seconds", 0.0), None if state == DONE else noted.get("error"),
    )  # fmt: skip


def copy_small_files(out: str, runs: list[PlannedRun]) -> Path:
    """Copies the plan and each run's small files to a folder beside `out`, and returns it."""
    source = Path(out)
    target = source.with_name(f"{source.name}_results")
    names = [f"{run.folder}/{name}" for run in runs for name in SMALL_FILES]
    for name in (PLAN, STATE, *names):
        if (source / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target / name)
    return target


def _write(path: epath.Path, content: dict[str, Any]) -> None:
    partial = path.parent / f"{path.name}.partial"
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)
