"""The figure of `experiments.start`: training error over steps, a panel for each setting."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure

from experiments.plots import COLOURS, WIDTH, save, style

_LINES = {False: COLOURS["vermilion"], True: COLOURS["blue"]}


def draw(groups: dict[str, list[dict[str, Any]]], path: Path, *, chunk: int) -> None:
    """Draws runs by setting.

    Args:
      groups: records of `experiments.start`, by the panel's title.
      path: of the PNG.
      chunk: steps over which an error is averaged.
    """
    with style():
        rows = -(-len(groups) // 2)
        figure = Figure(figsize=(WIDTH, 0.5 + 2.4 * rows), layout="constrained")
        panels = figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False)
        for axes in panels.flat[len(groups) :]:
            axes.set_visible(False)
        for axes, (title, runs) in zip(panels.flat, groups.items(), strict=False):
            for run in runs:
                error = np.reshape(run["error_rate"], (-1, chunk)).mean(axis=1)
                steps = chunk * np.arange(1, len(error) + 1)
                axes.plot(steps, 100 * error, lw=0.9, color=_LINES[run["bias_correction"]])
            axes.axhline(50, color=COLOURS["grey"], lw=0.8, ls="--")
            axes.yaxis.set_major_formatter(ticker.PercentFormatter(decimals=0))
            axes.grid(visible=True, axis="y")
            axes.set_title(f"{title} ({len(runs)} seeds)")
        figure.supxlabel("step", size=10)
        figure.supylabel(f"training error, mean of {chunk} steps", size=10)
        save(figure, path)
