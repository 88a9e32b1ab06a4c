"""Finds the runs below a folder, reads them, and says of the rest why it is not used."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bn_vgg.errors import UserError
from bn_vgg.run_dir import Workdir, flatten
from experiments.asking.answers import VALID
from experiments.diagnosing.diagnosis import Run, read_run, value
from experiments.presets import VARIANTS
from experiments.reporting.cells import Place, place

RUN_FILES = ("config.json", "result.json")
# What is asked of a configuration before its run is read.
_TYPES = {"name": str, "variant": str, "seed": int, "num_epochs": int, "data.source": str}
_MEASURED = ("best_valid_error_rate", "test_error_rate", "wall_seconds", "images_per_second")


class Found(NamedTuple):
    """A run that can be used.

    Attributes:
      folder: relative to the folder that was searched, `.` for itself.
      run: its lines and its configuration.
      place: its cell, or what else it is.
      fingerprint: of its images at its size, from data.json; None: not recorded.
      result: result.json of a run that has done all its epochs, else None.
    """

    folder: str
    run: Run
    place: Place
    fingerprint: str | None
    result: dict[str, Any] | None

    @property
    def seed(self) -> int:
        """That it was made with."""
        return self.run.config["seed"]

    @property
    def epochs(self) -> int:
        """Done so far."""
        return self.run.lines[-1]["epoch"]

    @property
    def planned(self) -> int:
        """Epochs that it is to do."""
        return self.run.config["num_epochs"]


class Left(NamedTuple):
    """A folder that is not used, and why."""

    folder: str
    reason: str


def find(root: Path) -> tuple[list[Found], list[Left]]:
    """Reads every run at or below `root`.

    Raises:
      UserError: there is no such folder, or no run in it.
    """
    if not root.is_dir():
        reason = "is no folder" if root.exists() else "does not exist"
        raise UserError(f"{root} {reason}; give the folder that holds the runs, such as runs")
    found: list[Found] = []
    left: list[Left] = []
    for folder in _run_folders(root, left):
        name = str(folder.relative_to(root))
        try:
            found.append(_read(folder, name))
        except UserError as error:
            # Where the page lists folders by their names, their paths are noise.
            left.append(Left(name, str(error).replace(f"{folder}/", "").replace(str(folder), "it")))
    if not found and not left:
        raise UserError(f"there is no run below {root}: no config.json or result.json")
    return found, left


def _run_folders(root: Path, left: list[Left]) -> Iterator[Path]:
    """Yields the folders that hold a run; links are followed, but nowhere twice."""

    def unreadable(error: OSError) -> None:
        name = os.path.relpath(error.filename, root)
        left.append(Left(name, f"it cannot be read: {error.strerror or error}"))

    seen = set()
    for folder, folders, files in os.walk(root, onerror=unreadable, followlinks=True):
        folders[:] = sorted(name for name in folders if name != "checkpoints")
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        if not set(RUN_FILES).isdisjoint(files):
            yield Path(folder)


def _read(folder: Path, name: str) -> Found:
    workdir = Workdir(str(folder), writes=False)
    try:
        config = _config(workdir)
        data = _data(workdir)
        _check_shape(config)
        run = read_run(str(folder))
        result = _result(workdir, run)
    except OSError as error:
        raise UserError(f"it cannot be read: {error.strerror or error}") from error
    if all(value(line, VALID) is None for line in run.lines):
        raise UserError("no line of metrics.jsonl has a validation error")
    return Found(name, run, place(run.config), data.get("fingerprint"), result)


def _config(workdir: Workdir) -> dict[str, Any]:
    """The configuration, flat. Recorded results come without a file of their own for it."""
    if workdir.exists("config.json"):
        config = workdir.read("config.json")
    else:
        result = workdir.read("result.json")
        config = result.get("config") if isinstance(result, dict) else None
    if not isinstance(config, dict):
        raise UserError("its configuration is no object: not a run of this project")
    return flatten(config)


def _data(workdir: Workdir) -> dict[str, Any]:
    data = workdir.read("data.json") if workdir.exists("data.json") else {}
    examples = data.get("examples", {}) if isinstance(data, dict) else None
    if not isinstance(examples, dict) or type(examples.get("valid", 0)) is not int:
        raise UserError("data.json is damaged: it has no numbers of examples")
    return data


def _check_shape(config: dict[str, Any]) -> None:
    """Refuses what is no configuration of this project.

    Raises:
      UserError: naming the first field that is missing or of another kind.
    """
    for field, kind in _TYPES.items():
        if type(config.get(field)) is not kind:
            raise UserError(f"its configuration has no {field}: not a run of this project")
    if config["variant"] not in VARIANTS:
        raise UserError(f"its variant {config['variant']!r} is none of {', '.join(VARIANTS)}")
    for field in ("eval.compared_examples", "data.valid_examples"):
        if type(config.get(field, 0)) is not int:
            raise UserError(f"its configuration's {field} is no whole number")


def _result(workdir: Workdir, run: Run) -> dict[str, Any] | None:
    """The result, if the run has done all its epochs: one that is continued has an old one."""
    if not workdir.exists("result.json"):
        return None
    result = workdir.read("result.json")
    if not isinstance(result, dict) or not isinstance(result.get("config"), dict):
        raise UserError("result.json is damaged: it has no configuration")
    for name in _MEASURED:
        if value(result, name) is None:
            raise UserError(f"result.json is damaged: it has no number {name}")
    planned = run.config["num_epochs"]
    done = run.lines[-1]["epoch"] >= planned and result["config"].get("num_epochs") == planned
    return result if done else None
