"""The picture of a run's diagnosis."""

from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize, PowerNorm
from matplotlib.figure import Figure

from experiments.diagnosing.diagnosis import KINDS, Line, Spike, layers, value
from experiments.figures import COLOURS, SPIKES_PAD, WIDTH, mark_spikes, name_ends, style

# Inches: around the axes, of the errors, of a map's row, and between two axes.
_LEFT, _RIGHT, _TOP, _BOTTOM, _ERRORS, _ROW, _BETWEEN = 0.85, 2.05, 0.85, 0.55, 4.0, 0.23, 0.5

_NOT_MEASURED = "#d9d9d9"
# Numbers fit into a map's cells, and dots do not hide a line, up to so many epochs.
_FEW_EPOCHS, _DOTTED_EPOCHS = 12, 30


class _Curve(NamedTuple):
    """How one key of the metrics is drawn over epochs, and called at its end."""

    key: str
    name: str
    look: dict[str, Any]


class _Map(NamedTuple):
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


_CURVES = (
    _Curve("train/error_rate", "training", {"color": COLOURS["grey"], "ls": "--"}),
    _Curve("valid/error_rate", "validation,\nfive windows", {"color": COLOURS["black"], "lw": 2.2}),
    _Curve(KINDS["running"], "running averages*", {"color": COLOURS["vermilion"], "marker": "o"}),
    _Curve(KINDS["precise"], "precise statistics*", {"color": COLOURS["blue"], "marker": "s"}),
    _Curve(
        KINDS["batch"], "each batch's own*", {"color": COLOURS["green"], "marker": "^", "ls": ":"}
    ),
)
_MAPS = (
    _Map(
        name="mean_distance",
        title="How far the running mean is from the precise one",
        unit="precise standard\ndeviations",
        colours="Oranges",
        norm=LogNorm(0.01, 10),
        ticks={0.01: "0.01", 0.1: "0.1", 1: "1", 10: "10"},
        number="{:.2g}",
    ),
    _Map(
        name="std_ratio",
        title="Running over precise standard deviation (1: they agree)",
        unit="ratio",
        colours="PuOr",
        norm=LogNorm(1 / 4, 4),
        ticks={1 / 4: "1/4", 1 / 2: "1/2", 1: "1", 2: "2", 4: "4"},
        number="{:.2f}",
    ),
    _Map(
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


def draw_diagnosis(lines: list[Line], spikes: list[Spike], title: str) -> Figure:
    """Draws the errors and, below and aligned with them, a map of each thing measured."""
    maps = [spec for spec in _MAPS if layers(lines, spec.name)]
    heights = [_ERRORS] + [_ROW * len(layers(lines, spec.name)) for spec in maps]
    total = _TOP + sum(heights) + _BETWEEN * len(maps) + _BOTTOM
    with style():
        figure = Figure(figsize=(WIDTH, total))
        figure.text(0.15 / WIDTH, 1 - 0.12 / total, title, va="top", size=13, weight="bold")
        bottom, every = total - _TOP, []
        for height, spec in zip(heights, [None, *maps], strict=True):
            bottom -= height
            place = (_LEFT / WIDTH, bottom / total, 1 - (_LEFT + _RIGHT) / WIDTH, height / total)
            axes = figure.add_axes(place)
            if spec is None:
                _draw_errors(axes, lines)
                legend = mark_spikes(axes, spikes)
                heading = f"Error. {legend}" if legend else "Error"
                axes.set_title(heading, pad=SPIKES_PAD if legend else 6)
            else:
                _draw_map(axes, lines, spec)
            bottom -= _BETWEEN
            every.append(axes)
        first, last = lines[0]["epoch"], lines[-1]["epoch"]
        for axes in every:
            # Over a map's numbers a line would cross them out.
            covered = axes is not every[0] and last - first < _FEW_EPOCHS
            for spike in [] if covered else spikes:
                axes.axvline(spike.epoch, color=COLOURS["grey"], lw=0.8, ls=":", zorder=0.5)
            axes.set_xlim(first - 0.5, last + 0.5)
            axes.xaxis.set_major_locator(ticker.MaxNLocator(15, integer=True, min_n_ticks=1))
            axes.tick_params(labelbottom=axes is every[-1])
        every[-1].set_xlabel("epoch")
    return figure


def _draw_errors(axes: Axes, lines: list[Line]) -> None:
    """Draws every error that any line has, in percent over epochs, named at its end."""
    ends: list[tuple[float, str, str]] = []
    for curve in _CURVES:
        found = [(line["epoch"], value(line, curve.key)) for line in lines]
        known = [(epoch, 100 * rate) for epoch, rate in found if rate is not None]
        if not known:
            continue
        look: dict[str, Any] = {"marker": "o", "markersize": 4} | curve.look
        # Dots would hide a line of many epochs.
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


def _draw_map(axes: Axes, lines: list[Line], spec: _Map) -> None:
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
    if values.shape[1] <= _FEW_EPOCHS:
        _write_numbers(axes, first, values, spec)


def _write_numbers(axes: Axes, first: int, values: np.ndarray, spec: _Map) -> None:
    for (row, column), number in np.ndenumerate(values):
        if np.isfinite(number):
            red, green, blue, _ = matplotlib.colormaps[spec.colours](float(spec.norm(number)))
            bright = 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.5
            axes.text(
                first + column, row, spec.number.format(number), ha="center", va="center",
                size=8.5, color="black" if bright else "white",
            )  # fmt: skip
