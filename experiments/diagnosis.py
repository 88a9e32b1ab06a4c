"""What a run's metrics say: its spikes, and whether the averages or the weights cause them.

Everything but `read_run` is a function of the lines of metrics.jsonl, one an epoch, and of how
many images were counted. Any key of a line but `epoch` may be missing.
"""

import json
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from bn_vgg.errors import UserError
from bn_vgg.workdir import Workdir, flatten

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
# The averages' time constant, 200 batches, is about an epoch: after three, 95% of the averages'
# start is forgotten.
FIRST_EPOCHS = 3

# Errors of more spikes than these are given from the least to the most.
_MOST_LISTED = 5

AVERAGES, WEIGHTS, UNDECIDED = "averages", "weights", "undecided"
KINDS = {kind: f"valid/error_rate_{kind}" for kind in ("running", "precise", "batch")}
# What a page shows besides epochs: its name, and its key (up to the layer).
_PARTS = {
    "the training error": "train/error_rate",
    "the validation error": "valid/error_rate",
    "the error by running averages": KINDS["running"],
    "the error by precise statistics": KINDS["precise"],
    "the error by each batch's own statistics": KINDS["batch"],
    "the running means' distance": "mean_distance/",
    "the standard deviations' ratio": "std_ratio/",
    "the share of never active feature maps": "never_active/",
}

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
    """

    epoch: int
    base: int
    excess: float
    cause: str
    running: float | None = None
    precise: float | None = None
    reason: str = ""


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
        flat = flatten(config)
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
    """Returns the last four fields of a `Spike`."""
    running, precise = value(line, KINDS["running"]), value(line, KINDS["precise"])
    from_running, from_precise = value(base, KINDS["running"]), value(base, KINDS["precise"])
    if running is None or precise is None or from_running is None or from_precise is None:
        reason = "there or beside, the error by precise statistics was not measured"
        return UNDECIDED, running, precise, reason
    excess = running - from_running
    if not _is_high(running, from_running, compared):
        reason = f"on the compared images it is only {points(excess)}, which may be chance"
        return UNDECIDED, running, precise, reason
    by_averages = running - precise >= SPIKE_SHARE * excess
    by_weights = precise - from_precise >= SPIKE_SHARE * excess
    if by_averages == by_weights:
        reason = (
            f"precise statistics take away {points(running - precise)} of {points(excess)}, "
            f"and with them the error itself rises by {points(precise - from_precise)}"
        )
        return UNDECIDED, running, precise, reason
    return (AVERAGES if by_averages else WEIGHTS), running, precise, ""


def explain(
    lines: list[Line], config: dict[str, Any] | None = None, sizes: Sizes = UNKNOWN
) -> list[str]:
    """Says in plain sentences what the lines show.

    Args:
      lines: of metrics.jsonl, at least one.
      config: of the run, flat; what it does not say is left out.
      sizes: how many images the errors are of.
    """
    config = config or {}
    return [
        *_explain_spikes(lines, sizes),
        *_explain_averages(lines, config, sizes.compared),
        *_explain_batches(lines, sizes.compared),
        *_explain_dead(lines, config),
        *_explain_dropout(config),
        *_explain_missing(lines),
    ]


def _explain_spikes(lines: list[Line], sizes: Sizes) -> Iterable[str]:
    measured = sum(value(line, "valid/error_rate") is not None for line in lines)
    if measured < 2:
        yield "Spikes cannot be looked for: that takes two epochs with a validation error."
        return
    spikes = find_spikes(lines, sizes)
    if not spikes:
        yield f"There are no spikes in the validation error of {measured} epochs."
    for cause, what in ((AVERAGES, "the running averages"), (WEIGHTS, "in the weights")):
        found = [spike for spike in spikes if spike.cause == cause]
        if found:
            many = "s" if len(found) > 1 else ""
            still, link = ("", "not") if cause == AVERAGES else ("still ", "by running averages")
            yield (
                f"The spike{many} at {_epochs(s.epoch for s in found)} "
                f"{'are' if many else 'is'} {what}: with precise statistics the error there is "
                f"{still}{_percents(s.precise for s in found)}, {link} "
                f"{_percents(s.running for s in found)}."
            )
    for reason in dict.fromkeys(spike.reason for spike in spikes if spike.reason):
        found = [spike for spike in spikes if spike.reason == reason]
        many = "spikes" if len(found) > 1 else "spike"
        yield f"Undecided: the {many} at {_epochs(s.epoch for s in found)}; {reason}."
    if spikes and spikes[-1].epoch == lines[-1]["epoch"]:
        yield "The last epoch is such a spike: whether its error comes down again is not known."


def _explain_averages(lines: list[Line], config: dict[str, Any], compared: int | None):
    """In the beginning and at the end."""
    both = list(_both(lines, "running", "precise"))
    early = [some for some in both if some[0]["epoch"] <= FIRST_EPOCHS]
    late = both[-1:] if both[-1:] != early[-1:] else []
    for name, some in (("In the beginning", early), ("In the end", late)):
        found = []
        for line, running, precise in some:
            if not noticeable(running, precise, compared, FEW_EPOCHS_ERRORS):
                verdict = "may be chance"
            elif running > precise:
                verdict = f"the averages cost {points(running - precise)}"
            else:
                verdict = f"the averages are better by {points(precise - running)}"
            found.append(
                f"{percent(running)} and {percent(precise)} at epoch {line['epoch']} ({verdict})"
            )
        if found:
            yield f"{name} the errors by running averages and precise statistics are " + (
                f"{_listed(found)}."
            )
    decay, step = config.get("model.norm_decay"), value(lines[0], "step")
    if step and decay and decay < 1 and layers(lines, "mean_distance"):
        yield (
            f"The running averages have a time constant of {1 / (1 - decay):.0f} batches; "
            f"an epoch has {step / lines[0]['epoch']:.0f}."
        )


def _explain_batches(lines: list[Line], compared: int | None) -> Iterable[str]:
    found = list(_both(lines, "batch", "precise"))
    if not found:
        return
    gaps = [batch - precise for _, batch, precise in found]
    clear = [
        line["epoch"]
        for line, batch, precise in found
        if noticeable(batch, precise, compared, MANY_EPOCHS_ERRORS)
    ]
    yield (
        f"By each batch's own statistics the error differs from that by precise ones by "
        f"{points(sum(gaps) / len(gaps), sign=True)} on average over {len(gaps)} "
        f"epoch{'s' * (len(gaps) > 1)} ({100 * min(gaps):+.1f} to {100 * max(gaps):+.1f}); "
        + (f"more than chance at {_epochs(clear)}." if clear else "no epoch's is beyond chance.")
    )


def _both(lines: list[Line], first: str, second: str) -> Iterator[tuple[Line, float, float]]:
    for line in lines:
        a, b = value(line, KINDS[first]), value(line, KINDS[second])
        if a is not None and b is not None:
            yield line, a, b


def _explain_dead(lines: list[Line], config: dict[str, Any]) -> Iterable[str]:
    names = layers(lines, "never_active")
    measured = [line for line in lines if layers([line], "never_active")]
    if not measured:
        return
    widths = {f"block{i}": n for i, n in enumerate(config.get("model.features", []))}
    widths["hidden"] = config.get("model.hidden_units")
    dead = []
    for name in names:
        share = value(measured[-1], f"never_active/{name}")
        if share:
            width = widths.get(name)
            count = f" ({round(share * width)} of {width})" if width else ""
            dead.append(f"{percent(share)} of {name}{count}")
    yield (
        f"Never active over the whole validation set at epoch {measured[-1]['epoch']}: "
        f"{_listed(dead) if dead else 'no feature map of any layer'}."
    )


def _explain_dropout(config: dict[str, Any]) -> Iterable[str]:
    rate, of = config.get("model.dropout_rate"), config.get("model.stats_pass")
    source = {
        "dropout": "the pass with dropout, as in standard frameworks",
        "clean": "a second pass without dropout, as in the original",
    }
    if rate:
        taken = f": running statistics are of {source.get(of, of)}" if of else ""
        yield f"Dropout is on, at a rate of {rate:g}{taken}."


def _explain_missing(lines: list[Line]) -> Iterable[str]:
    """What is not there, or not in every line."""
    count = {part: sum(_has(line, name) for line in lines) for part, name in _PARTS.items()}
    absent = [part for part in _PARTS if not count[part]]
    if absent:
        yield f"Not measured in this run: {_listed(absent)}."
    for n in sorted(set(count.values()) - {0, len(lines)}):
        some = _listed([part for part in _PARTS if count[part] == n])
        yield f"Measured at only {n} of {len(lines)} epochs: {some}."


def _has(line: Line, name: str) -> bool:
    return bool(layers([line], name[:-1])) if name[-1] == "/" else value(line, name) is not None


def percent(rate: float) -> str:
    """0.312 as `31.2%`."""
    return f"{rate:.1%}"


def points(difference: float, *, sign: bool = False) -> str:
    """A difference of two rates as `3.0 points`, with its sign if asked for."""
    return f"{100 * difference:{'+' if sign else ''}.1f} points"


def _percents(rates: Iterable[float | None]) -> str:
    """Each, or from the least to the most where they are many."""
    known = [rate for rate in rates if rate is not None]
    if len(known) > _MOST_LISTED:
        return f"{percent(min(known))} to {percent(max(known))}"
    return _listed([percent(rate) for rate in known])


def _epochs(epochs: Iterable[int]) -> str:
    names = [str(epoch) for epoch in epochs]
    return f"epoch{'s' * (len(names) > 1)} {_listed(names)}"


def _listed(parts: list[str]) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last
