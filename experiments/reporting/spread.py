"""Means, their standard errors, and intervals of differences that are paired by seed."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special  # SciPy comes with JAX.

CONFIDENCE = 0.95
RESAMPLES = 10_000
# The same runs give the same page.
_BOOTSTRAP_SEED = 0


class Interval(NamedTuple):
    """Of the mean of a paired difference over seeds, two-sided, `CONFIDENCE`.

    With three seeds the bootstrap's is no more than from the least to the largest of the three,
    which the true mean leaves far more often than in one case of twenty: Student's is honest
    there, and takes the differences as normally distributed. It is the wider one nearly always,
    and so the one that decides; a verdict needs both.

    Attributes:
      mean: of the differences.
      student: ends of the paired t interval.
      bootstrap: ends of the percentile interval over resampled seeds.
    """

    mean: float
    student: tuple[float, float]
    bootstrap: tuple[float, float]

    @property
    def sign(self) -> int:
        """1 or -1 where both intervals are on that side of 0, else 0."""
        low = min(self.student[0], self.bootstrap[0])
        high = max(self.student[1], self.bootstrap[1])
        return int(low > 0) - int(high < 0)


def standard_error(values: Sequence[float]) -> float | None:
    """Of the mean; None of a single value, which has no spread."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def paired_interval(differences: Sequence[float]) -> Interval | None:
    """Intervals of the mean of differences, one a seed; None for fewer than two."""
    error = standard_error(differences)
    if error is None:
        return None
    count, mean = len(differences), statistics.mean(differences)
    half = float(special.stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * error
    rng = np.random.default_rng(_BOOTSTRAP_SEED)
    means = rng.choice(np.asarray(differences), (RESAMPLES, count)).mean(axis=1)
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(means, [tail, 100 - tail])
    return Interval(mean, (mean - half, mean + half), (float(low), float(high)))


def with_spread(
    values: Sequence[float], show: Callable[[float], str], unit: str = "", *, counted: bool = True
) -> str:
    """A mean as text, never without its spread: `13.5% ± 2.1 (3 seeds)`, `13.5% (1 seed)`.

    Args:
      values: one a seed, at least one.
      show: writes a number, without its unit.
      unit: written after the mean, `%`.
      counted: whether to say of how many seeds, where it stands nowhere beside.
    """
    mean, error = show(statistics.mean(values)) + unit, standard_error(values)
    if error is None:
        return f"{mean} (1 seed)"
    count = f" ({len(values)} seeds)" if counted else ""
    return f"{mean} ± {show(error)}{count}"


def error_rate(values: Sequence[float], *, counted: bool = True) -> str:
    """Error rates, fractions, as their mean in percent with its standard error."""
    return with_spread(values, lambda rate: f"{100 * rate:.1f}", "%", counted=counted)


def difference(values: Sequence[float]) -> str:
    """Differences of error rates, as their mean in points with its standard error."""
    return with_spread(values, lambda rate: f"{100 * rate:.1f}", " points")


def in_words(interval: Interval) -> str:
    """The interval of a difference of error rates, in points."""
    student, bootstrap = (
        f"{100 * low:+.1f} to {100 * high:+.1f}"
        for low, high in (interval.student, interval.bootstrap)
    )
    return f"{100 * interval.mean:+.1f} points, by Student's t {student}, by bootstrap {bootstrap}"
