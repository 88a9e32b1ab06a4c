"""The post's two figures, redrawn from runs, and one of what else there is.

In the post's two the published curves are beneath in grey.
"""

import textwrap
from typing import Any, NamedTuple

from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.asking.answers import TRAIN, VALID
from experiments.diagnosing.diagnosis import value
from experiments.figures import COLOURS, WIDTH, name_ends, style
from experiments.reporting import published
from experiments.reporting.sections import BySeed, Section

# Inches: of the figure's height, left of the axes, right of them for names, above, below.
_HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 5.0, 0.65, 2.25, 0.72, 0.5
_GREY, _LIGHT = "#9a9a9a", "#c4c4c4"
# The axis has room for so many epochs at least, and dots for single epochs up to so many.
_FEWEST_EPOCHS, _DOTTED_EPOCHS = 15, 20
# Characters that fit on the right.
_LONGEST_NAME = 24
# Of what is not the grid's: names are long, and there is a colour for so many.
_RIGHT_OF_OTHERS = 4.1
_OTHERS = [
    COLOURS[name] for name in ("vermilion", "blue", "green", "orange", "purple", "sky", "black")
]
_LOOKS: dict[str, dict[str, Any]] = {
    VALID: {"ls": "-", "lw": 1.9},
    TRAIN: {"ls": (0, (4, 2)), "lw": 1.3},
}
_PUBLISHED_LOOKS: dict[str, dict[str, Any]] = {
    "valid": {"ls": "-", "lw": 1.2},
    "train": {"ls": (0, (4, 2)), "lw": 0.9},
}


class Spec(NamedTuple):
    """One of the post's figures: its title, its axis of errors, and its cells."""

    title: str
    highest: float
    cells: dict[str, tuple[str, str]]


FIGURES = {
    "figure1": Spec("Batch normalization without data augmentation", 0.5, {
        "baseline": ("none", "black"),
        "meanonly": ("mean-only", "vermilion"),
    }),
    "figure2": Spec("Batch normalization with random cropping", 0.6, {
        "full_crop": ("full", "blue"),
        "full_crop_dropout": ("full, dropout", "sky"),
        "meanonly_crop": ("mean-only", "vermilion"),
        "meanonly_crop_dropout": ("mean-only, dropout", "orange"),
    }),
}  # fmt: skip


class Point(NamedTuple):
    """An epoch of several seeds: error rates, and how many seeds have got there."""

    epoch: int
    mean: float
    least: float
    most: float
    seeds: int


def course(by_seed: BySeed, key: str) -> list[Point]:
    """Mean and range over seeds of an error, for each epoch that any of them has."""
    rates: dict[int, list[float]] = {}
    for found in by_seed.values():
        for line in found.run.lines:
            rate = value(line, key)
            if rate is not None:
                rates.setdefault(line["epoch"], []).append(rate)
    return [
        Point(epoch, sum(of) / len(of), min(of), max(of), len(of))
        for epoch, of in sorted(rates.items())
    ]


def draw(name: str, section: Section) -> Figure | None:
    """Draws `figure1` or `figure2`; None if the section has no run of its cells."""
    spec = FIGURES[name]
    cells = {cell: section.cells[cell] for cell in spec.cells if cell in section.cells}
    if not cells:
        return None
    with style():
        size = f"{section.side}x{section.side}"
        epochs = _most_epochs(cells)
        figure, axes = _frame(
            f"{spec.title}, {size}", " Grey: the post's runs, at 128x128.", epochs, spec.highest
        )
        ends = []
        for cell, (label, _) in spec.cells.items():
            ends += _draw_published(axes, cell, f"post: {label}", epochs)
        for cell, by_seed in cells.items():
            label, colour = spec.cells[cell]
            ends += _draw_runs(axes, by_seed, label, COLOURS[colour])
        name_ends(axes, ends)
    return figure


