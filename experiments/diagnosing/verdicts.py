"""A run's metrics in plain sentences: its spikes, its running averages, its dead units.

Like the diagnosis that they are made from, they are functions of the lines of metrics.jsonl.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from experiments.diagnosing.diagnosis import (
    AVERAGES,
    FEW_EPOCHS_ERRORS,
    KINDS,
    MANY_EPOCHS_ERRORS,
    UNKNOWN,
    WEIGHTS,
    Line,
    Sizes,
    find_spikes,
    layers,
    noticeable,
    percent,
    points,
    value,
)

# The averages' time constant, 200 batches, is about an epoch: after three, 95% of the averages'
# start is forgotten.
FIRST_EPOCHS = 3
# Errors of more spikes than these are given from the least to the most.
_MOST_LISTED = 5
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
