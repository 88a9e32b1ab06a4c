"""A sweep's own files, and how far each of its runs is.

OUT/sweep.json        what the sweep is, and its runs: those last asked for, and what has begun;
OUT/sweep_state.json  who drives it now, and how each attempt at a run ended.

How far a run is, is read from its own folder: result.json and metrics.jsonl.
"""

import json
import os
import socket
import time
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from bn_vgg.errors import UserError
from bn_vgg.run_dir import ONLY_SPEED, Workdir
from experiments.sweeping.plan import PlannedRun

FORMAT = 1
PLAN, STATE = "sweep.json", "sweep_state.json"
# Settings that may differ from start to start of a sweep, as they may of a run.
_MAY_DIFFER = {*ONLY_SPEED, "num_epochs"}
# A driver on another machine that was not seen for so long is gone. It writes every 30 s.
GONE_AFTER_SECONDS = 180

DONE, RUNNING, FAILED, TO_DO = "done", "running", "failed", "to do"


class RunState(NamedTuple):
    """How far a run is.

    Attributes:
      state: one of `DONE`, `RUNNING`, `FAILED`, `TO_DO`.
      epochs: that are finished.
      best_error_rate: of validation, so far; None before the first epoch.
      seconds: spent on it, as far as its last epoch.
      attempts: begun by the driver that is in charge, or was last.
      error: the last attempt's, in a line.
      where: it is running.
    """

    state: str
    epochs: int = 0
    best_error_rate: float | None = None
    seconds: float = 0.0
    attempts: int = 0
    error: str | None = None
    where: str = ""


def claim(
    out: str, preset: str, variant: str, settings: dict[str, str], runs: list[PlannedRun]
) -> None:
    """Takes the folder for a sweep, or goes on with it; more seeds and epochs may be asked for.

    Raises:
      UserError: it holds another sweep, one that another process drives, or other files, or
        cannot be written.
    """
    folder = epath.Path(out)
    told = {"preset": preset, "variant": variant, "settings": settings}
    planned = {run.folder: run for run in runs}
    try:
        if (folder / PLAN).exists():
            before = read_plan(out)
            _refuse_second_driver(out)
            _refuse_other(out, before, told)
            # What has not begun is as it was asked for last.
            begun = {
                run.folder: run for run in before["runs"]
                if (folder / run.folder / "config.json").exists()
            }  # fmt: skip
            _refuse_shorter(out, begun, planned)
            planned = begun | planned
        elif folder.exists() and any(folder.iterdir()):
            raise UserError(
                f"{out} holds no sweep ({PLAN} is missing), but other files: name another --out"
            )
        folder.mkdir(parents=True, exist_ok=True)
        of_runs = [{"folder": run.folder, **run._asdict()} for run in planned.values()]
        _write(folder / PLAN, {"format": FORMAT, **told, "runs": of_runs})
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error


