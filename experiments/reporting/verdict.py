"""What a verdict on a claim is, and which runs may take part in one."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from experiments.asking.answers import VALID, Table
from experiments.diagnosing.diagnosis import UNDECIDED, value
from experiments.reporting.found import Found
from experiments.reporting.sections import BySeed
from experiments.reporting.spread import CONFIDENCE, RESAMPLES, in_words, paired_interval

SUPPORTED, CONTRADICTED = "supported", "contradicted"
# With two, Student's interval is 12.7 standard errors to each side: it decides nothing real.
FEWEST_SEEDS = 3
# Of the post's runs all but the broken one are past their steepest fall by then, and far from
# their best: a claim on best errors that is decided so early is one on the first 15 epochs.
FEWEST_EPOCHS = 15

SIGNIFICANCE = (
    f"A difference is taken between runs of the same seed; an interval is two-sided, "
    f"{CONFIDENCE:.0%}, of its mean over seeds, and is on one side of 0 only if both Student's "
    f"and the percentile bootstrap's ({RESAMPLES:,} resamples) are. With three seeds the "
    "bootstrap's is crude (from the least to the largest difference) and Student's the one that "
    f"decides. No verdict but *{UNDECIDED}* rests on fewer than {FEWEST_SEEDS} seeds. Unless a "
    f"rule says otherwise it takes finished runs of at least {FEWEST_EPOCHS} epochs, and best "
    "errors over as many epochs as the shortest of them has, as more epochs have more chances. "
    "The intervals are of training seeds, for one split of the images, and each is for its claim "
    "alone: among several claims, one is decided by chance more often than in one case of twenty."
)


@dataclass
class Verdict:
    """On one claim.

    Attributes:
      number: of the claim, `3b`.
      claim: in one sentence.
      rule: by which it is decided.
      published: what the post's own numbers say to it.
      verdict: `SUPPORTED`, `CONTRADICTED` or `UNDECIDED`.
      sentences: on what it rests.
      rows: the numbers by seed; the first row is the head.
      missing: what would have to be there for another verdict than undecided.
    """

    number: str
    claim: str
    rule: str
    published: str
    verdict: str = UNDECIDED
    sentences: list[str] = field(default_factory=list)
    rows: Table = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


Cells = dict[str, BySeed]
_BY_SIGN = {1: SUPPORTED, -1: CONTRADICTED, 0: UNDECIDED}


def usable(cells: Cells, names: Iterable[str], epochs: int, *, finished: bool = True) -> Cells:
    """Returns of each cell the runs that may take part, by seed.

    Args:
      cells: of one section.
      names: of the cells that are wanted.
      epochs: that a run has to have, all with a validation error.
      finished: whether a run must have done all that it is to do.
    """

    def takes_part(found: Found) -> bool:
        if not finished:
            return has_epochs(found, epochs)
        return found.result is not None and has_epochs(found, max(epochs, found.epochs))

    return {
        name: {seed: found for seed, found in cells.get(name, {}).items() if takes_part(found)}
        for name in names
    }


def has_epochs(found: Found, epochs: int) -> bool:
    """Whether each of the first epochs has its line and its validation error."""
    known = [line["epoch"] for line in found.run.lines if value(line, VALID) is not None]
    return known[:epochs] == list(range(1, epochs + 1))


def pair(runs: Cells) -> list[int]:
    """The seeds that all cells have."""
    return sorted(set.intersection(*(set(by_seed) for by_seed in runs.values())))


def what_is_missing(
    runs: Cells, epochs: int, *, finished: bool = True, paired: bool = True
) -> list[str]:
    """Says what keeps a verdict from resting on enough seeds; nothing, if they are enough.

    Args:
      runs: that may take part, by cell.
      epochs: that were asked of them.
      finished: whether they had to be finished.
      paired: whether the seeds have to be the same in all cells.
    """
    which = f"{'finished ' * finished}runs of at least {epochs} epochs"
    short = [
        f"`{name}` has {len(by_seed)} of {FEWEST_SEEDS} {which}"
        for name, by_seed in runs.items()
        if len(by_seed) < FEWEST_SEEDS
    ]
    common = len(pair(runs))
    if paired and not short and common < FEWEST_SEEDS:
        names = ", ".join(f"`{name}`" for name in runs)
        short = [f"{names} have {common} of {FEWEST_SEEDS} seeds in common"]
    return short


def conclude(verdict: Verdict, name: str, differences: list[float]) -> None:
    """Sets the verdict by a difference whose being above 0 supports the claim, and says it.

    Args:
      verdict: to be set.
      name: of the difference.
      differences: one a seed.
    """
    interval = paired_interval(differences)
    if interval is not None:
        verdict.sentences.append(f"{name}: {in_words(interval)}.")
        if len(differences) >= FEWEST_SEEDS:
            verdict.verdict = _BY_SIGN[interval.sign]
