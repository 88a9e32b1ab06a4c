"""How far the sweep is that the runs belong to, by the files that it wrote."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from bn_vgg.errors import UserError
from experiments import state


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
      UserError: the sweep.json in `root` is damaged.
    """
    root = root.resolve()
    for folder in (root, *root.parents):
        if not (folder / state.PLAN).is_file():
            continue
        try:
            plan = state.read_plan(str(folder))
        except UserError:
            # Further up, it need not be one of ours.
            if folder == root:
                raise
            continue
        paths = [folder / run.folder for run in plan["runs"]]
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


def _count(folder: Path, plan: dict[str, Any], failed: dict[str, str]) -> Progress:
    runs = plan["runs"]
    left = state.unfinished(str(folder), runs)
    begun = [run for run in left if (folder / run.folder / "config.json").exists()]
    return Progress(
        preset=plan["preset"],
        variant=plan["variant"],
        planned=len(runs),
        finished=len(runs) - len(left),
        unfinished=len(begun),
        failed=failed,
    )
