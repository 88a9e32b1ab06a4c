"""What all pictures share: their style, lines named at their ends, and marks of spikes.

Only matplotlib's objects are used, no pyplot, so that nothing needs a display or is global.
"""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.diagnosing.diagnosis import AVERAGES, UNDECIDED, WEIGHTS, Spike

# Okabe and Ito 2008: told apart by colour-blind readers too.
COLOURS = {
    "black": "#000000",
    "grey": "#7f7f7f",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "green": "#009E73",
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
}
# Below a title, so that spikes have room for their marks.
SPIKES_PAD = 18
_CAUSES = {AVERAGES: ("A", "vermilion"), WEIGHTS: ("W", "blue"), UNDECIDED: ("?", "grey")}


def style() -> AbstractContextManager[None]:
    """Within it, figures are made in the style of this project."""
    return matplotlib.rc_context(STYLE)


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG, whatever the path ends in."""
    figure.savefig(path, format="png", dpi=DPI)


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


def mark_spikes(axes: Axes, spikes: list[Spike]) -> str:
    """Writes above each spike what caused it. Returns what that means, for a title.

    That is empty where there are none; otherwise the title needs `SPIKES_PAD` points below it.
    """
    meanings = {AVERAGES: "of the averages", WEIGHTS: "of the weights", UNDECIDED: "undecided"}
    there = [cause for cause in _CAUSES if any(spike.cause == cause for spike in spikes)]
    for spike in spikes:
        letter, colour = _CAUSES[spike.cause]
        axes.annotate(
            letter, (spike.epoch, 1), (0, 2), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha="center", color=COLOURS[colour], weight="bold",
        )  # fmt: skip
    legend = ", ".join(f"{_CAUSES[cause][0]} {meanings[cause]}" for cause in there)
    return f"Spikes: {legend}" if legend else ""
