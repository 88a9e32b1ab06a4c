"""The claims of the post, in its order, each decided by a rule that was fixed beforehand."""

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
