"""How far the sweep is that the runs belong to, by the files that it wrote."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from bn_vgg.errors import UserError
from bn_vgg.infra.workdir import Workdir
from experiments.sweeping import state

SWEEP_FILE = "sweep.json"


class Progress(NamedTuple):
    """Of a sweep: what it is called, how many of its runs stand where, and what went wrong.

    Attributes:
      failed: why, by the folder below the reported one, of runs that it has given up.
    """

    preset: str
    variant: str
    planned: int
    finished: int
    unfinished: int
    failed: dict[str, str]

    @property
    def not_begun(self) -> int:
        """The rest."""
        return self.planned - self.finished - self.unfinished


def find_progress(root: Path) -> Progress | None:
    """Counts the runs of the sweep whose folder `root` is, or is in; None if it is in none.

    Raises:
      UserError: the sweep.json in `root` is damaged, or a run's result.
    """
    root = root.resolve()
    for folder in (root, *root.parents):
        if not (folder / SWEEP_FILE).is_file():
            continue
        try:
            plan = _read(folder)
        except UserError:
            # Further up, it need not be one of ours.
            if folder == root:
                raise
            continue
        paths = [folder / run["folder"] for run in plan["runs"]]
        if folder == root or any(path.is_relative_to(root) for path in paths):
            return _count(folder, plan, _failed(folder, root))
    return None


def _failed(folder: Path, root: Path) -> dict[str, str]:
    runs = (state.read_driver(str(folder)) or {"runs": {}})["runs"]
    return {
        os.path.relpath(folder / name, root): str(run.get("error"))
        for name, run in runs.items()
        if run.get("state") == state.FAILED
    }


def _read(folder: Path) -> dict[str, Any]:
    plan = Workdir(str(folder), writes=False).read(SWEEP_FILE)
    runs = plan.get("runs") if isinstance(plan, dict) else None
    if not isinstance(runs, list) or not all(
        isinstance(run, dict) and isinstance(run.get("folder"), str) for run in runs
    ):
        raise UserError(f"{SWEEP_FILE} is damaged: it has no list of runs with folders")
    return plan


def _count(folder: Path, plan: dict[str, Any], failed: dict[str, str]) -> Progress:
    states = [_state(folder / run["folder"], run.get("num_epochs")) for run in plan["runs"]]
    return Progress(
        preset=str(plan.get("preset", "without a name")),
        variant=str(plan.get("variant", "of no recorded variant")),
        planned=len(states),
        finished=states.count("finished"),
        unfinished=states.count("unfinished"),
        failed=failed,
    )


def _state(folder: Path, epochs: Any) -> str:
    """How far a run is: a result of fewer epochs than are planned now is of before it grew."""
    workdir = Workdir(str(folder), writes=False)
    if workdir.exists("result.json"):
        result = workdir.read("result.json")
        config = result.get("config") if isinstance(result, dict) else None
        done = config.get("num_epochs") if isinstance(config, dict) else None
        if isinstance(done, int) and (not isinstance(epochs, int) or done >= epochs):
            return "finished"
    return "unfinished" if workdir.exists("config.json") else "not begun"
