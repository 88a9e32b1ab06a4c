"""Pictures: the style that all of them share, and axes of errors and of layers over epochs.

Only matplotlib's objects are used, no pyplot, so that nothing needs a display or is global.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize, PowerNorm
from matplotlib.figure import Figure

from experiments.diagnosing.diagnosis import (
    AVERAGES,
    KINDS,
    UNDECIDED,
    WEIGHTS,
    Line,
    Spike,
    layers,
    value,
)

# Okabe and Ito 2008: told apart by colour-blind readers too.
COLOURS = {
    "black": "#000000",
    "grey": "#7f7f7f",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "purple": "#CC79A7",
}
# 10 inches of 160 dots are 1,600 pixels, on which 10 points are 22 pixels high.
WIDTH, DPI = 10.0, 160
STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid.axis": "y",
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "savefig.dpi": DPI,
}
_NOT_MEASURED = "#d9d9d9"
# Numbers fit into a map's cells, and dots do not hide a line, up to so many epochs.
FEW_EPOCHS, _DOTTED_EPOCHS = 12, 30


class Curve(NamedTuple):
    """How one key of the metrics is drawn over epochs, and called at its end."""

    key: str
    name: str
    look: dict[str, Any]


class Map(NamedTuple):
    """How one measurement of all layers is drawn: epochs across, layers down.

    The scales are fixed, so that two runs' pictures compare; what lies outside has the colour
    of the end.
    """

    name: str
    title: str
    unit: str
    colours: str
    norm: Normalize
    ticks: dict[float, str]
    number: str


CURVES = (
    Curve("train/error_rate", "training", {"color": COLOURS["grey"], "ls": "--"}),
    Curve("valid/error_rate", "validation,\nfive windows", {"color": COLOURS["black"], "lw": 2.2}),
    Curve(KINDS["running"], "running averages*", {"color": COLOURS["vermilion"], "marker": "o"}),
    Curve(KINDS["precise"], "precise statistics*", {"color": COLOURS["blue"], "marker": "s"}),
    Curve(
        KINDS["batch"], "each batch's own*", {"color": COLOURS["green"], "marker": "^", "ls": ":"}
    ),
)
MAPS = (
    Map(
        name="mean_distance",
        title="How far the running mean is from the precise one",
        unit="precise standard\ndeviations",
        colours="Oranges",
        norm=LogNorm(0.01, 10),
        ticks={0.01: "0.01", 0.1: "0.1", 1: "1", 10: "10"},
        number="{:.2g}",
    ),
    Map(
        name="std_ratio",
        title="Running over precise standard deviation (1: they agree)",
        unit="ratio",
        colours="PuOr",
        norm=LogNorm(1 / 4, 4),
        ticks={1 / 4: "1/4", 1 / 2: "1/2", 1: "1", 2: "2", 4: "4"},
        number="{:.2f}",
    ),
    Map(
        name="never_active",
        title="Feature maps that are 0 over the whole validation set",
        unit="share of the layer's",
        colours="Blues",
        # By the square root: one dead map of fifty is to be seen.
        norm=PowerNorm(0.5, 0, 1),
        ticks={0: "0%", 0.1: "10%", 0.5: "50%", 1: "100%"},
        number="{:.0%}",
    ),
)
_CAUSES = {AVERAGES: ("A", "vermilion"), WEIGHTS: ("W", "blue"), UNDECIDED: ("?", "grey")}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Within it, figures are made in the style of this project."""
    with matplotlib.rc_context(STYLE):
        yield


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG, whatever the path ends in."""
    figure.savefig(path, format="png", dpi=DPI)


def draw_errors(axes: Axes, lines: list[Line]) -> None:
    """Draws every error that any line has, in percent over epochs, named at its end."""
    ends: list[tuple[float, str, str]] = []
    for curve in CURVES:
        found = [(line["epoch"], value(line, curve.key)) for line in lines]
        known = [(epoch, 100 * rate) for epoch, rate in found if rate is not None]
        if not known:
            continue
        look: dict[str, Any] = {"marker": "o", "markersize": 4} | curve.look
        # Where lines are many, a dot only where no line goes to.
        if len(known) > _DOTTED_EPOCHS:
            look["marker"] = ""
        axes.plot(*zip(*known, strict=True), **look)
        ends.append((known[-1][1], f"{curve.name} {known[-1][1]:.1f}%", curve.look["color"]))
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(ticker.PercentFormatter(decimals=0))
    axes.set_ylabel("error")
    axes.grid(visible=True, axis="y")
    footnote = any("*" in name for _, name, _ in ends)
    name_ends(axes, ends, footnote)
    if footnote:
        axes.annotate(
            "* centre window of\n  the compared images", (1, 0), (8, 2),
            xycoords="axes fraction", textcoords="offset points", size=8.5, color="#555555",
        )  # fmt: skip


def name_ends(axes: Axes, ends: list[tuple[float, str, str]], footnote: bool = False) -> None:
    """Writes (y, name, colour) beside the right edge, pushed apart where they would overlap.

    Args:
      axes: whose edge.
      ends: of the lines in it.
      footnote: whether to leave room for one at the bottom.
    """
    low, high = axes.get_ylim()
    # A line of text takes so much of the axis, in its own units; the footnote takes two.
    line = 0.19 * (high - low) / (axes.bbox.height / axes.figure.dpi)
    ends = sorted(ends)
    heights = [line * (1 + name.count("\n")) for _, name, _ in ends]
    middles, floor = [], low + 2.6 * line * footnote
    for (y, _, _), height in zip(ends, heights, strict=True):
        middles.append(max(y, floor + height / 2))
        floor = middles[-1] + height / 2
    ceiling = high
    for i in reversed(range(len(ends))):
        middles[i] = min(middles[i], ceiling - heights[i] / 2)
        ceiling = middles[i] - heights[i] / 2
    for middle, (_, name, colour) in zip(middles, ends, strict=True):
        axes.text(
            1.015, middle, name, transform=axes.get_yaxis_transform(), va="center", color=colour
        )


def mark_spikes(axes: Axes, spikes: list[Spike]) -> None:
    """Writes above each spike what caused it, and beside the title what that means."""
    meanings = {AVERAGES: "of the averages", WEIGHTS: "of the weights", UNDECIDED: "undecided"}
    there = [cause for cause in _CAUSES if any(spike.cause == cause for spike in spikes)]
    for spike in spikes:
        letter, colour = _CAUSES[spike.cause]
        axes.annotate(
            letter, (spike.epoch, 1), (0, 2), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha="center", color=COLOURS[colour], weight="bold",
        )  # fmt: skip
    legend = ", ".join(f"{_CAUSES[cause][0]} {meanings[cause]}" for cause in there)
    axes.set_title(f"Error. Spikes: {legend}" if legend else "Error", pad=18 if legend else 6)


def draw_map(axes: Axes, lines: list[Line], spec: Map) -> None:
    """Draws one value for each epoch and layer, with its colours' scale on the right."""
    names = layers(lines, spec.name)
    first, last = lines[0]["epoch"], lines[-1]["epoch"]
    values = np.full((len(names), last - first + 1), np.nan)
    for line in lines:
        for row, name in enumerate(names):
            number = value(line, f"{spec.name}/{name}")
            if number is not None:
                values[row, line["epoch"] - first] = number
    # A logarithm knows no 0: it is shown as the low end.
    shown = np.clip(values, spec.norm.vmin, spec.norm.vmax)
    image = axes.imshow(
        shown, cmap=spec.colours, norm=spec.norm, aspect="auto", interpolation="nearest",
        extent=(first - 0.5, last + 0.5, len(names) - 0.5, -0.5),
    )  # fmt: skip
    axes.set_facecolor(_NOT_MEASURED)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0, axis="y")
    axes.spines[:].set_visible(False)
    some_missing = " (grey: not measured)" if np.isnan(values).any() else ""
    axes.set_title(f"{spec.title}{some_missing}")
    bar = axes.figure.colorbar(image, cax=axes.inset_axes((1.015, 0, 0.02, 1)))
    bar.set_ticks(list(spec.ticks), labels=list(spec.ticks.values()))
    bar.minorticks_off()
    bar.outline.set_visible(False)
    bar.set_label(spec.unit)
    if values.shape[1] <= FEW_EPOCHS:
        _write_numbers(axes, first, values, spec)


def _write_numbers(axes: Axes, first: int, values: np.ndarray, spec: Map) -> None:
    for (row, column), number in np.ndenumerate(values):
        if np.isfinite(number):
            red, green, blue, _ = matplotlib.colormaps[spec.colours](float(spec.norm(number)))
            bright = 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.5
            axes.text(
                first + column, row, spec.number.format(number), ha="center", va="center",
                size=8.5, color="black" if bright else "white",
            )  # fmt: skip
