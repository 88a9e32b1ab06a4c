"""The claims of the post, each with its decision rule.

The rules were stated before the recorded runs. (For some days claim 2 had another rule. Claim 5's
way to find causes was changed after ten of its runs: the first gave 30 from the averages, 0 from
the weights, 10 undecided.) Each claim is a function of a section's runs and epochs, decorated by
`@claim`; see `experiments.runs`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd

from experiments import spikes
from experiments.presets import CELLS
from experiments.stats import CONFIDENCE, MIN_SEEDS, error_rate, mean_interval, percent, points

SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"
VALID, TRAIN = "valid/error_rate", "train/error_rate"
# By this epoch all the post's runs, except the one that broke down, are past their steepest fall.
# Best errors over fewer epochs would only show how fast a run starts.
MIN_EPOCHS = 15
# "Almost as far" means at least this share of what augmentation and dropout gain.
ALMOST = 0.75
# "The very beginning".
FIRST_EPOCHS = 5
# The figure shows this many epochs of full with cropping; the postscript is on more.
SHOWN_EPOCHS = 55
LONGER_EPOCHS = 60
# The published breakdown is a gap of 40 points; the baseline overfits by less than 20.
BREAKDOWN_GAP = 0.20
# A validation error this close to chance shows that nothing is learnt; a training error this much
# below it shows that something is.
CHANCE, NEAR_CHANCE, BELOW_CHANCE = 0.5, 0.05, 0.10
# With fewer spikes, a single one could change the verdict.
MIN_SPIKES = 3

GENERAL_RULE = (
    "Differences are taken between runs of the same seed. An interval is the two-sided "
    f"{CONFIDENCE:.0%} Student interval of their mean over seeds. With fewer than {MIN_SEEDS} "
    f"seeds a claim is *{UNDECIDED}*. Unless a rule says otherwise, it uses finished runs of at "
    f"least {MIN_EPOCHS} epochs, and best errors over as many epochs as the shortest run has, "
    "because the best of more epochs is lower. The intervals cover training seeds, for one split "
    "of the images, and are not corrected for multiple comparisons: the chance that at least one "
    f"of several claims is decided wrongly is above {1 - CONFIDENCE:.0%}."
)


@dataclass
class Verdict:
    """The verdict on a claim: a word, a sentence with the evidence, and a table of numbers."""

    word: str
    sentence: str
    numbers: pd.DataFrame = field(default_factory=pd.DataFrame)


@dataclass(frozen=True)
class Claim:
    """A claim of the post, and the function of runs and epochs that decides it by its rule."""

    number: str
    text: str
    rule: str
    post: str  # the post's own numbers
    decide: Callable[[pd.DataFrame, pd.DataFrame], Verdict]


CLAIMS: list[Claim] = []


def claim(number: str, text: str, *, rule: str, post: str):
    """Adds the decorated function to the claims."""

    def add(decide):
        CLAIMS.append(Claim(number, text, rule, post, decide))
        return decide

    return add


@claim(
    "1",
    "Without augmentation, batch norm brings the network almost as far as augmentation and dropout "
    "do.",
    rule="The gap is from `baseline` to `baseline_crop_dropout` in best validation error. "
    f"Supported if the interval of (`baseline` - `meanonly`) - {ALMOST} x gap is above 0: if "
    f"`meanonly` closes more than {ALMOST:.0%} of the gap. Contradicted if it is below. Undecided "
    "unless the gap's own interval is above 0.",
    post="17.2%, 6.8% and 5.1%.",
)
def _without_augmentation(runs, epochs):
    # baseline - meanonly - ALMOST * gap; and the gap itself, of the same runs.
    weights = {"baseline": 1 - ALMOST, "meanonly": -1, "baseline_crop_dropout": ALMOST}
    verdict = judge(runs, epochs, weights, f"what `meanonly` closes beyond {ALMOST:.0%}")
    weights = {"baseline": 1, "meanonly": 0, "baseline_crop_dropout": -1}
    gap = judge(runs, epochs, weights, "gap")
    if verdict.word != UNDECIDED and gap.word != SUPPORTED:
        why = f"Needs `baseline_crop_dropout` to be better than `baseline`. {gap.sentence}"
        return Verdict(UNDECIDED, why, verdict.numbers)
    return verdict


@claim(
    "2",
    "At the very beginning the batch-normalized network validates worse.",
    rule="Supported if the interval of `meanonly` - `baseline` is above 0, in mean validation "
    f"error over epochs 1 to {FIRST_EPOCHS}; contradicted if it is below. Unfinished runs count.",
    post="44.9% against 38.0% over epochs 1 to 5; after the first epoch both have 48.7%.",
)
def _at_the_beginning(runs, epochs):
    weights, first = {"meanonly": 1, "baseline": -1}, FIRST_EPOCHS
    runs = runs.assign(finished=True)
    return judge(runs, epochs, weights, min_epochs=first, max_epochs=first, kind="Mean")


@claim(
    "3",
    "With random cropping mean-only does better than full.",
    rule="Supported if the interval of `full_crop` - `meanonly_crop` is above 0, in best "
    f"validation error over at most {SHOWN_EPOCHS} epochs, as many as the figure shows of full; "
    "contradicted if it is below.",
    post="5.4% against 4.1% in the figure.",
)
def _with_cropping(runs, epochs):
    return judge(runs, epochs, {"full_crop": 1, "meanonly_crop": -1}, max_epochs=SHOWN_EPOCHS)


@claim(
    "3b",
    "Given longer training, full overtakes mean-only (a postscript in the series' last post).",
    rule="Supported if the interval of `meanonly_crop` - `full_crop` is above 0, in best "
    f"validation error over as many epochs as the shortest run has, of runs of at least "
    f"{LONGER_EPOCHS}; contradicted if it is below.",
    post="4.1% against 3.6% in the end.",
)
def _with_longer_training(runs, epochs):
    return judge(runs, epochs, {"meanonly_crop": 1, "full_crop": -1}, min_epochs=LONGER_EPOCHS)


@claim(
    "4",
    "Dropout slows mean-only down and drives full crazy (the text; the figure shows the opposite).",
    rule="A run breaks down if, over the last half of its epochs, the median of validation minus "
    f"training error is above {points(BREAKDOWN_GAP, sign=False)}, or the median validation error "
    f"is within {points(NEAR_CHANCE, sign=False)} of chance and that in training at least "
    f"{points(BELOW_CHANCE, sign=False)} lower. Supported if full breaks down in every seed and "
    "mean-only in none; undecided if the seeds of either cell disagree; contradicted otherwise.",
    post="by the figure's legend mean-only validates at 51% while its training error falls to 11%, "
    "and full learns slowly.",
)
def _with_dropout(runs, epochs):
    cells = ["meanonly_crop_dropout", "full_crop_dropout"]
    found = []
    # Cells are not compared by seed, so they may have different seeds.
    chosen, missing = select_runs(runs, cells, paired=False)
    for run in chosen.itertuples():
        own = epochs.loc[epochs["folder"] == run.folder, [VALID, TRAIN]].iloc[run.epochs // 2 :]
        valid, train = own.median()
        gap = (own[VALID] - own[TRAIN]).median()
        stuck = abs(valid - CHANCE) <= NEAR_CHANCE and train <= valid - BELOW_CHANCE
        rates = percent(valid), percent(train), points(gap)
        found.append([run.cell, run.seed, *rates, bool(gap > BREAKDOWN_GAP or stuck)])
    columns = ["run", "seed", "validation", "training", "gap", "breaks down"]
    numbers = pd.DataFrame(found, columns=columns)
    broken = {cell: numbers.loc[numbers["run"] == cell, "breaks down"] for cell in cells}
    sentence = "; ".join(
        f"`{cell}` breaks down in {of.sum()} of {len(of)} runs" for cell, of in broken.items()
    )
    numbers["breaks down"] = numbers["breaks down"].map({True: "yes", False: "no"})
    if missing:
        return Verdict(UNDECIDED, f"{missing} So far {sentence}.", numbers)
    mean_only, full = broken.values()
    agree = mean_only.nunique() == full.nunique() == 1
    decided = SUPPORTED if full.all() and not mean_only.any() else CONTRADICTED
    return Verdict(decided if agree else UNDECIDED, f"{sentence}.", numbers)


@claim(
    "5",
    "The spikes in the batch-normalized networks' validation error come from lagging running "
    "averages, not from the weights.",
    rule="Spikes and their causes are found as `experiments.diagnose` finds them, in every "
    f"batch-normalized cell that has {MIN_SEEDS} seeds. Supported if at least two thirds of the "
    "decided spikes come from the averages, contradicted if two thirds from the weights; undecided "
    f"with fewer than {MIN_SPIKES} decided spikes, or if fewer than {MIN_SEEDS} seeds have "
    "one.",
    post="spikes of up to tens of points; their cause was not measured.",
)
def _of_spikes(runs, epochs):
    cells = [cell for cell in CELLS if not cell.startswith("baseline")]
    selected = [select_runs(runs, [cell]) for cell in cells]
    enough = [chosen for chosen, missing in selected if not missing]
    if not enough:
        seeds = f"{MIN_SEEDS} finished seeds of at least {MIN_EPOCHS} epochs"
        return Verdict(UNDECIDED, f"Needs a batch-normalized cell with {seeds}.")
    chosen = pd.concat(enough)
    found = []
    for run in chosen.itertuples():
        own = epochs[epochs["folder"] == run.folder]
        causes = spikes.find_spikes(own, run.valid_examples, run.compared_examples)["cause"]
        counts = [int((causes == cause).sum()) for cause in spikes.CAUSES]
        found.append([run.cell, run.seed, run.epochs, *counts])
    numbers = pd.DataFrame(found, columns=["run", "seed", "epochs", *spikes.CAUSES])
    averages, weights, undecided = (int(numbers[cause].sum()) for cause in spikes.CAUSES)
    sentence = (
        f"{averages + weights + undecided} spikes in {numbers['epochs'].sum()} epochs: {averages} "
        f"from the averages, {weights} from the weights, {undecided} undecided."
    )
    decided = numbers[spikes.AVERAGES] + numbers[spikes.WEIGHTS]
    word = UNDECIDED
    if decided.sum() >= MIN_SPIKES and numbers[decided > 0]["seed"].nunique() >= MIN_SEEDS:
        # Two thirds, because a bare majority of a few spikes shows nothing.
        word = SUPPORTED if 3 * averages >= 2 * decided.sum() else word
        word = CONTRADICTED if 3 * weights >= 2 * decided.sum() else word
    return Verdict(word, sentence, numbers)


def select_runs(
    runs: pd.DataFrame, cells: list[str], min_epochs: int = MIN_EPOCHS, *, paired: bool = True
) -> tuple[pd.DataFrame, str]:
    """Returns a section's finished runs of at least `min_epochs` epochs, and what is missing.

    With `paired` only seeds that all cells have are used.
    """
    found = runs[runs["cell"].isin(cells) & runs["finished"] & (runs["epochs"] >= min_epochs)]
    counts = {cell: int((found["cell"] == cell).sum()) for cell in cells}
    seeds = found.groupby("seed")["cell"].nunique()
    common = seeds.index[seeds == len(cells)]
    missing = ""
    if min(counts.values()) < MIN_SEEDS:
        there = ", ".join(f"`{cell}` has {count}" for cell, count in counts.items())
        missing = f"Needs {MIN_SEEDS} seeds of at least {min_epochs} epochs: {there}."
    elif paired and len(common) < MIN_SEEDS:
        missing = f"Needs {MIN_SEEDS} seeds that all cells have: there are {len(common)}."
    return (found[found["seed"].isin(common)] if paired else found), missing


def judge(
    runs, epochs, weights, name="difference", *,
    min_epochs=MIN_EPOCHS, max_epochs=None, kind="Best",
):  # fmt: skip
    """Decides a claim by a weighted sum of cells' errors; a sum above 0 supports it.

    `name` describes the sum, `kind` is `Best` or `Mean`. Runs need at least `min_epochs` epochs.
    Errors are of as many epochs as the shortest run has, and at most `max_epochs`.
    """
    chosen, missing = select_runs(runs, list(weights), min_epochs)
    shortest = min([*chosen["epochs"], *([max_epochs] if max_epochs else [])], default=min_epochs)
    own = epochs[epochs["folder"].isin(chosen["folder"]) & (epochs["epoch"] <= shortest)]
    rates = own.groupby(["seed", "cell"])[VALID].agg({"Best": "min", "Mean": "mean"}[kind])
    rates = rates.unstack().reindex(columns=list(weights))
    sums = (rates * pd.Series(weights)).sum(axis=1, skipna=False)
    numbers = rates.map(percent).assign(**{name.replace("`", ""): sums.map(points)}).reset_index()
    interval = mean_interval(sums)
    if missing or interval is None:
        return Verdict(UNDECIDED, missing, numbers)
    word = SUPPORTED if interval.low > 0 else CONTRADICTED if interval.high < 0 else UNDECIDED
    means = ", ".join(f"`{cell}` {error_rate(rates[cell])}" for cell in rates)
    of = f"{kind} validation errors of the first {shortest} epochs"
    sentence = f"{of}: {means}; {name} {interval}."
    return Verdict(word, sentence, numbers)
