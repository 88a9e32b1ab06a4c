"""The claims on how curves look, 4 and 5: what breaks down with dropout, and what spikes are."""

from experiments.asking.answers import (
    BREAKDOWN_GAP,
    FEWEST_SPIKES,
    MOST_SPIKES,
    cell,
    end_of,
)
from experiments.diagnosing.diagnosis import (
    AVERAGES,
    UNDECIDED,
    WEIGHTS,
    find_spikes,
    percent,
    points,
)
from experiments.reporting.verdict import (
    CONTRADICTED,
    FEWEST_EPOCHS,
    FEWEST_SEEDS,
    SUPPORTED,
    Cells,
    Verdict,
    usable,
    what_is_missing,
)

_DROPOUT = ("meanonly_crop_dropout", "full_crop_dropout")
_NORMALIZED = (
    "meanonly", "meanonly_crop", "meanonly_crop_dropout", "full", "full_crop", "full_crop_dropout",
)  # fmt: skip
# By whether mean-only and full break down, in every seed.
_BREAKDOWNS = {
    (False, True): (SUPPORTED, "Full breaks down and mean-only does not: the text holds."),
    (True, False): (
        CONTRADICTED,
        "Mean-only breaks down and full does not: the figure holds, not the text.",
    ),
    (True, True): (CONTRADICTED, "Both break down: neither the text nor the figure holds."),
    (False, False): (
        CONTRADICTED,
        "Neither breaks down: neither the text nor the figure holds.",
    ),
}


def with_dropout(cells: Cells) -> Verdict:
    """Claim 4: which of mean-only and full breaks down with dropout?"""
    verdict = Verdict(
        "4",
        "Dropout slows mean-only down and drives full crazy (the text; the figure shows the "
        "opposite).",
        "A run breaks down if, over the last half of its epochs, the median of validation minus "
        f"training error is above {points(BREAKDOWN_GAP)}, or if it validates near chance and "
        "trains well below (the rule of `experiments.questions dropout`). Supported if full "
        "breaks down in every seed and mean-only in none; contradicted if in all seeds it is "
        "any other way; undecided if seeds disagree.",
        "by the figure's legend mean-only validates at 51% while its training error falls to "
        "11%, and full learns slowly.",
    )
    runs = usable(cells, _DROPOUT, FEWEST_EPOCHS)
    # Seeds are not compared with one another, so they need not be the same.
    verdict.missing = what_is_missing(runs, FEWEST_EPOCHS, paired=False)
    verdict.rows = [["run", "seed", "validation", "training", "gap", "breaks down"]]
    broken: dict[str, set[bool]] = {name: set() for name in _DROPOUT}
    for name, by_seed in runs.items():
        for seed, found in by_seed.items():
            end = end_of(found.run)
            broken[name].add(bool(end["breaks down"]))
            texts = [cell(of, column) for column, of in end.items()]
            verdict.rows.append([f"`{name}`", str(seed), *texts])
    verdict.sentences = [
        f"`{name}` breaks down in {sum(row[-1] == 'yes' for row in rows)} of {len(rows)} "
        f"run{'s' * (len(rows) != 1)}."
        for name in _DROPOUT
        if (rows := [row for row in verdict.rows if row[0] == f"`{name}`"])
    ]
    if not verdict.missing and all(len(of) == 1 for of in broken.values()):
        mean_only, full = (of.pop() for of in broken.values())
        verdict.verdict, sentence = _BREAKDOWNS[mean_only, full]
        verdict.sentences.append(sentence)
    return verdict


def of_spikes(cells: Cells) -> Verdict:
    """Claim 5: are spikes of the validation error of the averages or of the weights?"""
    verdict = Verdict(
        "5",
        "The spikes of the batch-normalized networks' validation error are the lagging "
        "averages', not the weights'.",
        "Spikes and their causes are found as `experiments.diagnose` finds them, in every "
        f"batch-normalized cell that has {FEWEST_SEEDS} seeds. Supported if at least two thirds "
        f"of the decided spikes are of the averages, contradicted if so many are of the weights; "
        f"undecided with fewer than {FEWEST_SPIKES} decided spikes, or if fewer than "
        f"{FEWEST_SEEDS} runs have one.",
        "spikes of up to tens of points; their cause was not measured.",
    )
    runs = {
        name: by_seed
        for name, by_seed in usable(cells, _NORMALIZED, FEWEST_EPOCHS).items()
        if len(by_seed) >= FEWEST_SEEDS
    }
    verdict.rows = [["run", "seed", "epochs", AVERAGES, WEIGHTS, UNDECIDED]]
    count = dict.fromkeys((AVERAGES, WEIGHTS, UNDECIDED), 0)
    deciding, larger_parts = 0, []
    for name, by_seed in runs.items():
        for seed, found in by_seed.items():
            spikes = find_spikes(found.run.lines, found.run.sizes)
            larger_parts += [spike.larger_part for spike in spikes]
            causes = [spike.cause for spike in spikes]
            of_run = {cause: causes.count(cause) for cause in count}
            deciding += of_run[AVERAGES] + of_run[WEIGHTS] > 0
            count = {cause: count[cause] + of_run[cause] for cause in count}
            texts = map(str, of_run.values())
            verdict.rows.append([f"`{name}`", str(seed), str(found.epochs), *texts])
    if not runs:
        verdict.missing.append(
            f"a batch-normalized cell with {FEWEST_SEEDS} finished runs of at least "
            f"{FEWEST_EPOCHS} epochs"
        )
        return verdict
    decided = count[AVERAGES] + count[WEIGHTS]
    verdict.sentences.append(
        f"{sum(count.values())} spikes in {sum(int(row[2]) for row in verdict.rows[1:])} epochs: "
        f"{count[AVERAGES]} of the averages, {count[WEIGHTS]} of the weights, "
        f"{count[UNDECIDED]} undecided."
    )
    if decided < FEWEST_SPIKES or deciding < FEWEST_SEEDS:
        verdict.missing.append(
            f"{FEWEST_SPIKES} decided spikes, in {FEWEST_SEEDS} runs: there are {decided} in "
            f"{deciding}"
        )
        return verdict
    verdict.sentences.append(
        f"Of the decided ones {percent(count[AVERAGES] / decided)} are the averages'. (The rule "
        "takes what running averages add to the error whole. By its growth alone, beside the "
        f"rise by precise statistics, the larger part is the averages' in "
        f"{larger_parts.count(AVERAGES)} spikes and the weights' in "
        f"{larger_parts.count(WEIGHTS)}.)"
    )
    for cause, holds in ((AVERAGES, SUPPORTED), (WEIGHTS, CONTRADICTED)):
        if count[cause] >= MOST_SPIKES * decided:
            verdict.verdict = holds
    return verdict
