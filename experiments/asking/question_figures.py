"""One figure a question, in the style of `experiments.figures`, from its runs and its answer.

Running averages are vermilion and precise statistics blue in all of them, as in a diagnosis.
"""

from collections.abc import Callable, Iterable
from typing import Any

from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.asking.answers import (
    ASKED,
    CHANCE,
    FULL,
    MEAN_ONLY,
    POOLED,
    TRAIN,
    VALID,
    Answer,
    Runs,
)
from experiments.asking.early import same_updates
from experiments.diagnosing.diagnosis import KINDS, Run, Spike, find_spikes, value
from experiments.figures import COLOURS, SPIKES_PAD, WIDTH, mark_spikes, name_ends, style

_BASELINE = {"color": COLOURS["grey"], "ls": "--"}
_RUNNING = {"color": COLOURS["vermilion"], "marker": "o"}
_PRECISE = {"color": COLOURS["blue"], "marker": "s"}
_OF_NORM = {MEAN_ONLY: COLOURS["vermilion"], FULL: COLOURS["blue"]}
# Inches: left of axes, above and below them all, above a row, and beside axes for lines' names.
_LEFT, _TOP, _BOTTOM, _ABOVE, _NAMES = 0.65, 0.55, 0.6, 0.5, 1.3
_ERRORS = (
    "Validation error by running averages and by precise statistics: centre windows of the "
    "compared images. * Five windows of all."
)


def _grid(
    answer: Answer, rows: int, columns: int, *, row: float, note: str,
    above: float = _ABOVE, left: float = _LEFT, names: float = _NAMES,
):  # fmt: skip
    """Returns a figure with its title and a note, and rows of axes; sizes are in inches."""
    total = _TOP + rows * (above + row) + _BOTTOM
    figure = Figure(figsize=(WIDTH, total))
    title = f"{ASKED[answer.question]} {answer.verdict.capitalize()}"
    figure.text(0.15 / WIDTH, 1 - 0.14 / total, title, va="top", size=13, weight="bold")
    figure.text(0.15 / WIDTH, 1 - 0.45 / total, note, va="top", size=9, color="#555555")
    each = (WIDTH - left) / columns
    grid = []
    for i in range(rows):
        bottom = total - _TOP - (i + 1) * (above + row)
        across = [(left + j * each) / WIDTH for j in range(columns)]
        width = (each - names) / WIDTH
        grid.append([figure.add_axes((x, bottom / total, width, row / total)) for x in across])
    return figure, grid


def _draw(axes: Axes, run: Run | None, key: str, name: str, look: dict[str, Any]):
    """Draws one error in percent over epochs. Returns its end, to be named, as a list."""
    lines = run.lines if run else []
    known = [(line["epoch"], 100 * x) for line in lines if (x := value(line, key)) is not None]
    if not known:
        return []
    axes.plot(*zip(*known, strict=True), markersize=4, **look)
    return [(known[-1][1], f"{name} {known[-1][1]:.1f}%", look["color"])]


def _finish(axes: Axes, ends: Iterable, title: str, high: float, label: str = "") -> None:
    axes.set_ylim(0, high)
    axes.yaxis.set_major_formatter(ticker.PercentFormatter(decimals=0))
    axes.xaxis.set_major_locator(ticker.MaxNLocator(15, integer=True, min_n_ticks=1))
    axes.grid(visible=True, axis="y")
    axes.set_title(title)
    axes.set_xlabel(label)
    name_ends(axes, list(ends))


def _highest(runs: Runs, keys: Iterable[str]) -> float:
    """The upper end of an axis of errors, in percent."""
    rates = [value(line, key) for by_seed in runs.values() for run in by_seed.values()
             for line in run.lines for key in keys]  # fmt: skip
    return 105 * max((rate for rate in rates if rate is not None), default=CHANCE)


def draw_early(runs: Runs, answer: Answer) -> Figure:
    """Errors over epochs: a row for each seed; the recipe, another decay, a larger batch."""
    seeds = sorted({seed for by_seed in runs.values() for seed in by_seed})
    high = _highest(runs, (VALID, *KINDS.values()))
    epochs = max(run.lines[-1]["epoch"] for of in runs.values() for run in of.values())
    titles = {"mean-only": "the recipe", "decay 0.9": "decay 0.9", "batch 400": "batches of 400"}
    with style():
        figure, grid = _grid(answer, len(seeds), len(titles), row=2.3, note=_ERRORS)
        for seed, row in zip(seeds, grid, strict=True):
            of_seed = {role: by_seed.get(seed) for role, by_seed in runs.items()}
            for axes, (role, title) in zip(row, titles.items(), strict=True):
                ends = _draw(axes, of_seed["baseline"], VALID, "no norm*", _BASELINE)
                ends += _draw(axes, of_seed[role], KINDS["running"], "running", _RUNNING)
                ends += _draw(axes, of_seed[role], KINDS["precise"], "precise", _PRECISE)
                last = row is grid[-1]
                _finish(axes, ends, f"Mean-only, {title}, seed {seed}", high, "epoch" * last)
                axes.set_xlim(0.8, epochs + 0.2)
                axes.tick_params(labelleft=axes is row[0])
            equal = same_updates(of_seed["batch 400"], of_seed["mean-only"])
            if equal:
                row[-1].axvline(equal, color=COLOURS["grey"], lw=0.8, ls=":", zorder=0.5)
                row[-1].annotate(
                    "updates of epoch 1\nwith batches of 100", (equal, 0),
                    (4, 3) if equal < 3 else (-4, 3), textcoords="offset points",
                    ha="left" if equal < 3 else "right", size=8.5, color="#555555",
                )  # fmt: skip
    return figure


