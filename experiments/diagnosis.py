"""Diagnoses a run from its metrics, in sentences, a table and a figure.

It compares running averages, precise statistics and batch statistics, for each layer and by their
errors on the same images; see `bn_vgg.evaluation`.
"""

from collections.abc import Iterator
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, PowerNorm
from matplotlib.figure import Figure

from experiments import spikes
from experiments.plots import COLOURS, DOTTED_EPOCHS, STYLE, WIDTH
from experiments.spikes import BATCH, PRECISE, RUNNING
from experiments.stats import is_significant, percent, points

# The averages' time constant, 200 batches, is about an epoch. After three epochs their initial
# values have a weight of 5%.
FIRST_EPOCHS = 3
NOTES = (
    "train: running mean over the epoch's batches. valid: five-crop evaluation, by running "
    "averages unless the configuration says otherwise. running, precise and batch: centre crops "
    "of the compared images, by running averages, by statistics recomputed with the epoch's "
    "weights (PreciseBN), and by each evaluation batch's own; only these three compare with one "
    "another. mean distance: root mean square over channels of (running mean - precise mean), in "
    f"precise standard deviations, of the layer where it is largest.\n\n{spikes.RULE}"
)


def explain(run: dict[str, Any], epochs: pd.DataFrame, found: pd.DataFrame) -> Iterator[str]:
    """Yields sentences on a run of `read_run`, its epochs and its spikes, `found`."""
    if found.empty:
        yield f"There are no spikes in the validation error of {len(epochs)} epochs."
    for cause, rows in found.groupby("cause", sort=False):
        which = _enumerate(rows["epoch"].astype(str))
        if cause == spikes.UNDECIDED:
            yield f"Undecided: epoch {which}; {'; '.join(rows['reason'].unique())}."
            continue
        rates = zip(rows["running"], rows["precise"], strict=True)
        pairs = _enumerate(f"{percent(a)} against {percent(b)}" for a, b in rates)
        yield (
            f"Spikes caused by the {cause}: epoch {which}. Errors there by running averages "
            f"against precise statistics: {pairs}."
        )
    if len(found) and found["epoch"].iloc[-1] == len(epochs):
        yield "The last epoch is one of them: whether its error comes down again is not known."
    yield from _explain_lag(run, epochs)
    if names := layers(epochs, "never_active"):
        last = epochs.dropna(subset=[f"never_active/{name}" for name in names]).iloc[-1]
        shares = {name: last[f"never_active/{name}"] for name in names}
        dead = [f"{share:.1%} of {name}" for name, share in shares.items() if share]
        yield (
            f"Never active over the whole validation set in epoch {last['epoch']:.0f}: "
            f"{_enumerate(dead) if dead else 'no feature map of any layer'}."
        )


def _explain_lag(run: dict[str, Any], epochs: pd.DataFrame) -> Iterator[str]:
    if not {RUNNING, PRECISE} <= set(epochs):
        yield "Running and precise statistics were not compared in this run."
        return
    both = epochs.dropna(subset=[RUNNING, PRECISE])
    first, later = both[both["epoch"] <= FIRST_EPOCHS], both[both["epoch"] > FIRST_EPOCHS]
    for name, some in {"first epochs": first, "last epoch": later.tail(1)}.items():
        parts = []
        for epoch, running, precise in some[["epoch", RUNNING, PRECISE]].to_numpy():
            sure = is_significant(running, precise, run["compared_examples"])
            doubt = "" if sure else ", which may be chance"
            parts.append(f"{points(running - precise)} (epoch {epoch:.0f}{doubt})")
        if parts:
            yield f"Error by running minus by precise statistics, {name}: {_enumerate(parts)}."


