"""What a run's metrics say: its spikes, and whether the averages or the weights cause them.

Everything but `read_run` is a function of the lines of metrics.jsonl, one an epoch, and of how
many images were counted. Any key of a line but `epoch` may be missing.
"""

import json
import math
from typing import Any, NamedTuple

from bn_vgg.errors import UserError
from bn_vgg.run_dir import Workdir, flatten, with_added

# The published spikes are of tens of percent. Three points are less than any of those and more
# than a converging run changes from epoch to epoch.
SPIKE_POINTS = 0.03
# Two low epochs enclose a spike of at most so many: two high ones do not hide each other, but a
# steep fall, or a rise that stays, is no spike.
SPIKE_WIDTH = 2
# Of a spike's excess: what explains half of it is its cause.
SPIKE_SHARE = 0.5
# Standard errors that count where every epoch is looked at: chance alone passes three of them
# once in 740 epochs, two of them once or twice in 60.
MANY_EPOCHS_ERRORS = 3
# Where a few epochs are looked at that were chosen beforehand.
FEW_EPOCHS_ERRORS = 2

AVERAGES, WEIGHTS, UNDECIDED = "averages", "weights", "undecided"
KINDS = {kind: f"valid/error_rate_{kind}" for kind in ("running", "precise", "batch")}

Line = dict[str, Any]


class Sizes(NamedTuple):
    """Images behind an error: of the validation split, of its compared subset; None: unknown."""

    valid: int | None = None
    compared: int | None = None


UNKNOWN = Sizes()


class Run(NamedTuple):
    """A run's folder, read. `config` is flat: `model.norm`."""

    lines: list[Line]
    config: dict[str, Any]
    sizes: Sizes


class Spike(NamedTuple):
    """An epoch whose validation error is high for no longer than `SPIKE_WIDTH` epochs.

    Attributes:
      epoch: where it is, from 1.
      base: the epoch that it is measured from.
      excess: of `valid/error_rate` over that epoch's, a fraction.
      cause: `AVERAGES`, `WEIGHTS` or `UNDECIDED`.
      running: error on the compared images at `epoch`, by running averages; None: not measured.
      precise: the same by precise statistics.
      reason: why it is undecided.
      larger_part: of the excess on the compared images: the growth of what running averages add,
        `AVERAGES`, or the rise by precise statistics, `WEIGHTS`; `UNDECIDED`: not measured, or
        within chance. `cause` takes what the averages add whole, not its growth alone, and so
        leans towards them where they lag all the time.
    """

    epoch: int
    base: int
    excess: float
    cause: str
    running: float | None = None
    precise: float | None = None
    reason: str = ""
    larger_part: str = UNDECIDED


def read_run(path: str) -> Run:
    """Reads what is needed of a run's folder; the run may still go on.

    Raises:
      UserError: it holds no run, no epoch is finished, or a file is damaged.
    """
    workdir = Workdir(path, writes=False)
    try:
        if workdir.exists("config.json") or not workdir.exists("result.json"):
            config = workdir.read("config.json")
        else:  # recorded results come without it
            config = workdir.read("result.json").get("config", {})
        data = workdir.read("data.json") if workdir.exists("data.json") else {}
        name = workdir.path / "metrics.jsonl"
        texts = name.read_text().splitlines() if name.exists() else []
        flat = flatten(with_added(config))
        valid = data.get("examples", {}).get("valid") or flat.get("data.valid_examples")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (AttributeError, UnicodeDecodeError) as error:
        raise UserError(f"a JSON file in {path} is damaged: {error}") from error
    if not texts:
        raise UserError(f"{path} has no finished epoch yet: there is no line in metrics.jsonl")
    lines: list[Line] = []
    for number, text in enumerate(texts, start=1):
        lines.append(_parse(text, f"{name}, line {number}"))
        if len(lines) > 1 and lines[-2]["epoch"] >= lines[-1]["epoch"]:
            raise UserError(f"{name}, line {number} is damaged: its epoch does not follow")
    compared = flat.get("eval.compared_examples")
    if compared and valid:
        compared = min(compared, valid)
    return Run(lines, flat, Sizes(valid, compared or None))


def _parse(text: str, where: str) -> Line:
    try:
        line = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is damaged: {error}") from error
    if not isinstance(line, dict) or type(line.get("epoch")) is not int or line["epoch"] < 1:
        raise UserError(f"{where} is damaged: it is no object with an epoch from 1")
    return line