def draw_spikes(runs: Runs, answer: Answer) -> Figure:
    """Running against precise over epochs, a row for each run, its spikes marked."""
    every = [(role, seed, run) for role, by_seed in runs.items() for seed, run in by_seed.items()]
    high = _highest(runs, (VALID, *KINDS.values()))
    with style():
        figure, grid = _grid(answer, len(every), 1, row=2.2, above=0.8, note=_ERRORS)
        for (role, seed, run), (axes,) in zip(every, grid, strict=True):
            spikes: list[Spike] = find_spikes(run.lines, run.sizes)
            legend = mark_spikes(axes, spikes) or "No spikes"
            ends = _draw(axes, run, VALID, "valid*", {"color": COLOURS["black"], "lw": 1})
            ends += _draw(axes, run, KINDS["running"], "running", _RUNNING)
            ends += _draw(axes, run, KINDS["precise"], "precise", _PRECISE)
            _finish(axes, ends, f"{role.capitalize()}, seed {seed}. {legend}", high)
            axes.set_title(axes.get_title(loc="left"), pad=SPIKES_PAD if spikes else 6)
            for spike in spikes:
                axes.axvline(spike.epoch, color=COLOURS["grey"], lw=0.8, ls=":", zorder=0.5)
        grid[-1][0].set_xlabel("epoch")
    return figure


def draw_dropout(runs: Runs, answer: Answer) -> Figure:
    """Training and validation errors by the source of the statistics, and activations."""
    high = _highest(runs, (VALID, TRAIN))
    titles = {
        "clean": "Statistics of passes without dropout",
        "dropout": "Statistics of passes with dropout",
    }
    with style():
        note = "Error on validation images (solid) and in training (dashed). Dotted: chance."
        figure, ((*both, last),) = _grid(answer, 1, 3, row=3.2, names=1.55, note=note)
        for axes, (kind, title) in zip(both, titles.items(), strict=True):
            ends = []
            for norm, colour in _OF_NORM.items():
                for run in runs[f"{norm}, {kind} statistics"].values():
                    look = {"color": colour}
                    ends += _draw(axes, run, VALID, norm, look | {"marker": "."})
                    ends += _draw(axes, run, TRAIN, "training", look | {"ls": "--"})
            axes.axhline(100 * CHANCE, color=COLOURS["grey"], lw=0.8, ls=":")
            _finish(axes, ends, title, high, "epoch")
            axes.tick_params(labelleft=axes is both[0])
        _draw_ratios(last, answer.numbers["ratios"])
    return figure


def _draw_ratios(axes: Axes, ratios: dict[str, dict[int, dict[str, float]]]) -> None:
    ends = []
    for norm, by_seed in ratios.items():
        for of in by_seed.values():
            pooled = [of[layer] for layer in POOLED if layer in of]
            axes.plot(range(1, len(pooled) + 1), pooled, "o-", color=_OF_NORM[norm])
            ends.append((pooled[-1], f"{norm} {pooled[-1]:.2f}", _OF_NORM[norm]))
    axes.axhline(1, color=COLOURS["grey"], lw=0.8, ls=":")
    axes.set_ylim(bottom=min(0.9, axes.get_ylim()[0]))
    axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    axes.set_title("Activations: training by evaluation" if ends else "Not measured")
    axes.set_xlabel("after pooling")
    axes.grid(visible=True, axis="y")
    name_ends(axes, ends)


def draw_cheap(_: Runs, answer: Answer) -> Figure:
    """Times of a step by none's: medians, and lines from the least to the most."""
    names = {"mean_only": MEAN_ONLY, "full": FULL}
    rows = [(setting, norm, of[norm]) for setting, of in answer.numbers.items() for norm in names]
    note = "Medians, and lines from the least to the most, over rounds in which all take turns."
    with style():
        figure, ((axes,),) = _grid(answer, 1, 1, row=0.42 * len(rows), left=2.65, note=note)
        for y, (_setting, norm, of) in enumerate(rows):
            colour = _OF_NORM[names[norm]]
            axes.plot([of["least"], of["most"]], [y, y], color=colour, lw=2.5, alpha=0.5)
            axes.plot([of["median"]], [y], "o", color=colour, markersize=8)
            axes.text(
                1.015, y, f"{of['median']:.2f} times", transform=axes.get_yaxis_transform(),
                va="center", color=colour,
            )  # fmt: skip
        axes.axvline(1, color=COLOURS["grey"], lw=0.8, ls=":")
        axes.set_yticks(range(len(rows)), [f"{names[norm]} {setting}" for setting, norm, _ in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlim(left=min(0.98, axes.get_xlim()[0]))
        axes.set_xlabel("time of a training step by that without normalization, same dropout")
        axes.grid(visible=True, axis="x")
    return figure


DRAW: dict[str, Callable[[Runs, Answer], Figure]] = {
    "early": draw_early,
    "spikes": draw_spikes,
    "dropout": draw_dropout,
    "cheap": draw_cheap,
}
