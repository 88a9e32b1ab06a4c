"""What runs say of the very beginning, the post's claim 2: a rule, as in `answers`."""

from typing import Any

from experiments.asking.answers import (
    CHANCE,
    NEAR_CHANCE,
    VALID,
    Answer,
    Runs,
    above,
    cell,
    error,
    minus,
)
from experiments.diagnosing.diagnosis import KINDS, UNDECIDED, Run, value

# Updates are about equal within a tenth: whole epochs need not come closer.
ABOUT = 0.1
# What explains half of a difference is its cause, as in a spike's diagnosis.
HALF = 0.5
NOT_WORSE, LAGGING, NOISY = "not worse", "lagging averages", "noisy batches"


def answer_early(runs: Runs) -> Answer:
    """Is mean-only worse at the very beginning, and why?"""
    seeds = sorted(runs["mean-only"].keys() & runs["baseline"].keys())
    found = [_early_numbers({role: of.get(seed) for role, of in runs.items()}) for seed in seeds]
    named = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    sentences = ["It takes a mean-only run and a baseline of the same seed.", "There is none."]
    if found:
        near = all(abs((of["baseline"] or 0) - CHANCE) <= NEAR_CHANCE for of in found)
        sentences = [
            f"After one epoch the validation error is {_each(found, 'mean-only')} with mean-only "
            f"batch norm and {_each(found, 'baseline')} without ({named})"
            + ("; without, next to nothing has been learnt yet." if near else "."),
            "On the compared images, running averages then cost "
            f"{_each(found, 'lag')} against precise statistics "
            f"({_each(found, 'lag, fast decay')} with decay 0.9), and in the epoch where they "
            f"cost most {_each(found, 'largest lag of all epochs')}.",
        ]
    rows = [["", *(f"seed {seed}" for seed in seeds)]]
    rows += [
        [name, *(cell(of[name], name) for of in found)] for name in (found[0] if found else [])
    ]
    numbers = {"by_seed": dict(zip(seeds, found, strict=True))}
    return Answer("early", _early_verdict(found), sentences, numbers, {"By seed": rows})


def _early_numbers(of_seed: dict[str, Run | None]) -> dict[str, Any]:
    """Of epoch 1 unless the name says otherwise; the names are the table's."""
    own, fast, large = (of_seed.get(role) for role in ("mean-only", "decay 0.9", "batch 400"))
    assert own is not None
    total, plain = error(own, 1, VALID), error(of_seed["baseline"], 1, VALID)
    running, precise, batch = (error(own, 1, key) for key in KINDS.values())
    epochs = [line["epoch"] for line in own.lines]
    lags = [(lag, epoch) for epoch in epochs if (lag := _lag(own, epoch)) is not None]
    largest, largest_at = max(lags, default=(None, None))
    losses = [
        minus(value(line, "train/loss"), error(fast, line["epoch"], "train/loss"))
        for line in own.lines
    ]
    equal = same_updates(large, own)
    return {
        "baseline": plain,
        "mean-only": total,
        "total": minus(total, plain),
        "total above chance": above(total, plain, own.sizes.valid),
        "running averages": running,
        "precise statistics": precise,
        "lag": minus(running, precise),
        "lag above chance": above(running, precise, own.sizes.compared),
        "lag, fast decay": _lag(fast, 1),
        "largest lag of all epochs": largest,
        "epoch of the largest lag": largest_at,
        "evaluation batches' own statistics": batch,
        "noise of evaluation batches (own minus precise)": minus(batch, precise),
        "batch 400, equal epochs, running averages": error(large, 1, KINDS["running"]),
        "batch 400, equal epochs, precise statistics": error(large, 1, KINDS["precise"]),
        "epoch of batch 400 with about equal updates": equal,
        "batch 400, equal updates, running averages": error(large, equal, KINDS["running"]),
        "batch 400, equal updates, precise statistics": error(large, equal, KINDS["precise"]),
        # It changes the averages alone: the losses differ only between machines or versions.
        "training losses equal with fast decay": None
        if all(difference is None for difference in losses)
        else not any(losses),
    }


def _early_verdict(found: list[dict[str, Any]]) -> str:
    worse = [of["total above chance"] for of in found]
    if not found or None in worse:
        return UNDECIDED
    if not any(worse):
        return NOT_WORSE
    if not all(worse) or any(of["lag"] is None for of in found):
        return UNDECIDED
    if all(of["lag above chance"] and of["lag"] >= HALF * of["total"] for of in found):
        kept = [(of["lag, fast decay"], (1 - HALF) * of["lag"]) for of in found]
        if all(fast is not None and fast <= most for fast, most in kept):
            return LAGGING
    if all(of["total"] - of["lag"] >= HALF * of["total"] for of in found):
        return NOISY
    return UNDECIDED


def same_updates(slow: Run | None, fast: Run | None) -> int | None:
    """The epoch of `slow` with about the updates of the first epoch of `fast`, if it has one."""
    wanted = error(fast, 1, "step")
    if slow is None or wanted is None:
        return None
    away = {line["epoch"]: abs((value(line, "step") or 0) - wanted) for line in slow.lines}
    closest = min(away, key=lambda epoch: away[epoch])
    return closest if away[closest] <= ABOUT * wanted else None


def _lag(run: Run | None, epoch: int) -> float | None:
    return minus(*(error(run, epoch, KINDS[kind]) for kind in ("running", "precise")))


def _each(found: list[dict[str, Any]], name: str) -> str:
    return " and ".join(cell(of[name], name) for of in found)