def value(line: Line, key: str) -> float | None:
    """The number under `key`; None where there is none or it is not finite."""
    found = line.get(key)
    return float(found) if isinstance(found, int | float) and math.isfinite(found) else None


def layers(lines: list[Line], name: str) -> list[str]:
    """The layers that have `name`/layer in any line, in the network's order."""
    keys = {key for line in lines for key in line if value(line, key) is not None}
    found = {key.removeprefix(f"{name}/") for key in keys if key.startswith(f"{name}/")}
    blocks = [layer for layer in found if layer.startswith("block") and layer[5:].isdecimal()]
    return sorted(blocks, key=lambda layer: int(layer[5:])) + sorted(found - set(blocks))


def standard_error_bound(a: float, b: float, examples: int) -> float:
    """The most that the standard error of a - b can be, of two errors on the same images.

    Only images that one gets right and the other wrong make a difference, a share of at most
    a + b and 2 - a - b. (McNemar's test counts them; they are not recorded, so this is
    conservative: two that agree on most images differ by chance much less.)
    """
    return math.sqrt(max(0.0, min(a + b, 2 - a - b) - (a - b) ** 2) / examples)


def noticeable(a: float, b: float, examples: int | None, errors: int) -> bool:
    """Whether |a - b| is more than so many standard errors; than 3 points for unknown counts."""
    if not examples:
        return abs(a - b) > SPIKE_POINTS
    return abs(a - b) > errors * standard_error_bound(a, b, examples)


def find_spikes(lines: list[Line], sizes: Sizes = UNKNOWN) -> list[Spike]:
    """Finds the epochs of high validation error and what caused it.

    The first epoch is none: nothing was low before it. The last one is compared with those
    before it alone, so whether its error comes down again is not known.
    """
    measured = [line for line in lines if value(line, "valid/error_rate") is not None]
    spikes = []
    for i, line in enumerate(measured):
        base = _base(measured, i)
        if base and _is_high(_valid(line), _valid(base), sizes.valid):
            cause = _find_cause(line, base, sizes.compared)
            excess = _valid(line) - _valid(base)
            spikes.append(Spike(line["epoch"], base["epoch"], excess, *cause))
    return spikes


def _base(measured: list[Line], i: int) -> Line | None:
    """What epoch i is measured from: the higher of the two lowest that enclose it closely."""
    before = range(max(0, i - SPIKE_WIDTH), i)
    if i == len(measured) - 1:
        return min((measured[j] for j in before), key=_valid, default=None)
    pairs = [
        max(measured[j], measured[k], key=_valid)
        for j in before
        for k in range(i + 1, min(j + SPIKE_WIDTH + 2, len(measured)))
    ]
    return min(pairs, key=_valid, default=None)


def _valid(line: Line) -> float:
    return line["valid/error_rate"]


def _is_high(error: float, base: float, examples: int | None) -> bool:
    chance = math.sqrt(error * (1 - error) / examples) if examples else 0.0
    return error - base > max(SPIKE_POINTS, MANY_EPOCHS_ERRORS * chance)


def _find_cause(line: Line, base: Line, compared: int | None):
    """Returns the fields of a `Spike` from `cause` on."""
    running, precise = value(line, KINDS["running"]), value(line, KINDS["precise"])
    from_running, from_precise = value(base, KINDS["running"]), value(base, KINDS["precise"])
    if running is None or precise is None or from_running is None or from_precise is None:
        reason = "there or beside, the error by precise statistics was not measured"
        return UNDECIDED, running, precise, reason
    excess = running - from_running
    if not _is_high(running, from_running, compared):
        reason = f"on the compared images it is only {points(excess)}, which may be chance"
        return UNDECIDED, running, precise, reason
    rise = precise - from_precise
    larger_part = WEIGHTS if rise > excess - rise else AVERAGES
    by_averages = running - precise >= SPIKE_SHARE * excess
    by_weights = rise >= SPIKE_SHARE * excess
    if by_averages == by_weights:
        reason = (
            f"precise statistics take away {points(running - precise)} of {points(excess)}, "
            f"and with them the error itself rises by {points(rise)}"
        )
        return UNDECIDED, running, precise, reason, larger_part
    return (AVERAGES if by_averages else WEIGHTS), running, precise, "", larger_part


def percent(rate: float) -> str:
    """0.312 as `31.2%`."""
    return f"{rate:.1%}"


def points(difference: float, *, sign: bool = False) -> str:
    """A difference of two rates as `3.0 points`, with its sign if asked for."""
    return f"{100 * difference:{'+' if sign else ''}.1f} points"
