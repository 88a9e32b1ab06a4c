"""The picture of a run's diagnosis."""

from matplotlib import ticker
from matplotlib.figure import Figure

from experiments.diagnosing.diagnosis import Line, Spike, layers
from experiments.figures import (
    COLOURS,
    FEW_EPOCHS,
    MAPS,
    WIDTH,
    draw_errors,
    draw_map,
    mark_spikes,
    style,
)

# Inches: around the axes, of the errors, of a map's row, and between two axes.
_LEFT, _RIGHT, _TOP, _BOTTOM, _ERRORS, _ROW, _BETWEEN = 0.85, 2.05, 0.85, 0.55, 4.0, 0.23, 0.5


def draw_diagnosis(lines: list[Line], spikes: list[Spike], title: str) -> Figure:
    """Draws the errors and, below and aligned with them, a map of each thing measured."""
    maps = [spec for spec in MAPS if layers(lines, spec.name)]
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
                draw_errors(axes, lines)
                mark_spikes(axes, spikes)
            else:
                draw_map(axes, lines, spec)
            bottom -= _BETWEEN
            every.append(axes)
        first, last = lines[0]["epoch"], lines[-1]["epoch"]
        for axes in every:
            # Over a map's numbers a line would cross them out.
            covered = axes is not every[0] and last - first < FEW_EPOCHS
            for spike in [] if covered else spikes:
                axes.axvline(spike.epoch, color=COLOURS["grey"], lw=0.8, ls=":", zorder=0.5)
            axes.set_xlim(first - 0.5, last + 0.5)
            axes.xaxis.set_major_locator(ticker.MaxNLocator(15, integer=True, min_n_ticks=1))
            axes.tick_params(labelbottom=axes is every[-1])
        every[-1].set_xlabel("epoch")
    return figure
