"""What the post published: best errors of its runs, and its figures' curves."""

import csv
from functools import cache
from pathlib import Path
from typing import NamedTuple

_CURVES = Path(__file__).resolve().parents[1] / "published" / "curves.csv"
# By cell, the figure and the legend of its curves there.
_LEGENDS = {
    "baseline": ("1", "8-layer VGG"),
    "meanonly": ("1", "8-layer VGG with batch-norm"),
    "full_crop": ("2", "full BN"),
    "full_crop_dropout": ("2", "full BN with dropout"),
    "meanonly_crop": ("2", "mean-only BN"),
    "meanonly_crop_dropout": ("2", "mean-only BN with dropout"),
}


class Published(NamedTuple):
    """Errors of one run at 128x128, fractions; None: not published."""

    valid: float
    test: float | None = None


# 100% minus the accuracies: of the post's text and figures (read off to about 0.4 points),
# of the sister post on dropout and cropping without normalization, 8.1% and 5.1%.
BEST = {
    "baseline": Published(0.172),
    "baseline_crop": Published(0.081),
    "baseline_crop_dropout": Published(0.051, 0.055),
    "meanonly": Published(0.068),
    "meanonly_crop": Published(0.041, 0.0472),
    "meanonly_crop_dropout": Published(0.491),
    "full_crop": Published(0.054),
    "full_crop_dropout": Published(0.132),
}
# The closing post's postscript: full with cropping in the end.
FULL_IN_THE_END = 0.036


class Point(NamedTuple):
    """An error rate after an epoch, counted from 1 as everywhere here."""

    epoch: int
    error_rate: float


@cache
def curves() -> dict[str, dict[str, list[Point]]]:
    """The figures' curves by cell and split, `train` or `valid`.

    The figures' axis counts from 0, which is after the first epoch: there it is epoch 1.
    """
    found: dict[str, dict[str, list[Point]]] = {cell: {} for cell in _LEGENDS}
    cells = {legend: cell for cell, legend in _LEGENDS.items()}
    with _CURVES.open(newline="") as file:
        for row in csv.DictReader(file):
            cell = cells[row["figure"], row["legend"]]
            point = Point(int(row["epoch"]) + 1, float(row["error_rate"]))
            found[cell].setdefault(row["split"], []).append(point)
    return found
