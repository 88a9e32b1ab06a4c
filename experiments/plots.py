"""The report's figures, with the post's redrawn over seeds, and a common style.

It avoids pyplot and its global state.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bn_vgg import cli
from experiments import published, stats

# Okabe and Ito 2008, for colour-blind readers.
COLOURS = {"black": "#000000", "grey": "#7f7f7f", "green": "#009E73", "blue": "#0072B2",
           "vermilion": "#D55E00"}  # fmt: skip
# Each cell's colour in all figures: green without normalization, red with mean-only, blue with
# full; lighter with more augmentation.
CELL_COLOURS = {
    "baseline": "#00553e", "baseline_crop": "#009E73", "baseline_crop_dropout": "#6fc9ae",
    "meanonly": "#8f2d00", "meanonly_crop": "#D55E00", "meanonly_crop_dropout": "#E69F00",
    "full": "#003f66", "full_crop": "#0072B2", "full_crop_dropout": "#56B4E9",
}  # fmt: skip
POST_COLOUR = "#8a8a8a"
# Inches. Figures of the report are narrow, so that their text is legible on a phone.
WIDTH, NARROW, DPI = 10.0, 5.6, 160
STYLE: Any = {
    "font.size": 10, "axes.titlesize": 10.5, "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "grid.color": "#e6e6e6", "grid.linewidth": 0.8, "lines.linewidth": 1.6,
    "legend.frameon": False,
}  # fmt: skip
# The post's figures: title, and cells with their names in the post.
FIGURES = {
    "figure1": (
        "Without augmentation (the post's figure 1)",
        {"baseline": "none", "meanonly": "mean-only"},
    ),
    "figure2": (
        "With random cropping (the post's figure 2)",
        {"full_crop": "full", "full_crop_dropout": "full, dropout",
         "meanonly_crop": "mean-only", "meanonly_crop_dropout": "mean-only, dropout"},
    ),
}  # fmt: skip
_LEGEND = (
    "Coloured: validation (solid) and training (dashed), mean over seeds; band: lowest to\n"
    "highest. Grey: the post's validation errors, 128x128, one run."
)
# A cell's mean is over runs with at least this share of the longest run's epochs.
_MIN_LENGTH_SHARE = 0.8
# With more epochs, dots would hide the line.
DOTTED_EPOCHS = 20


def save(figure: Figure, path: Path) -> None:
    """Writes a figure as .pdf or .svg, otherwise as PNG."""
    kind = path.suffix[1:] if path.suffix in (".pdf", ".svg") else "png"
    with cli.atomic_write(path) as partial:
        figure.savefig(partial, format=kind, dpi=DPI)


def draw_post_figure(name: str, runs: pd.DataFrame, epochs: pd.DataFrame) -> Figure | None:
    """Redraws one of the post's figures over seeds; returns None if its cells have no run."""
    title, names = FIGURES[name]
    there = [cell for cell in names if cell in set(runs["cell"])]
    if not there:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(NARROW, 4.1))
        figure.text(0.015, 0.98, title, va="top", size=12, weight="bold")
        figure.text(0.015, 0.91, _LEGEND, va="top", size=8.5, color="#555555")
        axes = figure.add_axes((0.11, 0.12, 0.53, 0.68))
        axes.yaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=0))
        axes.xaxis.set_major_locator(ticker.MaxNLocator(7, integer=True, min_n_ticks=1))
        axes.set_xlabel("epoch")
        axes.set_ylabel("error rate")
        axes.grid(visible=True, axis="y")
        ends = [_draw_cell(axes, runs, epochs, cell, names[cell]) for cell in there]
        curves = published.curves()
        curves = curves[(curves["split"] == "valid") & (curves["epoch"] <= axes.dataLim.x1)]
        for (cell, called), style in zip(names.items(), ("-", "--", "-.", ":"), strict=False):
            x, y = curves.loc[curves["cell"] == cell, ["epoch", "error_rate"]].to_numpy().T
            axes.plot(x, y, color=POST_COLOUR, lw=1, ls=style, zorder=1.5)
            ends.append((x[-1], y[-1], f"post: {called}", POST_COLOUR))
        _label_lines(axes, ends)
    return figure


