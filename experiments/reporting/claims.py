"""The claims of the post, in its order, each decided by a stated rule.

The rules were fixed before the runs were made that they are for, but for claim 2's: it was stated
when two of the three seeds had been run, for the question of the same name.
"""

from collections.abc import Callable

from experiments.reporting import comparisons, patterns
from experiments.reporting.verdict import Cells, Verdict

CLAIMS: tuple[Callable[[Cells], Verdict], ...] = (
    comparisons.without_augmentation,
    comparisons.at_the_beginning,
    comparisons.with_cropping,
    comparisons.with_longer_training,
    patterns.with_dropout,
    patterns.of_spikes,
)


def decide(cells: Cells) -> list[Verdict]:
    """Decides all of them by the runs of one section, by cell and seed."""
    return [claim(cells) for claim in CLAIMS]
