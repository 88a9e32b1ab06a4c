"""Which cell of the grid a run's configuration is of, and in what it differs from it."""

import importlib
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

from bn_vgg.run_dir import ONLY_SPEED, flatten
from experiments import presets

CELLS: dict[str, ModuleType] = {
    cell: importlib.import_module(f"configs.{cell}") for cell in presets.CELLS
}
# The grid's rows and columns, as they are called on the page.
NORMS = {"baseline": "none", "meanonly": "mean-only", "full": "full"}
AUGMENTATIONS = {"": "no augmentation", "_crop": "+ random cropping",
                 "_crop_dropout": "+ cropping and dropout"}  # fmt: skip
# What seeds of one cell may differ in. Epochs may, because tables and claims watch them; data may,
# because sections keep it apart; all else changes the speed or what is looked at.
_FREE = {"name", "seed", "num_epochs", "data.source", *ONLY_SPEED}
_FREE_GROUPS = ("eval.",)


class Place(NamedTuple):
    """Where a run belongs.

    Attributes:
      label: the cell, or what else the run is: `meanonly, model.norm_decay=0.9`. Runs of one
        label have one configuration.
      is_cell: whether it is a cell of the grid, unchanged.
      unrecorded: fields that the cell has and this run was recorded without, taken as equal.
    """

    label: str
    is_cell: bool
    unrecorded: tuple[str, ...] = ()


def place(config: dict[str, Any]) -> Place:
    """Finds the place of a run.

    Args:
      config: flat; `name` is text and `variant` one of `VARIANTS`.
    """
    name, variant = config["name"], config["variant"]
    base = name.removesuffix(f"-{variant}")
    if base in CELLS:
        changed, unrecorded = _compare(config, _cell(base, variant))
        if not changed:
            return Place(base, is_cell=True, unrecorded=unrecorded)
        return Place(", ".join([base, *changed]), is_cell=False, unrecorded=unrecorded)
    compared = {cell: _compare(config, _cell(cell, variant)) for cell in CELLS}
    nearest = min(compared, key=lambda cell: len(compared[cell][0]))
    changed, unrecorded = compared[nearest]
    return Place(f"{base}: {', '.join([nearest, *changed])}", False, unrecorded)


def side(variant: str) -> int:
    """Of the windows of a variant, in pixels."""
    return _cell("baseline", variant)["data.crop_size"]


@cache
def _cell(cell: str, variant: str) -> dict[str, Any]:
    return flatten(CELLS[cell].get_config(variant).to_dict())


def _compare(config: dict[str, Any], cell: dict[str, Any]) -> tuple[list[str], tuple[str, ...]]:
    """Returns what is changed, as texts, and the fields that the run lacks."""
    changed = [
        f"{field}={value}"
        for field, value in sorted(config.items())
        if not _is_free(field) and (field not in cell or cell[field] != value)
    ]
    whole = {field.rpartition(".")[0] for field in config}
    unrecorded = [
        field
        for field in cell
        # {'power': 1} in the place of {} is changed, not missing.
        if field not in config and field not in whole and not _is_free(field)
    ]
    return changed, tuple(unrecorded)


def _is_free(field: str) -> bool:
    return field in _FREE or field.startswith(_FREE_GROUPS)
