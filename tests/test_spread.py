"""Means with their spread, and intervals of paired differences."""

import numpy as np
import pytest

from experiments.reporting import spread


def test_a_mean_is_never_without_its_spread():
    # By hand: deviations -1, 0, 1 of a mean of 2; 1 / sqrt(3) = 0.577.
    assert spread.error_rate([0.01, 0.02, 0.03]) == "2.0% ± 0.6 (3 seeds)"
    assert spread.error_rate([0.01, 0.02, 0.03], counted=False) == "2.0% ± 0.6"
    assert spread.error_rate([0.135]) == "13.5% (1 seed)"
    assert spread.error_rate([0.135], counted=False) == "13.5% (1 seed)"
    assert spread.difference([0.01, 0.03]) == "2.0 points ± 1.0 (2 seeds)"


def test_the_t_interval_of_three():
    """The 97.5% point of Student's t with two degrees of freedom is 4.303 (any table)."""
    found = spread.paired_interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    half = 4.3027 / np.sqrt(3)
    np.testing.assert_allclose(found.student, (2 - half, 2 + half), rtol=1e-4)


def test_the_bootstrap_of_three_reaches_from_the_least_to_the_largest():
    """Three times the least one is drawn once in 27: more often than 2.5%."""
    assert spread.paired_interval([1.0, 2.0, 6.0]).bootstrap == (1.0, 6.0)


def test_the_bootstrap_of_many_is_that_of_the_normal_distribution():
    """1.96 standard errors to each side, for 200 numbers; and the same for each call."""
    values = list(np.random.default_rng(1).normal(3, 2, 200))
    found = spread.paired_interval(values)
    half = 1.96 * spread.standard_error(values)
    np.testing.assert_allclose(
        found.bootstrap, (found.mean - half, found.mean + half), atol=0.1 * half
    )
    np.testing.assert_allclose(found.student, found.bootstrap, atol=0.1 * half)
    assert spread.paired_interval(values) == found


@pytest.mark.parametrize(
    ("differences", "sign"),
    [
        ([1.0, 1.1, 1.2], 1),
        ([-1.0, -1.1, -1.2], -1),
        ([2.0, 2.0, 2.0], 1),  # no spread at all
        ([0.0, 0.0, 0.0], 0),
        ([-0.1, 0.1, 0.3], 0),
        # All on one side: the bootstrap alone would be sure of it, Student's t is not.
        ([0.2, 1.0, 2.0], 0),
        # The other way round: of many, one that pulls the mean up makes t's interval wide.
        ([0.1] * 19 + [40.0], 0),
    ],
)
def test_both_intervals_decide(differences, sign):
    assert spread.paired_interval(differences).sign == sign


def test_one_has_no_interval():
    assert spread.paired_interval([1.0]) is None
    assert spread.standard_error([1.0]) is None


def test_words():
    found = spread.Interval(0.012, (-0.02, 0.044), (0.001, 0.02))
    assert spread.in_words(found) == (
        "+1.2 points, by Student's t -2.0 to +4.4, by bootstrap +0.1 to +2.0"
    )
