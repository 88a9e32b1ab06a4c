"""The report's tables, DataFrames of texts: the grid, all cells, all runs."""

import math
from collections.abc import Sequence

import pandas as pd

from experiments import published
from experiments.presets import AUGMENTATIONS, NORMS
from experiments.stats import NOT_MEASURED, error_rate, percent, with_error


def longest_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """Returns each cell's finished runs with the most epochs, which represent the cell."""
    finished = runs[runs["finished"].astype(bool)]
    return finished[finished["epochs"] == finished.groupby("cell")["epochs"].transform("max")]


def grid(runs: pd.DataFrame) -> pd.DataFrame:
    """Returns the 3x3 grid with each cell's best validation error, test error and epochs."""
    standing = longest_runs(runs)

    def text(cell: str) -> str:
        own = standing[standing["cell"] == cell]
        if own.empty:
            unfinished = int((runs["cell"] == cell).sum())
            return f"{unfinished} unfinished" if unfinished else NOT_MEASURED
        valid, test = own["best_valid_error_rate"], own["test_error_rate"]
        epochs = own["epochs"].iloc[0]
        return f"**{error_rate(valid)}**<br>test {error_rate(test)}<br>{epochs} epochs"

    rows = [
        [f"**{name}**", *(text(norm + augmented) for augmented in AUGMENTATIONS)]
        for norm, name in NORMS.items()
    ]
    return pd.DataFrame(rows, columns=["", *AUGMENTATIONS.values()])


def cells(runs: pd.DataFrame) -> pd.DataFrame:
    """Returns a row for each cell and number of epochs, over finished runs."""
    finished = runs[runs["finished"].astype(bool)]
    rows = []
    for (cell, count), own in finished.groupby(["cell", "epochs"], sort=False):
        precise = own["test_error_rate_precise"].dropna()
        still = int((own["stood_still"] == own["epochs"]).sum())
        rows.append({
            "cell": f"`{cell}`",
            "seeds": f"{len(own)}" + (f" ({still} stood still)" if still else ""),
            "epochs": str(count),
            "best validation": error_rate(own["best_valid_error_rate"], counted=False),
            "test": error_rate(own["test_error_rate"], counted=False),
            "test, precise": error_rate(precise) if len(precise) else NOT_MEASURED,
            "time": duration(own["wall_seconds"]),
            "the post's": percent(published.BEST.get(cell, math.nan)),
        })  # fmt: skip
    return pd.DataFrame(rows)


def duration(seconds: Sequence[float]) -> str:
    """Formats times in a unit that suits their mean."""
    mean = sum(seconds) / len(seconds)
    size, unit = (3600, " h") if mean >= 7200 else (60, " min") if mean >= 120 else (1, " s")
    return with_error([each / size for each in seconds], unit)


def all_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """Returns a row for each run, finished or not, with its hardware and commit."""
    rows = []
    for run in runs.to_dict("records"):
        finished, best = run["finished"], percent(run["best_valid_error_rate"])
        # Shorten the commit, but keep its `-dirty`.
        commit, dirty, _ = (run["commit"] if finished else NOT_MEASURED).partition("-dirty")
        done = f"{run['epochs']}" if finished else f"{run['epochs']} of {run['num_epochs']}"
        rows.append({
            "run": f"`{run['folder']}`",
            "seed": str(run["seed"]),
            "epochs": done,
            "stood still": str(run["stood_still"]),
            "best validation": best if finished else f"{best} so far",
            "test": percent(run["test_error_rate"]) if finished else NOT_MEASURED,
            "time": duration([run["wall_seconds"]]) if finished else NOT_MEASURED,
            "hardware": run["hardware"] if finished else NOT_MEASURED,
            "commit": commit[:10] + dirty,
        })  # fmt: skip
    return pd.DataFrame(rows)