def _draw_cell(
    axes: Axes, runs: pd.DataFrame, epochs: pd.DataFrame, cell: str, name: str
) -> tuple[float, float, str, str]:
    """Draws a cell's two errors; returns the end of its validation error, for `_label_lines`.

    The mean is over the same seeds in all epochs, up to the last epoch that all of them have.
    """
    own, colour = runs[runs["cell"] == cell], CELL_COLOURS[cell]
    long_enough = own[own["epochs"] >= _MIN_LENGTH_SHARE * own["epochs"].max()]
    common = long_enough["epochs"].min()
    lines = epochs[epochs["folder"].isin(long_enough["folder"]) & (epochs["epoch"] <= common)]
    marker = "o" if common <= DOTTED_EPOCHS else ""
    looks: dict[str, dict[str, Any]] = {
        "train/error_rate": {"ls": (0, (4, 2)), "lw": 1.1},
        "valid/error_rate": {"lw": 1.9, "marker": marker, "ms": 3.2},
    }
    for key, look in looks.items():
        rates = lines.groupby("epoch")[key].agg(["mean", "min", "max"])
        axes.plot(rates.index, rates["mean"], color=colour, clip_on=False, **look)
        axes.fill_between(rates.index, "min", "max", data=rates, color=colour, alpha=0.13, lw=0)
    shorter = f" of {len(own)}" if len(long_enough) < len(own) else ""
    # `textwrap` does not break lines at a no-break space.
    count = f"{len(long_enough)}{shorter} seed{'s' if len(own) > 1 else ''}".replace(" ", "\u00a0")
    text = textwrap.fill(f"{name}, {count}", 25)
    return common, rates["mean"].iloc[-1], text, colour


def _label_lines(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Sets the axes' limits, and labels lines' ends, (x, y, name, colour), on the right.

    Labels that would overlap are moved apart; a thin line leads to each.
    """
    first, last = axes.dataLim.intervalx
    axes.set_xlim(first - 0.5 * (first == last), last + 0.5 * (first == last))
    high = 1.04 * axes.dataLim.y1
    axes.set_ylim(0, high)
    # The height of a line of text, in units of the axis.
    line = 0.165 * high / (axes.bbox.height / axes.figure.dpi)
    ends = sorted(ends, key=lambda end: end[1])
    heights = [line * (1 + name.count("\n")) for _, _, name, _ in ends]
    middles, floor = [], -line
    for (_, y, _, _), height in zip(ends, heights, strict=True):
        middles.append(max(y, floor + height / 2))
        floor = middles[-1] + height / 2
    ceiling = high + line
    for i in reversed(range(len(ends))):
        middles[i] = min(middles[i], ceiling - heights[i] / 2)
        ceiling = middles[i] - heights[i] / 2
    across = axes.get_yaxis_transform()
    for middle, (x, y, name, colour) in zip(middles, ends, strict=True):
        axes.plot([x, last], [y, y], color=colour, lw=0.8, ls=":")
        axes.plot([1.01, 1.04], [y, middle], transform=across, color=colour, lw=0.7, clip_on=False)
        axes.text(
            1.05, middle, name, transform=across, va="center", color=colour, size=9,
            linespacing=0.95,
        )  # fmt: skip


def draw_best(runs: pd.DataFrame, title: str) -> Figure | None:
    """Draws cells' best validation errors, by `tables.longest_runs`; None without cells."""
    cells = [cell for cell in CELL_COLOURS if cell in set(runs["cell"])]
    if not cells:
        return None
    with matplotlib.rc_context(STYLE):
        total = 1.2 + 0.42 * len(cells)
        figure = Figure(figsize=(NARROW, total))
        figure.text(0.015, 1 - 0.1 / total, title, va="top", size=12, weight="bold")
        figure.text(
            0.015, 1 - 0.36 / total, "Diamond: mean ± standard error; rings: seeds; grey: the "
            "post's (128x128, 45 to 73 epochs). Log scale.", va="top", size=8.5, color="#555555",
        )  # fmt: skip
        axes = figure.add_axes((0.35, 0.5 / total, 0.345, 0.42 * len(cells) / total))
        for row, cell in enumerate(cells):
            found = runs.loc[runs["cell"] == cell, "best_valid_error_rate"]
            rates = found.clip(lower=0.001)  # 0 has no logarithm
            colour = CELL_COLOURS[cell]
            if cell in published.BEST:
                axes.plot(published.BEST[cell], row, "|", ms=18, mew=2.5, color="#b0b0b0")
            error = None if len(rates) < 2 else rates.sem()
            axes.errorbar(rates.mean(), row - 0.12, xerr=error, fmt="D", ms=5, color=colour)
            axes.plot(rates, [row + 0.22] * len(rates), "o", ms=4.5, mfc="none", color=colour)
            text = stats.error_rate(found)
            across = axes.get_yaxis_transform()
            axes.text(1.03, row, text, color=colour, va="center", size=9, transform=across)
        axes.set_yticks(range(len(cells)), cells, size=9)
        axes.set_ylim(len(cells) - 0.5, -0.5)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(ticker.FixedLocator([0.01, 0.02, 0.05, 0.1, 0.2, 0.5]))
        axes.xaxis.set_minor_locator(ticker.NullLocator())
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda rate, _: f"{100 * rate:g}%"))
        axes.set_xlabel("best validation error")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(visible=True, axis="x")
    return figure
