"""Reads run folders into two tables, with a row for each run and for each epoch.

A run's *cell* is the nearest cell of presets.py and the fields that differ from it, such as
`meanonly, batch_size=400`. Runs of one size and on the same images form a *section*, such as
`small`. Only runs within a section are compared.
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
from experiments.presets import CELLS, OTHER_CONFIGS, VARIANTS
from experiments.stats import NOT_MEASURED, STANDSTILL_ERROR

_REQUIRED = {
    "name": str, "variant": str, "seed": int, "num_epochs": int,
    "data.source": str, "data.min_side": int,
}  # fmt: skip
# Fields in which runs of one cell may differ. Tables and claims take care of different num_epochs,
# and sections of different data; the others affect only the speed or what is measured.
MAY_DIFFER = {
    "name", "variant", "seed", "num_epochs", "data.source", "eval.precise_examples",
    "eval.compared_examples", *ONLY_SPEED,
}  # fmt: skip


def read_runs(
    path: str | Path, extra_keys: Sequence[str] = ()
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, str]]:
    """Reads all runs in a folder, including unfinished ones.

    Args:
      path: the folder.
      extra_keys: fields of `MAY_DIFFER` that distinguish runs of the same cell and seed.

    Returns:
      runs: a row for each section, cell, seed and `extra_keys`, with `folder` (relative to `path`)
        and the configuration and run of `read_run`.
      epochs: a row for each epoch of these runs, with `section`, `cell`, `seed`, `folder` and the
        columns of metrics.jsonl.
      unused: the reasons why folders are not used, by their relative paths.

    Raises:
      UserError: there is no such folder, or no run in it.
    """
    root = Path(os.path.realpath(path))
    if not str(path) or not root.is_dir():
        raise UserError(f"{path!s:.200} is not a folder on this machine; name the runs' folder")
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
    # Fingerprints are comparable only at the same image size.
    contents = runs.groupby(["section", "data.min_side"])["fingerprint"]
    usual = contents.transform(lambda prints: [*prints.dropna().mode(), None][0])
    other = runs["fingerprint"].notna() & (runs["fingerprint"] != usual)
    reason = "its images differ from those of most runs with the same source"
    unused |= dict.fromkeys(runs.loc[other, "folder"], reason)
    runs = runs[~other]
    best_first = runs.sort_values(["finished", "epochs"], ascending=False, kind="stable")
    keys = ["section", "cell", "seed", *(field for field in extra_keys if field in runs)]
    for _, (kept, *others) in best_first.groupby(keys, dropna=False)["folder"]:
        reason = f"for this cell and seed {kept} is used, finished or with more epochs"
        unused |= dict.fromkeys(others, reason)
    runs = runs[~runs["folder"].isin(unused)].reset_index(drop=True)
    epochs = pd.concat(lines).merge(runs[["section", "cell", "seed", "folder"]], on="folder")
    return runs, epochs, unused


def read_run(path: str | Path) -> tuple[dict[str, Any], dict[str, Any], pd.DataFrame]:
    """Reads a run's folder, local or `gs://`; the run may be unfinished.

    Returns:
      config: flat, with keys such as `model.norm`.
      run: `epochs` (finished ones), `finished`, `best_valid_error_rate` (so far), `stood_still`
        (number of first epochs without a training error below `STANDSTILL_ERROR`), numbers of
        examples (0 if unknown) and `fingerprint`; of a finished run also its results, `hardware`
        and `commit`.
      epochs: metrics.jsonl as a table, with NaN where a metric was not measured.

    Raises:
      UserError: it holds no run, no epoch is finished, or a file is damaged.
    """
    workdir = Workdir(str(path), writes=False)
    result, config, data, about = (
        workdir.read(f"{name}.json") if workdir.exists(f"{name}.json") else {}
        for name in ("result", "config", "data", "format")
    )
    try:
        # Some recorded results have no config.json.
        if not (config := config or result.get("config")):
            raise UserError(
                f"{workdir.path} holds no run: there is no configuration in config.json"
            )
        epochs = _read_epochs(workdir)
        config = _recipe() | flatten(config, fields=KWARGS)
        # Runs of different versions of the user's own code are not of one cell.
        if code := result.get("user_code") or about.get("user_code"):
            config["user_code"] = " ".join(code[name][:8] for name in sorted(code))
        for field, kind in _REQUIRED.items():
            if type(config.get(field)) is not kind:
                raise UserError(
                    f"{workdir.path}/config.json has no {field}: not a run of this project"
                )
        valid = int(data.get("examples", {}).get("valid") or config.get("data.valid_examples", 0))
        compared = min(int(config.get("eval.compared_examples", 0)), valid)
        planned, train = config["num_epochs"], epochs.get("train/error_rate", [])
        run = {
            "epochs": len(epochs),
            "best_valid_error_rate": epochs["valid/error_rate"].min(),
            "stood_still": len(
                list(itertools.takewhile(lambda error: error >= STANDSTILL_ERROR, train))
            ),
            "valid_examples": valid,
            "compared_examples": compared,
            "fingerprint": data.get("fingerprint"),
            # A run whose num_epochs was raised still has its previous result.
            "finished": len(epochs) >= planned == result.get("config", {}).get("num_epochs"),
        }
        if run["finished"]:
            for name in ("test_error_rate", "wall_seconds", "images_per_second"):
                run[name] = float(result[name])
            run["test_error_rate_precise"] = float(result.get("test_error_rate_precise", "nan"))
            run |= {"hardware": _hardware(result), "commit": result.get("commit") or NOT_MEASURED}
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{workdir.path} is damaged: not what a run writes ({error!r})") from error
    return config, run, epochs


def _run_folders(root: Path) -> Iterator[Path]:
    """Yields the folders that hold a run; follows links, but visits no folder twice."""

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
    """Describes a run's hardware: `1 AMD EPYC (2 cores)`, `8 TPU v5 lite (2 hosts)`."""
    of = result["hardware"]
    more = [f"{of['cpu_cores']} cores"] if of["platform"] == "cpu" else []
    more += [f"{of['num_hosts']} hosts"] if of["num_hosts"] > 1 else []
    return f"{of['num_devices']} {of['device']}" + (f" ({', '.join(more)})" if more else "")


