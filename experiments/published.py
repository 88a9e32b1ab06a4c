"""The post's numbers: best errors of its runs, and its figures' curves."""

from pathlib import Path

import pandas as pd

# Best validation errors at 128x128, one run each: 1 minus the accuracies in the post's text and
# figures (read off to about 0.4 points). Those of baseline_crop and baseline_crop_dropout
# are from the post on dropout and cropping of the same series.
BEST = {
    "baseline": 0.172,
    "baseline_crop": 0.081,
    "baseline_crop_dropout": 0.051,
    "meanonly": 0.068,
    "meanonly_crop": 0.041,
    "meanonly_crop_dropout": 0.491,
    "full_crop": 0.054,
    "full_crop_dropout": 0.132,
}


def curves() -> pd.DataFrame:
    """Returns the figures' curves: cell, split (`train` or `valid`), epoch and error_rate.

    The figures count epochs from 0, this code from 1.
    """
    found = pd.read_csv(Path(__file__).parent / "published/curves.csv")
    return found.assign(epoch=found["epoch"] + 1)
