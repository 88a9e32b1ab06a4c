"""Means, standard errors and intervals over seeds, and how they are written."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special  # SciPy comes with JAX; its `stats` takes a second to import.

# Shown in place of a number that was not measured.
NOT_MEASURED = "–"  # noqa: RUF001
CONFIDENCE = 0.95
# With two seeds Student's interval extends 12.7 standard errors to each side.
MIN_SEEDS = 3
# A training error of at least this, with two classes, means that nothing has been learnt yet.
STANDSTILL_ERROR = 0.47
# Standard errors that count as significant: for a single comparison, and for a search over epochs.
PLANNED_SIGMAS, SEARCH_SIGMAS = 2, 3


class Interval(NamedTuple):
    """Student's two-sided confidence interval of a mean over seeds."""

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
    """Returns the interval of the mean of one value for each seed; None below `MIN_SEEDS`."""
    if len(values) < MIN_SEEDS:
        return None
    mean = float(np.mean(values))
    half = special.stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2) * standard_error(values)
    return Interval(mean, mean - half, mean + half)


def with_error(values: Sequence[float], unit: str) -> str:
    """Formats the mean with its standard error, if there are several values: `13.5% ± 2.1`."""
    error = f" ± {standard_error(values):.1f}" if len(values) > 1 else ""
    return f"{float(np.mean(values)):.1f}{unit}{error}"


def error_rate(rates: Sequence[float], *, counted: bool = True) -> str:
    """Formats seeds' error rates, fractions: `13.5% ± 2.1 (3 seeds)`, `13.5% (1 seed)`."""
    count = f" ({len(rates)} seed{'s' if len(rates) > 1 else ''})" if counted else ""
    return with_error([100 * rate for rate in rates], "%") + count


def percent(rate: float) -> str:
    """Formats 0.312 as `31.2%`."""
    return NOT_MEASURED if math.isnan(rate) else f"{rate:.1%}"


def points(difference: float, *, sign: bool = True) -> str:
    """Formats a difference of two rates as `+3.0 points`."""
    return NOT_MEASURED if math.isnan(difference) else f"{100 * difference:{'+' * sign}.1f} points"


def is_significant(a: float, b: float, examples: int) -> bool:
    """Whether two error rates on the same images differ by more than chance.

    McNemar's test counts the images that only one of the two gets right. Their number is not
    recorded; it is at most a + b and 2 - a - b of all images, which gives the largest possible
    standard error. The difference must exceed `PLANNED_SIGMAS` of these, or 3 points if the number
    of examples is unknown.
    """
    if not examples:
        return abs(a - b) > 0.03
    variance = max(0.0, min(a + b, 2 - a - b) - (a - b) ** 2) / examples
    return abs(a - b) > PLANNED_SIGMAS * math.sqrt(variance)