def draw_others(section: Section) -> Figure | None:
    """Draws what else than the grid's cells a section has, and the cells that it is made of.

    As many as there are colours for; None where there is nothing else.
    """
    bases = {(label.partition(": ")[2] or label).split(", ")[0] for label in section.others}
    groups = section.others | {cell: of for cell, of in section.cells.items() if cell in bases}
    shown = dict(list(groups.items())[: len(_OTHERS)])
    if not section.others:
        return None
    rates = [
        point.mean for by_seed in shown.values() for key in _LOOKS for point in course(by_seed, key)
    ]
    left_out = len(groups) - len(shown)
    more = f" {left_out} more are in the table alone." if left_out else ""
    with style():
        title = f"Other configurations, {section.side}x{section.side}"
        figure, axes = _frame(
            title, more, _most_epochs(shown), min(1.0, 1.1 * max(rates)), right=_RIGHT_OF_OTHERS
        )
        ends = []
        for (label, by_seed), colour in zip(shown.items(), _OTHERS, strict=False):
            name = label.partition(": ")[0]
            ends += _draw_runs(axes, by_seed, textwrap.shorten(name, 2 * _LONGEST_NAME), colour)
        name_ends(axes, ends)
    return figure


def _most_epochs(groups: dict[str, BySeed]) -> int:
    """That the axis has room for."""
    epochs = (each.epochs for by_seed in groups.values() for each in by_seed.values())
    return max(_FEWEST_EPOCHS, *epochs)


def _frame(
    title: str, note: str, epochs: int, highest: float, right: float = _RIGHT
) -> tuple[Figure, Axes]:
    """Makes a figure of errors over epochs, without them."""
    figure = Figure(figsize=(WIDTH, _HEIGHT))
    figure.text(0.15 / WIDTH, 1 - 0.14 / _HEIGHT, title, va="top", size=13, weight="bold")
    figure.text(
        0.15 / WIDTH, 1 - 0.45 / _HEIGHT,
        "Solid: validation; dashed: training. Mean over seeds; shaded: from the least to the "
        f"most of them.{note}",
        va="top", size=9, color="#555555",
    )  # fmt: skip
    axes = figure.add_axes((
        _LEFT / WIDTH, _BOTTOM / _HEIGHT,
        1 - (_LEFT + right) / WIDTH, 1 - (_TOP + _BOTTOM) / _HEIGHT,
    ))  # fmt: skip
    axes.set_xlim(1, epochs)
    axes.set_ylim(0, highest)
    axes.yaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=0))
    axes.xaxis.set_major_locator(ticker.MaxNLocator(12, integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")
    axes.set_ylabel("error rate")
    axes.grid(visible=True, axis="y")
    return figure, axes


def _draw_published(axes: Axes, cell: str, label: str, epochs: int):
    """Draws a published run's two curves. Returns where the validation error ends, as a list."""
    ends = []
    for split, of in published.curves()[cell].items():
        points = [point for point in of if point.epoch <= epochs]
        look = _PUBLISHED_LOOKS[split]
        axes.plot(*zip(*points, strict=True), color=_LIGHT, zorder=1.5, **look)
        if split == "valid":
            ends.append((points[-1].error_rate, label, _GREY))
    return ends


def _draw_runs(axes: Axes, by_seed: BySeed, label: str, colour: str):
    """Draws a cell's two curves. Returns where the validation error ends, as a list."""
    ends = []
    for key, look in _LOOKS.items():
        points = course(by_seed, key)
        if not points:
            continue
        several = [point for point in points if point.seeds > 1]
        axes.fill_between(
            [p.epoch for p in several], [p.least for p in several], [p.most for p in several],
            color=colour, alpha=0.15 if key == VALID else 0.1, lw=0, zorder=2,
        )  # fmt: skip
        whole = [point for point in points if point.seeds == len(by_seed)]
        # Thin, and not joined to it, where a seed is missing: the mean is of others there.
        rest = [point for point in points if point.seeds < len(by_seed)]
        look = look | {"color": colour, "zorder": 3}
        if len(points) <= _DOTTED_EPOCHS and key == VALID:
            look |= {"marker": "o", "markersize": 3.5}
        axes.plot([p.epoch for p in whole], [p.mean for p in whole], **look)
        if rest:
            thin = look | {"lw": 0.8, "alpha": 0.8}
            axes.plot([p.epoch for p in rest], [p.mean for p in rest], **thin)
        if key == VALID:
            left = points[-1].seeds
            of = f" of {len(by_seed)}" if left < len(by_seed) else ""
            count = f"{left}{of} seed{'s' * (len(by_seed) != 1)}"
            gap = " " if len(label) + len(count) <= _LONGEST_NAME else "\n"
            ends.append((points[-1].mean, f"{label},{gap}{count}", colour))
    return ends
