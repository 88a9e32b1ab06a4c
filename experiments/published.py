"""What the post published: best errors of its runs, and its figures' curves."""

from pathlib import Path

import pandas as pd

# Best validation errors of one run each at 128x128, fractions: 100% minus the accuracies of the
# post's text and figures (read off to about 0.4 points); without normalization and with cropping,
# of the sister post on dropout and cropping.
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

    The figures' axis counts from 0, which is after the first epoch: there it is epoch 1 here.
    """
    found = pd.read_csv(Path(__file__).parent / "published/curves.csv")
    return found.assign(epoch=found["epoch"] + 1)
