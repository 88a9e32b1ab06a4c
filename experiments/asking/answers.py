"""What runs say to a question, by a rule that was fixed before they were made.

Pure functions from runs' lines to an answer: nothing is read, written or drawn here. `Runs`
are by role, as `experiments.questions` calls them, and by seed; any may be missing or
unfinished. The rules in words are in `experiments.asking.question_page.RULES`.
"""

import itertools
import statistics
from dataclasses import dataclass, field
from typing import Any

from experiments.diagnosing.diagnosis import (
    AVERAGES,
    FEW_EPOCHS_ERRORS,
    KINDS,
    UNDECIDED,
    WEIGHTS,
    Run,
    find_spikes,
    noticeable,
    percent,
    points,
    value,
)

Runs = dict[str, dict[int, Run]]
Table = list[list[str]]

# With fewer spikes, one more or less would turn the verdict.
FEWEST_SPIKES = 3
# Two of three: the fewest spikes allow no finer share, and a bare majority is no finding.
MOST_SPIKES = 2 / 3
# The published breakdown is of 40 points; the baseline overfits by less than 20.
BREAKDOWN_GAP = 0.20
# An error this close to guessing between two classes is of a network that has learnt nothing
# that shows; one this much below has. Both are many standard errors of 2,500 images (1 point).
CHANCE, NEAR_CHANCE, BELOW_CHANCE = 0.5, 0.05, 0.10

MEAN_ONLY, FULL, BOTH, NEITHER = "mean-only", "full", "both", "neither"
POOLED = ("block1", "block3", "block5", "block7")
VALID, TRAIN = "valid/error_rate", "train/error_rate"
# What the names of differences, in points, begin with.
_DIFFERENCES = ("total", "lag", "largest", "noise", "change", "gap")


ASKED = {
    "early": "Is mean-only batch norm worse at the very beginning, and why?",
    "spikes": "Are spikes of the weights or of the running averages?",
    "dropout": "Which batch norm breaks down with dropout?",
    "cheap": "Is mean-only cheaper?",
}


@dataclass
class Answer:
    """To one question.

    Attributes:
      question: its name.
      verdict: a few words.
      sentences: two, on what it rests.
      numbers: the same by seed, for JSON.
      tables: by title, rows of cells; the first row is the head.
    """

    question: str
    verdict: str
    sentences: list[str]
    numbers: dict[str, Any]
    tables: dict[str, Table] = field(default_factory=dict)


def answer_spikes(runs: Runs) -> Answer:
    """Are spikes of the validation error of the weights or of the running averages?"""
    by_run: dict[str, Any] = {}
    table = [["run", "seed", "epoch", "excess", "running", "precise", "of"]]
    changes: Table = [["run", "seed", "epochs", "by running averages", "by precise statistics"]]
    for role, by_seed in runs.items():
        for seed, run in by_seed.items():
            spikes = find_spikes(run.lines, run.sizes)
            change = {kind: mean_change(run, KINDS[kind]) for kind in ("running", "precise")}
            of_run = {"spikes": [spike._asdict() for spike in spikes], "mean_change": change}
            by_run.setdefault(role, {})[seed] = of_run
            for spike in spikes:
                rates = points(spike.excess), cell(spike.running), cell(spike.precise)
                table.append([role, str(seed), str(spike.epoch), *rates, spike.cause])
            texts = [cell(rate, "change") for rate in change.values()]
            changes.append([role, str(seed), str(len(run.lines)), *texts])
    causes = [row[-1] for row in table[1:]]
    count = {cause: causes.count(cause) for cause in (AVERAGES, WEIGHTS, UNDECIDED)}
    sentences = [
        f"There are {len(causes)} spikes in {sum(int(row[2]) for row in changes[1:])} epochs: "
        f"{count[AVERAGES]} of the running averages, {count[WEIGHTS]} of the weights, "
        f"{count[UNDECIDED]} undecided.",
        "From one epoch to the next the error changes by "
        + "; ".join(f"{row[3]} by running averages, {row[4]} by precise statistics ({row[0]}, "
                    f"seed {row[1]})" for row in changes[1:])
        + ", on average.",
    ]  # fmt: skip
    tables = {"Mean absolute change from epoch to epoch": changes, "Spikes": table}
    return Answer("spikes", _spikes_verdict(count), sentences, by_run | {"causes": count}, tables)


def _spikes_verdict(count: dict[str, int]) -> str:
    decided = count[AVERAGES] + count[WEIGHTS]
    if decided < FEWEST_SPIKES:
        return UNDECIDED
    for cause in (AVERAGES, WEIGHTS):
        if count[cause] >= MOST_SPIKES * decided:
            return cause
    return BOTH


def mean_change(run: Run, key: str) -> float | None:
    """Mean absolute change of an error from epoch to epoch; None below two epochs."""
    known = [rate for line in run.lines if (rate := value(line, key)) is not None]
    return statistics.mean(abs(b - a) for a, b in itertools.pairwise(known)) if known[1:] else None