def _enumerate(parts) -> str:
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def table(epochs: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """Returns a table of texts with a row for each epoch."""
    shown = epochs[["epoch"]].astype(str)
    for key, (name, *_) in _ERRORS.items():
        if key in epochs and epochs[key].notna().any():
            shown[name] = epochs[key].map(percent)
    if names := layers(epochs, "mean_distance"):
        distances = epochs[[f"mean_distance/{name}" for name in names]].set_axis(names, axis=1)
        shown["mean distance"] = [
            "" if row.isna().all() else f"{row.max():.2g} ({row.idxmax()})"
            for _, row in distances.iterrows()
        ]
    if len(found):
        causes = found.set_index("epoch")["cause"]
        shown["spike of the"] = epochs["epoch"].map(causes).fillna("")
    return shown


# By error: its column in the table, its label in the figure, its colour and line style.
_ERRORS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "train/error_rate": ("train", "training", "grey", {"ls": "--"}),
    "valid/error_rate": ("valid", "validation", "black", {"lw": 2.2}),
    RUNNING: ("running", "running averages*", "vermilion", {"marker": "o"}),
    PRECISE: ("precise", "precise statistics*", "blue", {"marker": "s"}),
    BATCH: ("batch", "batch statistics*", "green", {"marker": "^", "ls": ":"}),
}
# By metric of layers: title, colour map, scale and ticks. The scales are fixed, so that figures of
# two runs can be compared; values beyond are clipped.
_HEATMAPS: dict[str, tuple[str, str, Any, list[float]]] = {
    "mean_distance": (
        "Distance of the running mean from the precise one, in precise standard deviations",
        "Oranges", LogNorm(0.01, 10), [0.01, 0.1, 1, 10],
    ),
    "std_ratio": (
        "Running divided by precise standard deviation",
        "PuOr", LogNorm(1 / 4, 4), [0.25, 0.5, 1, 2, 4],
    ),
    "never_active": (
        "Share of feature maps that are never above 0 over the whole validation set",
        # The square root makes one dead feature map of fifty visible.
        "Blues", PowerNorm(0.5, 0, 1), [0, 0.1, 0.5, 1],
    ),
}  # fmt: skip
_MARKS = {spikes.AVERAGES: "A", spikes.WEIGHTS: "W", spikes.UNDECIDED: "?"}


def layers(epochs: pd.DataFrame, name: str) -> list[str]:
    """Returns the layers with a metric `name`/LAYER, in the order of metrics.jsonl."""
    measured = epochs.dropna(axis="columns", how="all")
    return [key.removeprefix(f"{name}/") for key in measured if key.startswith(f"{name}/")]


def draw(epochs: pd.DataFrame, found: pd.DataFrame, title: str) -> Figure:
    """Draws a run's errors with its spikes and, below, a map over epochs of each layer metric."""
    maps = {name: layers(epochs, name) for name in _HEATMAPS if layers(epochs, name)}
    heights = [3.6, *(0.24 * len(of) for of in maps.values())]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.4 + sum(heights) + 0.5 * len(maps)), layout="constrained")
        figure.suptitle(title, x=0.015, ha="left", size=13, weight="bold")
        panels = np.atleast_1d(figure.subplots(len(heights), sharex=True, height_ratios=heights))
        _draw_errors(panels[0], epochs, found)
        for axes, (name, of) in zip(panels[1:], maps.items(), strict=True):
            _draw_heatmap(axes, epochs, name, of)
        panels[-1].set_xlabel("epoch")
        panels[-1].xaxis.set_major_locator(ticker.MaxNLocator(15, integer=True, min_n_ticks=1))
        panels[0].set_xlim(0.5, len(epochs) + 0.5)
    return figure


def _draw_errors(axes: Axes, epochs: pd.DataFrame, found: pd.DataFrame) -> None:
    for key, (_, name, colour, look) in _ERRORS.items():
        if key in epochs and epochs[key].notna().any():
            rates = epochs[key]
            look = look if len(epochs) <= DOTTED_EPOCHS else look | {"marker": ""}
            name = f"{name} {rates.dropna().iloc[-1]:.1%}"
            axes.plot(epochs["epoch"], rates, color=COLOURS[colour], ms=4, label=name, **look)
    for spike in found.itertuples():
        axes.axvline(spike.epoch, color=COLOURS["grey"], lw=0.8, ls=":", zorder=0.5)
        axes.annotate(
            _MARKS[spike.cause], (spike.epoch, 1), (0, 2), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha="center", weight="bold",
        )  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=0))
    axes.grid(visible=True, axis="y")
    marks = "; spikes by A: averages, W: weights, ?: undecided" if len(found) else ""
    title = f"Error (* centre crops of the compared images{marks})"
    axes.set_title(title, pad=18 if len(found) else 6)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), title="in the last epoch", fontsize=9)


def _draw_heatmap(axes: Axes, epochs: pd.DataFrame, name: str, names: list[str]) -> None:
    """Draws one value for each epoch and layer."""
    title, colours, norm, ticks = _HEATMAPS[name]
    values = epochs[[f"{name}/{layer}" for layer in names]].to_numpy().T
    # Clipped, because 0 has no logarithm.
    image = axes.imshow(
        np.clip(values, norm.vmin, norm.vmax), cmap=colours, norm=norm, aspect="auto",
        interpolation="nearest", extent=(0.5, len(epochs) + 0.5, len(names) - 0.5, -0.5),
    )  # fmt: skip
    axes.set_facecolor("#d9d9d9")
    axes.set_yticks(range(len(names)), names, size=8.5)
    axes.tick_params(length=0, axis="y")
    axes.set_title(title + (" (grey: not measured)" if np.isnan(values).any() else ""))
    bar = axes.figure.colorbar(image, cax=axes.inset_axes((1.015, 0, 0.02, 1)))
    bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    bar.minorticks_off()
