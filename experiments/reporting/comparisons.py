"""The claims on errors, 1 to 3: each a difference between cells, paired by seed."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from experiments.asking.answers import VALID
from experiments.diagnosing.diagnosis import KINDS, percent, points, value
from experiments.reporting import published, spread
from experiments.reporting.found import Found
from experiments.reporting.verdict import (
    FEWEST_EPOCHS,
    UNDECIDED,
    Cells,
    Verdict,
    conclude,
    pair,
    usable,
    what_is_missing,
)

# Of the gap that augmentation and dropout close, "almost as far" is at least so much.
ALMOST = 0.75
# "In the very beginning": the post's batch-normalized run is worse in its first seven epochs;
# five are what the question `early` trains.
FIRST_EPOCHS = 5
# The figure shows so many of full with cropping. What it does with more is the postscript's.
SHOWN_EPOCHS = 55
LONGER_EPOCHS = 60


class Errors(NamedTuple):
    """Error rates by seed, in the order of the cells, of their first `epochs`."""

    names: tuple[str, ...]
    by_seed: dict[int, list[float]]
    epochs: int


def without_augmentation(cells: Cells) -> Verdict:
    """Claim 1: how much of augmentation's and dropout's gain does batch norm alone bring?"""
    names = ("baseline", "meanonly", "baseline_crop_dropout")
    shown = [published.BEST[name].valid for name in names]
    verdict = Verdict(
        "1",
        "Without augmentation, batch norm brings the network almost as far as augmentation and "
        "dropout do.",
        "The gap is from `baseline` to `baseline_crop_dropout` in best validation error. "
        f"Supported if `meanonly` closes more than {ALMOST:.0%} of it: if the interval of "
        f"(`baseline` - `meanonly`) - {ALMOST} x (`baseline` - `baseline_crop_dropout`) is above "
        "0; contradicted if it is below. Undecided, too, unless the gap's own interval is above "
        "0: of no gap there is no share.",
        f"{', '.join(map(percent, shown))}: {_share(shown)} of the gap.",
    )
    errors = _best_errors(verdict, cells, names, FEWEST_EPOCHS)
    gaps = [none - both for none, _, both in errors.by_seed.values()]
    beyond = [none - own - ALMOST * (none - both) for none, own, both in errors.by_seed.values()]
    title = f"beyond {ALMOST:.0%} of it"
    verdict.rows = _rows(errors, {
        "share of the gap": list(map(_share, errors.by_seed.values())),
        title: list(map(_signed, beyond)),
    })  # fmt: skip
    conclude(verdict, f"What `meanonly` closes {title}", beyond)
    gap = spread.paired_interval(gaps)
    if gap is not None:
        verdict.sentences.append(f"The gap: {spread.in_words(gap)}.")
        if gap.sign < 1:
            verdict.verdict = UNDECIDED
            verdict.missing.append("a gap that is above 0 by its interval")
    return verdict


def at_the_beginning(cells: Cells) -> Verdict:
    """Claim 2: does the batch-normalized network validate worse at first, and is that lag?"""
    names = ("meanonly", "baseline")
    shown = [
        statistics.mean(rate for _, rate in published.curves()[name]["valid"][:FIRST_EPOCHS])
        for name in names
    ]
    verdict = Verdict(
        "2",
        "At the very beginning the batch-normalized network validates worse.",
        "Supported if the interval of `meanonly` - `baseline` is above 0, in mean validation "
        f"error over epochs 1 to {FIRST_EPOCHS}; contradicted if it is below. Runs that are not "
        "finished count. *Lag* is how much higher `meanonly`'s error is by running averages than "
        "by precise statistics in the same epochs, on the same images (centre windows): the part "
        "that is not in the weights.",
        f"{' against '.join(map(percent, shown))} in the figure.",
    )
    runs = usable(cells, names, FIRST_EPOCHS, finished=False)
    verdict.missing = what_is_missing(runs, FIRST_EPOCHS, finished=False)
    by_seed = {
        seed: [statistics.mean(_rates(runs[name][seed], VALID, FIRST_EPOCHS)) for name in names]
        for seed in pair(runs)
    }
    errors = Errors(names, by_seed, FIRST_EPOCHS)
    differences = [own - none for own, none in by_seed.values()]
    lags = [_lag(runs["meanonly"][seed]) for seed in by_seed]
    verdict.rows = _rows(errors, {
        "difference": list(map(_signed, differences)),
        "lag": ["not measured" if lag is None else _signed(lag) for lag in lags],
    })  # fmt: skip
    _say_means(verdict, errors, "Mean")
    conclude(verdict, "Difference", differences)
    measured = [lag for lag in lags if lag is not None]
    if measured:
        verdict.sentences.append(f"Lag: {spread.difference(measured)}.")
    return verdict


def with_cropping(cells: Cells) -> Verdict:
    """Claim 3: is mean-only better than full with random cropping?"""
    names = ("full_crop", "meanonly_crop")
    shown = [published.BEST[name].valid for name in names]
    verdict = Verdict(
        "3",
        "With random cropping mean-only does better than full.",
        "Supported if the interval of `full_crop` - `meanonly_crop` is above 0, in best "
        f"validation error over at most {SHOWN_EPOCHS} epochs, as many as the figure shows of "
        "full; contradicted if it is below.",
        f"{' against '.join(map(percent, shown))} in the figure.",
    )
    return _compare_best(verdict, cells, names, FEWEST_EPOCHS, SHOWN_EPOCHS)


def with_longer_training(cells: Cells) -> Verdict:
    """Claim 3b, of the postscript: does full overtake mean-only given longer training?"""
    names = ("meanonly_crop", "full_crop")
    verdict = Verdict(
        "3b",
        "Given longer training, full overtakes mean-only (the closing post's postscript).",
        "Supported if the interval of `meanonly_crop` - `full_crop` is above 0, in best "
        f"validation error over all epochs of runs of at least {LONGER_EPOCHS}; contradicted if "
        "it is below.",
        f"{percent(published.BEST['meanonly_crop'].valid)} against "
        f"{percent(published.FULL_IN_THE_END)} in the end.",
    )
    return _compare_best(verdict, cells, names, LONGER_EPOCHS, None)


def _compare_best(
    verdict: Verdict, cells: Cells, names: tuple[str, str], fewest: int, most: int | None
) -> Verdict:
    """Decides by the first's best validation error minus the second's."""
    errors = _best_errors(verdict, cells, names, fewest, most)
    differences = [first - second for first, second in errors.by_seed.values()]
    verdict.rows = _rows(errors, {"difference": list(map(_signed, differences))})
    conclude(verdict, "Difference", differences)
    return verdict


def _best_errors(
    verdict: Verdict, cells: Cells, names: tuple[str, ...], fewest: int, most: int | None = None
) -> Errors:
    """Best validation errors of runs over equally many epochs; says them, and what is missing."""
    runs = usable(cells, names, fewest)
    verdict.missing = what_is_missing(runs, fewest)
    seeds = pair(runs)
    epochs = min((runs[name][seed].epochs for name in names for seed in seeds), default=fewest)
    epochs = epochs if most is None else min(epochs, most)
    by_seed = {
        seed: [min(_rates(runs[name][seed], VALID, epochs)) for name in names] for seed in seeds
    }
    errors = Errors(names, by_seed, epochs)
    _say_means(verdict, errors, "Best")
    return errors


def _say_means(verdict: Verdict, errors: Errors, which: str) -> None:
    if errors.by_seed:
        by_name = zip(errors.names, zip(*errors.by_seed.values(), strict=True), strict=True)
        means = ", ".join(f"`{name}` {spread.error_rate(rates)}" for name, rates in by_name)
        verdict.sentences.append(
            f"{which} validation errors of the first {errors.epochs} epochs: {means}."
        )


def _rows(errors: Errors, further: dict[str, list[str]]) -> list[list[str]]:
    """A row for each seed: the cells' errors, then further columns, already as texts."""
    head = ["seed", *(f"`{name}`" for name in errors.names), *further]
    columns = zip(*further.values(), strict=True)
    rows = [
        [str(seed), *map(percent, rates), *texts]
        for (seed, rates), texts in zip(errors.by_seed.items(), columns, strict=True)
    ]
    return [head, *rows]


def _rates(found: Found, key: str, epochs: int) -> list[float]:
    """An error in the first epochs, where it is known; of validation it is in usable runs."""
    rates = (value(line, key) for line in found.run.lines[:epochs])
    return [rate for rate in rates if rate is not None]


def _lag(found: Found) -> float | None:
    """Running minus precise error, mean over the first epochs; None if not measured in all."""
    rates = [_rates(found, KINDS[kind], FIRST_EPOCHS) for kind in ("running", "precise")]
    if any(len(of) < FIRST_EPOCHS for of in rates):
        return None
    running, precise = map(statistics.mean, rates)
    return running - precise


def _share(errors: Sequence[float]) -> str:
    """How much of the gap the middle one of three errors closes."""
    none, own, both = errors
    return f"{(none - own) / (none - both):.0%}" if none > both else "no gap"


def _signed(difference: float) -> str:
    return points(difference, sign=True)
