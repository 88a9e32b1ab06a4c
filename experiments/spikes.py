"""Spikes of the validation error, and whether the running averages or the weights cause them."""

import math
from typing import Any

import pandas as pd

from experiments.stats import SEARCH_SIGMAS, points

# Published spikes are larger, tens of percentage points; the changes of a converging run between
# epochs are smaller.
MIN_RISE = 0.03
# A spike has at most this many epochs, between two lower ones. So a steep fall or a lasting rise is
# not a spike.
MAX_LENGTH = 2
# A cause must explain this share of a spike's excess. The excess does not include a lag that the
# epochs around the spike have, too.
MIN_SHARE = 0.5

AVERAGES, WEIGHTS, UNDECIDED = "averages", "weights", "undecided"
CAUSES = (AVERAGES, WEIGHTS, UNDECIDED)
RUNNING, PRECISE, BATCH = (f"valid/error_rate_{kind}" for kind in ("running", "precise", "batch"))

RULE = (
    f"A spike is an epoch whose validation error is more than {points(MIN_RISE, sign=False)} and "
    f"{SEARCH_SIGMAS} binomial standard errors above that of two epochs, one before and one after "
    f"it, with at most {MAX_LENGTH} epochs in between. The first epoch cannot be a spike; the last "
    f"is compared with the lowest of the {MAX_LENGTH} before it. A spike's excess is how much the "
    "error by running averages, on the compared images, is above that of the higher of the two "
    f"epochs. If the error by precise statistics rises by at least {MIN_SHARE:.0%} of the excess, "
    "the weights cause the spike, otherwise the averages. If the compared images do not show the "
    "spike, its cause is undecided."
)


def find_spikes(epochs: pd.DataFrame, valid_examples: int, compared_examples: int) -> pd.DataFrame:
    """Finds the epochs of high validation error and what caused each.

    Args:
      epochs: a run's epochs, in order, with the names of metrics.jsonl; without the errors by
        running and precise statistics, causes are undecided.
      valid_examples: number of images of `valid/error_rate`; 0 if unknown.
      compared_examples: number of images of the errors by running and precise statistics.

    Returns:
      A row for each spike: epoch, running and precise (errors on the compared images), cause, and
      the reason if the cause is undecided.
    """
    names = {"epoch": "epoch", "valid/error_rate": "valid", RUNNING: "running", PRECISE: "precise"}
    rows = epochs.reindex(columns=list(names)).rename(columns=names).to_dict("records")
    found = []
    for i, row in enumerate(rows):
        base = _base([each["valid"] for each in rows], i)
        if base is not None and _is_high(row["valid"], rows[base]["valid"], valid_examples):
            cause, reason = _find_cause(row, rows[base], compared_examples)
            found.append(row | {"cause": cause, "reason": reason})
    return pd.DataFrame(found, columns=["epoch", "running", "precise", "cause", "reason"])


def _base(valid: list[float], i: int) -> int | None:
    """Returns the epoch that epoch i is compared with: the higher of the lowest pair around it."""
    before = range(max(0, i - MAX_LENGTH), i)
    if i == len(valid) - 1:
        return min(before, key=valid.__getitem__, default=None)
    pairs = [
        max(j, k, key=valid.__getitem__)
        for j in before
        for k in range(i + 1, min(j + MAX_LENGTH + 2, len(valid)))
    ]
    return min(pairs, key=valid.__getitem__, default=None)


def _is_high(error: float, base: float, examples: int) -> bool:
    chance = math.sqrt(error * (1 - error) / examples) if examples else 0.0
    return error - base > max(MIN_RISE, SEARCH_SIGMAS * chance)


def _find_cause(row: dict[str, Any], base: dict[str, Any], compared: int):
    excess, rise = (row[kind] - base[kind] for kind in ("running", "precise"))
    if math.isnan(excess + rise):
        return UNDECIDED, "precise statistics were not measured at it or the compared epoch"
    if not _is_high(row["running"], base["running"], compared):
        return UNDECIDED, f"on the compared images it is only {points(excess)}: maybe chance"
    return (WEIGHTS if rise >= MIN_SHARE * excess else AVERAGES), ""
