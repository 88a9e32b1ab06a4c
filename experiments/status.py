"""A sweep's output: the progress of each run, and the results of each cell."""

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from bn_vgg.writers import format_seconds
from experiments import stats
from experiments.plan import PlannedRun
from experiments.state import DONE, FAILED, RUNNING, TO_DO, RunState

WIDTH = 100
# The minimum length of a run's name in a narrow terminal.
_NAME = 12


def run_table(runs: Sequence[PlannedRun], states: Sequence[RunState], width: int = WIDTH) -> str:
    """Returns a line for each run, the errors of failed runs, and the summary."""
    rows = [("run", "state", "epochs", "best valid error", "left")]
    for run, of, left in zip(runs, states, _seconds_left(runs, states), strict=True):
        rows.append((
            run.folder, of.state, f"{of.epochs}/{run.num_epochs}", _mean([of.best_error_rate]),
            "" if left is None else format_seconds(left),
        ))  # fmt: skip
    pairs = zip(runs, states, strict=True)
    wrong = [f"{run.folder}: {of.error}" for run, of in pairs if of.error]
    return "\n".join([*format_columns(rows, width), "", *wrong, summary(runs, states)])


def cell_table(runs: Sequence[PlannedRun], states: Sequence[RunState]) -> str:
    """Returns a line for each cell: its errors' means and standard errors over finished seeds."""
    cells: dict[str, list[RunState]] = {}
    for run, of in zip(runs, states, strict=True):
        cells.setdefault(run.name, []).extend([of] * (of.state == DONE))
    rows = [("cell", "seeds", "epochs", "best valid error", "test error")]
    for name, done in cells.items():
        epochs = sorted({of.epochs for of in done})
        rows.append((
            name, str(len(done)), ", ".join(map(str, epochs)),
            _mean([of.best_error_rate for of in done]), _mean([of.test_error_rate for of in done]),
        ))  # fmt: skip
    return "\n".join(format_columns(rows, WIDTH))


def summary(runs: Sequence[PlannedRun], states: Sequence[RunState]) -> str:
    """Counts the runs by state, and estimates the time left with the present number at once."""
    found = [of.state for of in states]
    counts = {state: found.count(state) for state in (DONE, RUNNING, FAILED, TO_DO)}
    text = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    if left := [seconds for seconds in _seconds_left(runs, states) if seconds is not None]:
        at_once = max(1, counts[RUNNING])
        # A single run is not divided.
        seconds = max(sum(left) / at_once, *left)
        text += f"; about {format_seconds(seconds)} left with {at_once} at once"
    return f"{len(runs)} runs: {text}"


def epoch_line(run: PlannedRun, line: dict[str, Any]) -> str:
    """Describes an epoch of a run, a line of its metrics.jsonl, in at most `WIDTH` characters."""
    said = (
        f"  epoch {line['epoch']:2}/{run.num_epochs}"
        f"  train error {line['train/error_rate']:.3f}  valid error {line['valid/error_rate']:.3f}"
    )
    return _shorten(run.folder, WIDTH - len(said)) + said


def _shorten(text: str, size: int) -> str:
    cut = size // 2
    return text if len(text) <= size else f"{text[: size - cut - 1]}…{text[-cut:]}"


def format_columns(rows: Sequence[tuple[str, ...]], width: int) -> list[str]:
    """Aligns rows in columns; the first column is shortened in the middle to fit the width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths[0] = min(widths[0], max(_NAME, width - sum(size + 2 for size in widths[1:])))
    lines = []
    for row in rows:
        cells = [_shorten(row[0], widths[0]), *row[1:]]
        lines.append("  ".join(f"{x:{size}}" for x, size in zip(cells, widths, strict=True)))
    return [line[:width].rstrip() for line in lines]


def _mean(rates: Sequence[float | None]) -> str:
    known = [rate for rate in rates if rate is not None]
    return stats.error_rate(known, counted=False) if known else ""


def _seconds_left(runs: Sequence[PlannedRun], states: Sequence[RunState]) -> Iterator[float | None]:
    """Yields each run's remaining time, by its own pace or the median; None if done or unknown."""
    paces = [of.seconds / of.epochs for of in states if of.epochs]
    median = statistics.median(paces) if paces else None
    for run, of in zip(runs, states, strict=True):
        pace = of.seconds / of.epochs if of.epochs else median
        if pace is None or of.state in (DONE, FAILED):
            yield None
        else:
            yield pace * max(0, run.num_epochs - of.epochs)