def answer_dropout(runs: Runs, ratios: dict[str, dict[int, dict[str, float]]]) -> Answer:
    """Which of mean-only and full breaks down with dropout?

    Args:
      runs: of the roles `NORM, clean statistics` and `NORM, dropout statistics`.
      ratios: `experiments.asking.mechanism.ratios`; empty where activations were not measured.
    """
    ends = {role: {seed: end_of(run) for seed, run in of.items()} for role, of in runs.items()}
    verdicts, gaps = {}, {}
    for kind in ("clean", "dropout"):
        of_norm = {
            norm: list(ends[f"{norm}, {kind} statistics"].values()) for norm in (MEAN_ONLY, FULL)
        }
        verdicts[kind] = _which(
            {norm: {end["breaks down"] for end in of} for norm, of in of_norm.items()}
        )
        gaps[kind] = "; ".join(
            f"{norm} " + (", ".join(cell(end["gap"], "gap") for end in of) or "not run")
            for norm, of in of_norm.items()
        )
    grown = [
        f"{norm}'s " + ", ".join(f"{of[name]:.2f}" for name in POOLED if name in of)
        for norm, by_seed in ratios.items()
        for of in by_seed.values()
    ]
    sentences = [
        f"Breaking down with statistics of passes without dropout: {verdicts['clean']} (validation "
        f"minus training error: {gaps['clean']}); with those of the passes with dropout: "
        f"{verdicts['dropout']} ({gaps['dropout']}).",
        f"After the poolings, activations in training are {'; '.join(grown)} times those in "
        "evaluation." if grown else "Activations were not measured.",
    ]  # fmt: skip
    head = ["run", "seed", "validation", "training", "gap", "breaks down"]
    rows = [
        [role, str(seed), *(cell(of, name) for name, of in end.items())]
        for role, by_seed in ends.items()
        for seed, end in by_seed.items()
    ]
    numbers = {"by_run": ends, "verdicts": verdicts, "ratios": ratios}
    tables = {"Medians over the last half of the epochs": [head, *rows]}
    if grown:
        layers = list(next(of for by_seed in ratios.values() for of in by_seed.values()))
        tables["Mean activation in training by that in evaluation"] = [
            ["run", "seed", *layers],
            *([norm, str(seed), *(f"{of[layer]:.2f}" for layer in layers)]
              for norm, by_seed in ratios.items() for seed, of in by_seed.items()),
        ]  # fmt: skip
    return Answer("dropout", verdicts["clean"], sentences, numbers, tables)


def end_of(run: Run) -> dict[str, Any]:
    """Medians over the last half of the epochs, and whether the run breaks down there."""
    pairs = [(value(line, VALID), value(line, TRAIN)) for line in run.lines]
    known = [(valid, train) for valid, train in pairs if valid is not None and train is not None]
    half = known[len(known) // 2 :]
    if len(known) < 2:
        return dict.fromkeys(("valid", "train", "gap", "breaks down"))
    valid, train = (statistics.median(rates) for rates in zip(*half, strict=True))
    gap = statistics.median(valid - train for valid, train in half)
    stuck = abs(valid - CHANCE) <= NEAR_CHANCE and train <= valid - BELOW_CHANCE
    return {"valid": valid, "train": train, "gap": gap, "breaks down": gap > BREAKDOWN_GAP or stuck}


def _which(broken: dict[str, set[bool | None]]) -> str:
    """Names what breaks down, from what was found in the seeds of each norm."""
    if any(of not in ({True}, {False}) for of in broken.values()):
        return UNDECIDED
    named = [norm for norm, of in broken.items() if of == {True}]
    return {0: NEITHER, 2: BOTH}.get(len(named)) or named[0]


def answer_cheap(seconds: dict[str, dict[str, list[float]]]) -> Answer:
    """How much longer does a training step take for normalizing?

    Args:
      seconds: of a step by setting and norm (`none` among them), one of each round.
    """
    numbers: dict[str, Any] = {}
    table = [["setting", "norm", "step", "of none's time", "least", "most"]]
    for setting, by_norm in seconds.items():
        for norm, own in by_norm.items():
            found = [a / b for a, b in zip(own, by_norm["none"], strict=True)]
            spread = {"median": statistics.median(found), "least": min(found), "most": max(found)}
            numbers.setdefault(setting, {})[norm] = spread
            step = f"{1000 * statistics.median(own):.0f} ms"
            table.append([setting, norm, step, *(f"{ratio:.2f}" for ratio in spread.values())])
    texts = [
        f"mean-only {of['mean_only']['median']:.2f}, full {of['full']['median']:.2f} times none's "
        f"time {setting}"
        for setting, of in numbers.items()
    ]
    sentences = [f"A training step takes {texts[0]}.", f"It takes {'; '.join(texts[1:])}."]
    return Answer("cheap", texts[0], sentences, numbers, {"Step times": table})


def error(run: Run | None, epoch: int | None, key: str) -> float | None:
    """The number under `key` at `epoch`; None if there is no such run, epoch or number."""
    lines = run.lines if run else []
    return next((value(line, key) for line in lines if line["epoch"] == epoch), None)


def minus(a: float | None, b: float | None) -> float | None:
    """The difference; None if one of them is not known."""
    return None if a is None or b is None else a - b


def above(a: float | None, b: float | None, examples: int | None) -> bool | None:
    """Whether a is higher than b by more than chance."""
    if a is None or b is None:
        return None
    return a > b and noticeable(a, b, examples, FEW_EPOCHS_ERRORS)


def cell(of: float | bool | None, name: str = "") -> str:
    """A number as text: an error rate in percent, a difference of two in points."""
    if of is None:
        return "not measured"
    if isinstance(of, bool):
        return "yes" if of else "no"
    if isinstance(of, int):
        return str(of)
    return points(of, sign=True) if name.startswith(_DIFFERENCES) else percent(of)
