"""The report's tables: the grid, every cell, every run. Each is a DataFrame of texts."""

import math
from collections.abc import Sequence

import pandas as pd

from experiments import published
from experiments.presets import AUGMENTATIONS, NORMS
from experiments.stats import NOTHING, error_rate, percent, with_error


def longest(runs: pd.DataFrame) -> pd.DataFrame:
    """Returns of each cell the finished runs that stand for it: those of the most epochs.

    A few more seeds of a shorter run, made for another claim, say nothing of how far the cell gets.
    """
    finished = runs[runs["finished"].astype(bool)]
    return finished[finished["epochs"] == finished.groupby("cell")["epochs"].transform("max")]


def grid(runs: pd.DataFrame) -> pd.DataFrame:
    """The 3x3 grid: best validation error, test error and epochs of each cell."""
    standing = longest(runs)

    def text(cell: str) -> str:
        own = standing[standing["cell"] == cell]
        if own.empty:
            unfinished = int((runs["cell"] == cell).sum())
            return f"{unfinished} unfinished" if unfinished else NOTHING
        valid, test = own["best_valid_error_rate"], own["test_error_rate"]
        epochs = own["epochs"].iloc[0]
        return f"**{error_rate(valid)}**<br>test {error_rate(test)}<br>{epochs} epochs"

    rows = [
        [f"**{name}**", *(text(norm + augmented) for augmented in AUGMENTATIONS)]
        for norm, name in NORMS.items()
    ]
    return pd.DataFrame(rows, columns=["", *AUGMENTATIONS.values()])


def cells(runs: pd.DataFrame) -> pd.DataFrame:
    """A row for each cell or changed cell, and number of epochs, of finished runs."""
    finished = runs[runs["finished"].astype(bool)]
    rows = []
    for (cell, count), own in finished.groupby(["cell", "epochs"], sort=False):
        precise = own["test_error_rate_precise"].dropna()
        rows.append({
            "cell": f"`{cell}`",
            "seeds": str(len(own)),
            "epochs": str(count),
            "best validation": error_rate(own["best_valid_error_rate"], counted=False),
            "test": error_rate(own["test_error_rate"], counted=False),
            "test, precise": error_rate(precise) if len(precise) else NOTHING,
            "time": duration(own["wall_seconds"]),
            "the post's": percent(published.BEST.get(cell, math.nan)),
        })  # fmt: skip
    return pd.DataFrame(rows)


def duration(seconds: Sequence[float]) -> str:
    """Writes times in the unit that fits their mean."""
    mean = sum(seconds) / len(seconds)
    size, unit = (3600, " h") if mean >= 7200 else (60, " min") if mean >= 120 else (1, " s")
    return with_error([each / size for each in seconds], unit)


def every_run(runs: pd.DataFrame) -> pd.DataFrame:
    """A row for each run, those in progress too, with its hardware and commit."""
    rows = []
    for run in runs.to_dict("records"):
        finished, best = run["finished"], percent(run["best_valid_error_rate"])
        # Ten digits tell commits apart; that files differed from it must not be cut off.
        commit, dirty, _ = (run["commit"] if finished else NOTHING).partition("-dirty")
        done = f"{run['epochs']}" if finished else f"{run['epochs']} of {run['num_epochs']}"
        rows.append({
            "run": f"`{run['folder']}`",
            "seed": str(run["seed"]),
            "epochs": done,
            "stood still": str(run["stood_still"]),
            "best validation": best if finished else f"{best} so far",
            "test": percent(run["test_error_rate"]) if finished else NOTHING,
            "time": duration([run["wall_seconds"]]) if finished else NOTHING,
            "hardware": run["hardware"] if finished else NOTHING,
            "commit": commit[:10] + dirty,
        })  # fmt: skip
    return pd.DataFrame(rows)
