"""Reads run folders into two tables: a row for each run, and a row for each epoch.

A run is known by its *cell*: the file of configs/ that it is nearest to, and the fields
in which it differs from it: `meanonly, batch_size=400`. Runs of one size and on the same images
make a *section*: `small`; only these compare.
"""

import importlib
import itertools
import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from bn_vgg.errors import UserError
from bn_vgg.run_dir import KWARGS, ONLY_SPEED, Workdir, flatten
from experiments.presets import BEYOND, CELLS, VARIANTS
from experiments.stats import NOTHING, TAKEN_OFF

_REQUIRED = {
    "name": str, "variant": str, "seed": int, "num_epochs": int,
    "data.source": str, "data.min_side": int,
}  # fmt: skip
# What seeds of one cell may differ in. Epochs may, because tables and claims watch them; data may,
# because sections keep them apart; all else changes the speed or what is looked at.
FREE = {
    "name", "variant", "seed", "num_epochs", "data.source", "eval.precise_examples",
    "eval.compared_examples", *ONLY_SPEED,
}  # fmt: skip


def read_runs(
    path: str | Path, apart: Sequence[str] = ()
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, str]]:
    """Reads every run at or below a folder, those in progress too.

    Args:
      path: the folder.
      apart: fields of `FREE` by which runs of one cell and seed are told apart.

    Returns:
      runs: a row for each run, by section, cell, seed and `apart`: these, `folder` (below the
        root), and the configuration and run of `read_run`.
      epochs: a row for each epoch of these runs, by the same keys, with what `read_run` returns.
      unused: why a folder is not used, by its path below the root.

    Raises:
      UserError: there is no such folder, or no run in it.
    """
    root = Path(os.path.realpath(path))  # messages leave it out, which `.` cannot be
    if not str(path) or not root.is_dir():
        raise UserError(f"{path!s:.200} is no folder of this machine; name the one with the runs")
    found, lines, unused = [], [], {}
    for folder in _run_folders(root):
        name = str(folder.relative_to(root))
        try:
            config, run, epochs = read_run(folder)
            found.append(config | run | {"folder": name, "cell": _cell(config)})
            lines.append(epochs.assign(folder=name))
        except UserError as error:
            unused[name] = str(error).replace(f"{folder}/", "").replace(str(folder), "it")
    if not found and not unused:
        raise UserError(f"there is no run below {root}: no config.json or result.json")
    if not found:
        return pd.DataFrame(columns=["section", "finished"]), pd.DataFrame(), unused
    runs = pd.DataFrame(found)
    runs["section"] = _sections(runs)
    runs = runs.loc[sorted(runs.index, key=lambda index: _order(runs.loc[index]))]
    # Fingerprints are of images at one size, and so compare where it is the same.
    contents = runs.groupby(["section", "data.min_side"])["fingerprint"]
    usual = contents.transform(lambda prints: [*prints.dropna().mode(), None][0])
    other = runs["fingerprint"].notna() & (runs["fingerprint"] != usual)
    reason = "its images are others than those of most runs with the same source"
    unused |= dict.fromkeys(runs.loc[other, "folder"], reason)
    runs = runs[~other]
    best_first = runs.sort_values(["finished", "epochs"], ascending=False, kind="stable")
    keys = ["section", "cell", "seed", *(field for field in apart if field in runs)]
    for _, (kept, *others) in best_first.groupby(keys, dropna=False)["folder"]:
        reason = f"for this cell and seed {kept} is used, finished or with more epochs"
        unused |= dict.fromkeys(others, reason)
    runs = runs[~runs["folder"].isin(unused)].reset_index(drop=True)
    epochs = pd.concat(lines).merge(runs[["section", "cell", "seed", "folder"]], on="folder")
    return runs, epochs, unused


def read_run(path: str | Path) -> tuple[dict[str, Any], dict[str, Any], pd.DataFrame]:
    """Reads a run's folder, local or `gs://`; the run may still go on.

    Returns:
      config: flat: `model.norm`.
      run: `epochs` (done), `finished`, `best_valid_error_rate` (so far), `stood_still` (first
        epochs in a row whose training error is not below `TAKEN_OFF`), numbers of examples (0: not
        known), `fingerprint`, and of a finished run its results, `hardware` and `commit`.
      epochs: of metrics.jsonl, `epoch` among the columns; NaN: not measured.

    Raises:
      UserError: it holds no run, no epoch is finished, or a file is damaged.
    """
    workdir = Workdir(str(path), writes=False)
    result, config, data = (
        workdir.read(f"{name}.json") if workdir.exists(f"{name}.json") else {}
        for name in ("result", "config", "data")
    )
    try:
        # Some recorded results come without a config.json of their own.
        if not (config := config or result.get("config")):
            raise UserError(
                f"{workdir.path} holds no run: there is no configuration in config.json"
            )
        epochs = _read_epochs(workdir)
        config = _recipe() | flatten(config, fields=KWARGS)
        for field, kind in _REQUIRED.items():
            if type(config.get(field)) is not kind:
                raise UserError(
                    f"{workdir.path}/config.json has no {field}: no run of this project"
                )
        valid = int(data.get("examples", {}).get("valid") or config.get("data.valid_examples", 0))
        compared = min(int(config.get("eval.compared_examples", 0)), valid)
        planned, train = config["num_epochs"], epochs.get("train/error_rate", [])
        run = {
            "epochs": len(epochs),
            "best_valid_error_rate": epochs["valid/error_rate"].min(),
            "stood_still": len(list(itertools.takewhile(lambda error: error >= TAKEN_OFF, train))),
            "valid_examples": valid,
            "compared_examples": compared,
            "fingerprint": data.get("fingerprint"),
            # A run that is continued still has the result of before.
            "finished": len(epochs) >= planned == result.get("config", {}).get("num_epochs"),
        }
        if run["finished"]:
            for name in ("test_error_rate", "wall_seconds", "images_per_second"):
                run[name] = float(result[name])
            run["test_error_rate_precise"] = float(result.get("test_error_rate_precise", "nan"))
            run |= {"hardware": _hardware(result), "commit": result.get("commit") or NOTHING}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{workdir.path} is damaged: not what a run writes ({error!r})") from error
    return config, run, epochs