def _cell(config: dict[str, Any]) -> str:
    """Returns a run's cell."""
    variant = config["variant"]
    if variant not in VARIANTS:
        raise UserError(f"its variant {variant!r} is not one of {', '.join(VARIANTS)}")
    base = config["name"].partition("-")[0]
    changes = {
        cell: _changes(config, _cell_config(cell, variant)) for cell in (*CELLS, *OTHER_CONFIGS)
    }
    # Of equally near files, prefer the one that names the run.
    nearest = min(changes, key=lambda cell: (len(changes[cell]), cell != base))
    return ", ".join([nearest, *changes[nearest]])


def _changes(config: dict[str, Any], cell: dict[str, Any]) -> list[str]:
    # The reported errors may depend on the number of examples for precise statistics.
    precise = config["eval.statistics"] == "precise" or config["optimizer.average_decay"] > 0
    free = MAY_DIFFER - {"eval.precise_examples"} if precise else MAY_DIFFER
    return [
        f"{field}={value}"
        for field, value in sorted(config.items())
        if field not in free and (field not in cell or cell[field] != value)
    ]


@cache
def _recipe() -> dict[str, Any]:
    """Returns defaults for fields that older records lack."""
    recipe = _cell_config("default", "full")
    return {field: recipe[field] for field in recipe.keys() - MAY_DIFFER - _REQUIRED.keys()}


@cache
def _cell_config(cell: str, variant: str) -> dict[str, Any]:
    config = importlib.import_module(f"configs.{cell}").get_config(variant).to_dict()
    return flatten(config, fields=KWARGS)


def _sections(runs: pd.DataFrame) -> pd.Series:
    """Returns each run's section: `small`, and `small-2` for other images with fewer runs.

    Runs with the same source or the same fingerprint are on the same images.
    """
    same = runs.groupby("fingerprint")["data.source"].transform("first")
    section = runs["variant"].copy()
    for variant, sources in same.fillna(runs["data.source"]).groupby(runs["variant"]):
        for number, source in enumerate(sources.value_counts().index[1:], start=2):
            section[sources.index[sources == source]] = f"{variant}-{number}"
    return section


def _order(run: pd.Series) -> tuple:
    """Sort key: the published size first, then the grid's cells in their order, then others."""
    known = run["cell"] in CELLS
    place = CELLS.index(run["cell"]) if known else len(CELLS)
    return VARIANTS.index(run["variant"]), run["section"], place, run["cell"], run["seed"]