def _refuse_other(out: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    for key in ("preset", "variant", "settings"):
        old, new = before[key], now[key]
        if key == "settings":
            old, new = (
                {field: of[field] for field in sorted(of) if field not in _MAY_DIFFER}
                for of in (old, new)
            )
        if old != new:
            raise UserError(
                f"{out} holds another sweep: its {key} was {old} and is {new}. Name another --out"
            )


def _refuse_shorter(out: str, before: dict[str, PlannedRun], now: dict[str, PlannedRun]) -> None:
    for folder in before.keys() & now.keys():
        old, new = before[folder].num_epochs, now[folder].num_epochs
        if new < old:
            raise UserError(
                f"{out}: {folder} was begun for {old} epochs and cannot be shortened to {new}; "
                f"go on with --set=num_epochs={old}, or name another --out"
            )


def _refuse_second_driver(out: str) -> None:
    found = read_driver(out)
    if found and is_alive(found):
        driver = found["driver"]
        raise UserError(
            f"{out} is driven by process {driver['pid']} on {driver['host']} since "
            f"{time.ctime(driver['since'])}: wait for it, stop it, or see --status"
        )


def read_plan(out: str) -> dict[str, Any]:
    """Reads sweep.json; its `runs` become `PlannedRun`s.

    Raises:
      UserError: there is none, it is damaged, or another version of this code wrote it.
    """
    path = epath.Path(out) / PLAN
    if not path.exists():
        raise UserError(f"{out} holds no sweep: there is no {PLAN} in it")
    try:
        plan = json.loads(path.read_text())
        found = plan["format"]
        if found == FORMAT:
            runs = [{key: run[key] for key in PlannedRun._fields} for run in plan["runs"]]
            told = {key: plan[key] for key in ("preset", "variant", "settings")}
            return told | {"runs": [PlannedRun(**run) for run in runs]}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    raise UserError(f"{path} is of format {found}, this code reads {FORMAT}: name another --out")


class DriverState:
    """sweep_state.json, kept by the one process that drives the sweep."""

    def __init__(self, out: str):
        """Takes charge.

        Raises:
          UserError: another process is in charge, or the folder cannot be written.
        """
        self._path = epath.Path(out) / STATE
        _refuse_second_driver(out)
        self.runs: dict[str, dict[str, Any]] = {}
        self._driver = {
            "host": socket.gethostname(), "pid": os.getpid(), "since": time.time(),
            "started": _started(os.getpid()),
        }  # fmt: skip
        self.write()

    def write(self) -> None:
        """Writes the state, which also shows that this process is alive.

        Raises:
          UserError: it cannot be written.
        """
        _write(self._path, {"driver": self._driver, "seen": time.time(), "runs": self.runs})

    def leave(self) -> None:
        """Gives up charge.

        Raises:
          UserError: that cannot be written.
        """
        for run in self.runs.values():
            if run["state"] == RUNNING:
                run["state"] = TO_DO
        _write(self._path, {"driver": None, "seen": time.time(), "runs": self.runs})


def read_driver(out: str) -> dict[str, Any] | None:
    """Reads sweep_state.json; None if there is none, or a torn one."""
    path = epath.Path(out) / STATE
    try:
        found = json.loads(path.read_text())
        return found if isinstance(found, dict) and "runs" in found else None
    except (FileNotFoundError, ValueError):
        return None


def is_alive(found: dict[str, Any]) -> bool:
    """Whether the driver of a sweep_state.json is at work."""
    driver = found["driver"]
    if not driver:
        return False
    if driver["host"] != socket.gethostname():
        return time.time() - found["seen"] < GONE_AFTER_SECONDS
    try:
        os.kill(driver["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    # Another process may have its number by now, as after a container's restart.
    started = _started(driver["pid"])
    return driver.get("started", started) == started


def _started(pid: int) -> str | None:
    """When a process was started, in Linux's clock ticks; None on other systems."""
    try:
        # Its name, in brackets, may hold anything.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def read_states(out: str, runs: list[PlannedRun]) -> list[RunState]:
    """Reads how far each run is."""
    found = read_driver(out) or {"driver": None, "runs": {}}
    alive = is_alive(found)
    return [_read_state(out, run, found["runs"].get(run.folder, {}), alive) for run in runs]


def unfinished(out: str, runs: list[PlannedRun]) -> list[PlannedRun]:
    """The runs that are not done."""
    states = read_states(out, runs)
    return [run for run, of in zip(runs, states, strict=True) if of.state != DONE]


def _read_state(out: str, run: PlannedRun, attempt: dict[str, Any], alive: bool) -> RunState:
    workdir = Workdir(run.workdir(out), writes=False)
    try:
        lines = workdir.read_metrics()
        last = lines[-1] if lines else {}
        done = (
            workdir.exists("result.json")
            and workdir.read("result.json")["config"]["num_epochs"] >= run.num_epochs
        )
        state = RunState(
            TO_DO, last.get("epoch", 0), last.get("valid/best_error_rate"), last.get("seconds", 0.0)
        )
    except (OSError, ValueError, KeyError, TypeError, UserError) as error:
        return RunState(FAILED, error=f"its folder is damaged: {error}")
    state = state._replace(
        attempts=attempt.get("attempts", 0),
        error=attempt.get("error"),
        where=attempt.get("where", ""),
    )
    if done:
        return state._replace(state=DONE, error=None)
    if alive and attempt.get("state") == RUNNING:
        return state._replace(state=RUNNING)
    return state._replace(state=FAILED if attempt.get("state") == FAILED else TO_DO)


def _write(path: epath.Path, content: dict[str, Any]) -> None:
    partial = path.parent / f"{path.name}.partial"
    try:
        partial.write_text(json.dumps(content, indent=1) + "\n")
        partial.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