def _run_folders(root: Path) -> Iterator[Path]:
    """Yields the folders that hold a run; links are followed, but nowhere twice."""

    def fail(error: OSError):
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error

    seen = set()
    for folder, folders, files in os.walk(root, onerror=fail, followlinks=True):
        folders[:] = sorted({*folders} - {"checkpoints"})
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
        elif {"config.json", "result.json"} & set(files):
            yield Path(folder)
        seen.add(real)


def _read_epochs(workdir: Workdir) -> pd.DataFrame:
    epochs = pd.DataFrame(workdir.read_metrics(), dtype=float)
    if epochs.empty:
        raise UserError(f"{workdir.path} has no finished epoch yet: nothing is in metrics.jsonl")
    numbers = range(1, len(epochs) + 1)
    if [*epochs["epoch"]] != [*numbers] or epochs["valid/error_rate"].isna().any():
        raise UserError(
            f"{workdir.path}/metrics.jsonl is damaged: its lines are not the epochs from 1, each "
            "with a validation error"
        )
    return epochs.astype({"epoch": int})


def _hardware(result: dict[str, Any]) -> str:
    """Writes what a run was made on: `1 AMD EPYC (2 cores)`, `8 TPU v5 lite (2 hosts)`."""
    of = result["hardware"]
    more = [f"{of['cpu_cores']} cores"] * (of["platform"] == "cpu")
    more += [f"{of['num_hosts']} hosts"] * (of["num_hosts"] > 1)
    return f"{of['num_devices']} {of['device']}" + f" ({', '.join(more)})" * bool(more)


def _cell(config: dict[str, Any]) -> str:
    """Returns the cell of a run; fields that it was recorded without have the recipe's value."""
    variant = config["variant"]
    if variant not in VARIANTS:
        raise UserError(f"its variant {variant!r} is none of {', '.join(VARIANTS)}")
    base = config["name"].partition("-")[0]
    changes = {cell: _changes(config, _cell_config(cell, variant)) for cell in (*CELLS, *BEYOND)}
    # Of equally near ones, the one that the run is called after.
    nearest = min(changes, key=lambda cell: (len(changes[cell]), cell != base))
    return ", ".join([nearest, *changes[nearest]])


def _changes(config: dict[str, Any], cell: dict[str, Any]) -> list[str]:
    # Precise statistics over other examples give other reported errors.
    precise = config["eval.statistics"] == "precise" or config["optimizer.average_decay"] > 0
    free = FREE - {"eval.precise_examples"} if precise else FREE
    return [
        f"{field}={value}"
        for field, value in sorted(config.items())
        if field not in free and (field not in cell or cell[field] != value)
    ]


@cache
def _recipe() -> dict[str, Any]:
    """Fields that older records lack; their defaults are what those runs were trained with."""
    recipe = _cell_config("default", "full")
    return {field: recipe[field] for field in recipe.keys() - FREE - _REQUIRED.keys()}


@cache
def _cell_config(cell: str, variant: str) -> dict[str, Any]:
    config = importlib.import_module(f"configs.{cell}").get_config(variant).to_dict()
    return flatten(config, fields=KWARGS)


def _sections(runs: pd.DataFrame) -> pd.Series:
    """Names each run's section: `small`, and of other images `small-2`, those of fewer runs last.

    A source's name stands for its images, but runs of one fingerprint are of the same images.
    """
    same = runs.groupby("fingerprint")["data.source"].transform("first")
    section = runs["variant"].copy()
    for variant, sources in same.fillna(runs["data.source"]).groupby(runs["variant"]):
        for number, source in enumerate(sources.value_counts().index[1:], start=2):
            section[sources.index[sources == source]] = f"{variant}-{number}"
    return section


def _order(run: pd.Series) -> tuple:
    """By size, the published one first; then cells in the grid's order, then others."""
    known = run["cell"] in CELLS
    place = CELLS.index(run["cell"]) if known else len(CELLS)
    return VARIANTS.index(run["variant"]), run["section"], place, run["cell"], run["seed"]
