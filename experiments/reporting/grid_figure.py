"""The grid at a glance: best validation errors of its cells, by seed and in the mean."""

import statistics
from typing import Any

from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.figures import COLOURS, WIDTH, style
from experiments.reporting import published, spread
from experiments.reporting.cells import AUGMENTATIONS, NORMS
from experiments.reporting.sections import Section
from experiments.reporting.tables import results, shown

# Inches: left of the axes and right of them for names and numbers, above, below, and for a row.
_LEFT, _RIGHT, _TOP, _BOTTOM, _ROW = 2.2, 1.95, 0.72, 0.5, 0.36
_COLOURS = {"baseline": "black", "meanonly": "vermilion", "full": "blue"}
_AUGMENTATIONS = {"": "", "_crop": ", cropping", "_crop_dropout": ", cropping, dropout"}
# A logarithm knows no 0: what is below is shown as the low end.
_LOWEST, _TICKS = 0.005, (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5)


def draw_grid(section: Section) -> Figure | None:
    """Draws a row for each cell with finished runs; None if there is none."""
    runs = {
        norm + rest: shown(section.cells.get(norm + rest, {}))
        # By column of the grid, so that the norms are next to each other.
        for rest in AUGMENTATIONS
        for norm in NORMS
    }
    rates = {cell: results(of, "best_valid_error_rate") for cell, of in runs.items() if of}
    if not rates:
        return None
    total = _TOP + len(rates) * _ROW + _BOTTOM
    with style():
        figure = Figure(figsize=(WIDTH, total))
        title = f"Best validation errors, {section.side}x{section.side}"
        figure.text(0.15 / WIDTH, 1 - 0.14 / total, title, va="top", size=13, weight="bold")
        note = (
            "Diamond: mean over seeds, with its standard error; rings: seeds. Grey stroke: the "
            "post's, at 128x128. Logarithmic."
        )
        figure.text(0.15 / WIDTH, 1 - 0.45 / total, note, va="top", size=9, color="#555555")
        width, height = 1 - (_LEFT + _RIGHT) / WIDTH, len(rates) * _ROW / total
        axes = figure.add_axes((_LEFT / WIDTH, _BOTTOM / total, width, height))
        for row, (cell, of) in enumerate(rates.items()):
            _draw_row(axes, row, cell, of)
        _finish(axes, list(rates))
    return figure


def _draw_row(axes: Axes, row: int, cell: str, rates: list[float]) -> None:
    colour = COLOURS[_COLOURS[cell.partition("_")[0]]]
    stroke: dict[str, Any] = {"marker": "|", "ms": 18, "mew": 2.5, "color": "#b0b0b0"}
    ring: dict[str, Any] = {"marker": "o", "ms": 4.5, "mfc": "none", "mec": colour, "mew": 0.9}
    if cell in published.BEST:
        axes.plot(published.BEST[cell].valid, row, ls="", zorder=1.5, **stroke)
    text = spread.error_rate(rates)
    rates = [max(rate, _LOWEST) for rate in rates]
    mean, error = statistics.mean(rates), spread.standard_error(rates)
    axes.errorbar(mean, row - 0.12, xerr=error, fmt="D", ms=5, color=colour, elinewidth=1.6)
    axes.plot(rates, [row + 0.2] * len(rates), ls="", **ring)
    axes.text(
        1.015, row, text, color=colour, va="center",
        transform=axes.get_yaxis_transform(),
    )  # fmt: skip


def _finish(axes: Axes, cells: list[str]) -> None:
    names = []
    for cell in cells:
        norm, _, rest = cell.partition("_")
        names.append(NORMS[norm] + _AUGMENTATIONS[rest and f"_{rest}"])
    axes.set_yticks(range(len(cells)), names)
    axes.set_ylim(len(cells) - 0.4, -0.6)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(max(low / 1.1, _LOWEST / 1.1), max(high, 0.1))
    axes.xaxis.set_major_locator(ticker.FixedLocator(_TICKS))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda rate, _: f"{100 * rate:g}%"))
    axes.set_xlabel("best validation error")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=True, axis="x")
