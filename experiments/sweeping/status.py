"""The table of a sweep: how far each run is, and how long the rest will take."""

import statistics
from collections.abc import Sequence

from bn_vgg.hooks import format_seconds

from experiments.sweeping.plan import PlannedRun
from experiments.sweeping.state import DONE, FAILED, RUNNING, TO_DO, RunState

_HEAD = ("run", "state", "epochs", "error", "left", "")
# Of a terminal that is too narrow, what at least is for a run's name.
_NAME = 12


def table(runs: Sequence[PlannedRun], states: Sequence[RunState], width: int = 100) -> str:
    """Lays out a line for each run, with its best validation error so far, and one for all.

    What went wrong stands below, in full.

    Args:
      runs: of the sweep.
      states: of each.
      width: of the terminal, in characters; names are shortened to it in the middle.
    """
    pace = _seconds_an_epoch(states)
    rows = [_HEAD, *(_row(*pair, pace) for pair in zip(runs, states, strict=True))]
    others = sum(max(map(len, column)) + 2 for column in list(zip(*rows, strict=True))[1:])
    rows = [(_shorten(row[0], max(_NAME, width - others)), *row[1:]) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [f"{cell:{size}}" for cell, size in zip(row[:-1], widths, strict=False)]
        lines.append("  ".join([*cells, row[-1]]).rstrip()[:width])
    wrong = [
        f"{run.folder}: {f'{of.attempts} attempts: ' * (of.attempts > 1)}{of.error}"
        for run, of in zip(runs, states, strict=True)
        if of.error
    ]
    return "\n".join([*lines, "", *wrong, summary(runs, states)])


def _shorten(text: str, size: int) -> str:
    cut = size // 2
    return text if len(text) <= size else f"{text[: size - cut - 1]}…{text[-cut:]}"


def summary(runs: Sequence[PlannedRun], states: Sequence[RunState]) -> str:
    """Counts the runs by state, and says how long the rest will take as things go."""
    counts = dict.fromkeys((DONE, RUNNING, FAILED, TO_DO), 0)
    for state in states:
        counts[state.state] += 1
    text = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    pace = _seconds_an_epoch(states)
    left = [
        seconds
        for run, state in zip(runs, states, strict=True)
        if state.state in (RUNNING, TO_DO)
        and (seconds := _seconds_left(run, state, pace)) is not None
    ]
    if left and pace:
        at_once = max(1, counts[RUNNING])
        text += f"; about {format_seconds(max(sum(left) / at_once, *left, 0))} left"
        text += f" with {at_once} at once"
    return f"{len(runs)} runs: {text}"


def _row(run: PlannedRun, state: RunState, pace: float | None) -> tuple[str, ...]:
    best = "" if state.best_error_rate is None else f"{state.best_error_rate:.1%}"
    left = None if state.state in (DONE, FAILED) else _seconds_left(run, state, pace)
    note = f"on {state.where}" if state.state == RUNNING else ""
    epochs = f"{state.epochs}/{run.num_epochs}"
    return (
        run.folder, state.state, epochs, best,
        "" if left is None else format_seconds(left), note,
    )  # fmt: skip


def _seconds_left(run: PlannedRun, state: RunState, pace: float | None) -> float | None:
    own = state.seconds / state.epochs if state.epochs else pace
    return None if own is None else own * max(0, run.num_epochs - state.epochs)


def _seconds_an_epoch(states: Sequence[RunState]) -> float | None:
    """The median over the runs that have finished one; None where none has."""
    paces = [state.seconds / state.epochs for state in states if state.epochs]
    return statistics.median(paces) if paces else None
