"""Means with their spread, and intervals of differences that are paired by seed."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special  # SciPy comes with JAX; its `stats` takes a second to import.

# Stands for what was not measured.
NOTHING = "–"  # noqa: RUF001
CONFIDENCE = 0.95
# With two seeds, Student's interval is 12.7 standard errors to each side: it decides nothing.
FEWEST_SEEDS = 3
# A training error of two classes that is not below this says that nothing has been learnt yet.
TAKEN_OFF = 0.47
# Standard errors beyond chance, for one comparison that was chosen beforehand, and where every
# epoch of a run is looked at.
FEW_ERRORS, MANY_ERRORS = 2, 3


class Interval(NamedTuple):
    """Student's two-sided interval of a mean over seeds, as of differences that seeds pair."""

    mean: float
    low: float
    high: float

    def __str__(self):
        low, high = (f"{100 * end:+.1f}" for end in (self.low, self.high))
        return f"{points(self.mean)} ({CONFIDENCE:.0%} interval {low} to {high})"


def standard_error(values: Sequence[float]) -> float:
    """Returns the standard error of the mean of at least two values."""
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Returns the interval of the mean of values, one a seed; None for fewer than two."""
    if len(values) < 2:
        return None
    mean = float(np.mean(values))
    half = special.stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2) * standard_error(values)
    return Interval(mean, mean - half, mean + half)


def with_error(values: Sequence[float], unit: str) -> str:
    """Writes the mean of one value or more with its standard error: `13.5% ± 2.1`."""
    error = f" ± {standard_error(values):.1f}" if len(values) > 1 else ""
    return f"{float(np.mean(values)):.1f}{unit}{error}"


def error_rate(rates: Sequence[float], *, counted: bool = True) -> str:
    """Writes error rates of seeds, fractions: `13.5% ± 2.1 (3 seeds)`, `13.5% (1 seed)`."""
    count = f" ({len(rates)} seed{'s' * (len(rates) > 1)})" if counted else ""
    return with_error([100 * rate for rate in rates], "%") + count


def percent(rate: float) -> str:
    """Writes 0.312 as `31.2%`."""
    return NOTHING if math.isnan(rate) else f"{rate:.1%}"


def points(difference: float, *, sign: bool = True) -> str:
    """Writes a difference of two rates as `+3.0 points`."""
    return NOTHING if math.isnan(difference) else f"{100 * difference:{'+' * sign}.1f} points"


def beyond_chance(a: float, b: float, examples: int | None) -> bool:
    """Tells whether two error rates on the same images differ by more than chance.

    Only images that one gets right and the other wrong make a difference, a share of at most
    a + b and 2 - a - b. How many they are (McNemar's test) is not recorded, so the largest
    standard error is taken, which is conservative. The difference must exceed `FEW_ERRORS` of
    them, and where the number of images is not known 3 points.
    """
    if not examples:
        return abs(a - b) > 0.03
    variance = max(0.0, min(a + b, 2 - a - b) - (a - b) ** 2) / examples
    return abs(a - b) > FEW_ERRORS * math.sqrt(variance)
