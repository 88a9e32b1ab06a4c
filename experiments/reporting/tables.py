"""The report's tables: the grid, every group of seeds, every run. Cells are Markdown."""

import itertools
from collections.abc import Callable, Sequence

from experiments.asking.answers import VALID, Table
from experiments.diagnosing.diagnosis import percent, value
from experiments.reporting import published, spread
from experiments.reporting.cells import AUGMENTATIONS, NORMS
from experiments.reporting.found import Found
from experiments.reporting.markup import code, text
from experiments.reporting.sections import BySeed, Section

# Validation errors whose first epoch is told: what the post's augmented runs pass, and about
# what its best come near.
REACHED = (0.10, 0.06)
# A training error of two classes that is not lower says that nothing was learnt yet.
TAKEN_OFF = 0.47
NOTHING = "–"  # noqa: RUF001


def shown(by_seed: BySeed) -> list[Found]:
    """The runs that stand for a group where there is room for one number.

    Finished ones of equally many epochs, the most there are: a few more seeds of a shorter run,
    made for another claim, say nothing of how far the cell gets.
    """
    return next(iter(by_epochs(by_seed).values()), [])


def by_epochs(by_seed: BySeed) -> dict[int, list[Found]]:
    """Finished runs by their number of epochs, the most first: bests of others do not compare."""
    found: dict[int, list[Found]] = {}
    for each in sorted(by_seed.values(), key=lambda each: (-each.epochs, each.seed)):
        if each.result is not None:
            found.setdefault(each.epochs, []).append(each)
    return found


def results(runs: Sequence[Found], name: str) -> list[float]:
    """A number of their results."""
    return [each.result[name] for each in runs if each.result is not None]


def grid(section: Section) -> Table:
    """The 3x3 grid: best validation error, test error, epochs."""
    rows = [["", *AUGMENTATIONS.values()]]
    for norm, name in NORMS.items():
        rows.append([f"**{name}**", *(_grid_cell(section, norm + rest) for rest in AUGMENTATIONS)])
    return rows


def _grid_cell(section: Section, cell: str) -> str:
    by_seed = section.cells.get(cell, {})
    runs = shown(by_seed)
    if runs:
        valid, test = (
            spread.error_rate(results(runs, name))
            for name in ("best_valid_error_rate", "test_error_rate")
        )
        return f"**{valid}**<br>test {test}<br>{runs[0].epochs} epochs"
    return f"{len(by_seed)} unfinished" if by_seed else NOTHING


def groups(section: Section) -> Table:
    """A row for each cell, or other configuration, and number of epochs."""
    reached = [f"epochs to {rate:.0%}" for rate in REACHED]
    head = ["run", "seeds", "epochs", "best validation", "test", *reached, "time", "images/s"]
    rows = [[*head, "the post's"]]
    for label, by_seed in section.groups.items():
        for epochs, runs in by_epochs(by_seed).items():
            rows.append([
                code(label),
                str(len(runs)),
                str(epochs),
                spread.error_rate(results(runs, "best_valid_error_rate"), counted=False),
                spread.error_rate(results(runs, "test_error_rate"), counted=False),
                *(_epochs_to(runs, rate) for rate in REACHED),
                _on_one_machine(runs, "wall_seconds", duration),
                _on_one_machine(runs, "images_per_second", _speed),
                _published(label),
            ])  # fmt: skip
    return rows


def _epochs_to(runs: Sequence[Found], rate: float) -> str:
    """The first epoch with at most this validation error, over the seeds that have one."""
    first = [
        next((line["epoch"] for line in each.run.lines
              if (error := value(line, VALID)) is not None and error <= rate), None)
        for each in runs
    ]  # fmt: skip
    known = [float(epoch) for epoch in first if epoch is not None]
    if not known:
        return "not reached"
    some = f"{len(known)} of {len(runs)}: " if len(known) < len(runs) else ""
    mean = spread.with_spread(known, lambda epoch: f"{epoch:.1f}", counted=False)
    return some + mean


def _on_one_machine(
    runs: Sequence[Found], name: str, show: Callable[[Sequence[float]], str]
) -> str:
    """A number that a mean over several kinds of hardware would say nothing of."""
    if len({hardware(each) for each in runs}) > 1:
        return "several kinds of hardware"
    return show(results(runs, name))


def duration(seconds: Sequence[float]) -> str:
    """Times, in the unit that fits their mean."""
    mean = sum(seconds) / len(seconds)
    size, unit = next(
        (size, unit) for size, unit in ((3600, " h"), (60, " min"), (1, " s"))
        if mean >= 2 * size or size == 1
    )  # fmt: skip
    scaled = [each / size for each in seconds]
    return spread.with_spread(scaled, lambda x: f"{x:.1f}", unit, counted=False)


def _speed(rates: Sequence[float]) -> str:
    return spread.with_spread(rates, lambda rate: f"{rate:.0f}", counted=False)


def _published(label: str) -> str:
    if label not in published.BEST:
        return NOTHING
    valid, test = published.BEST[label]
    return percent(valid) + (f", test {percent(test)}" if test is not None else "")


def runs(section: Section) -> Table:
    """A row for each run, with its hardware and commit."""
    head = ["run", "seed", "epochs", "stood still", "best validation", "test", "time"]
    rows = [[*head, "hardware", "commit"]]
    for by_seed in section.groups.values():
        for each in by_seed.values():
            rows.append([code(each.folder), str(each.seed), *_run_cells(each)])
    return rows


def epochs_still(each: Found) -> int:
    """Counts the first epochs, in a row, whose training error is not below `TAKEN_OFF`."""
    errors = (value(line, "train/error_rate") for line in each.run.lines)
    return len(list(itertools.takewhile(lambda e: e is not None and e >= TAKEN_OFF, errors)))


def _run_cells(each: Found) -> list[str]:
    still = str(epochs_still(each))
    if each.result is None:
        so_far = f"{percent(best_so_far(each))} so far"
        return [f"{each.epochs} of {each.planned}", still, so_far, *[NOTHING] * 4]
    rates = (each.result[name] for name in ("best_valid_error_rate", "test_error_rate"))
    time = duration([each.result["wall_seconds"]]).removesuffix(" (1 seed)")
    commit = each.result.get("commit")
    # Ten digits tell commits apart; that files differed from it must not be cut off.
    short = f"{commit[:10]}{'-dirty' * commit.endswith('-dirty')}" if commit else "not recorded"
    return [str(each.epochs), still, *map(percent, rates), time, text(hardware(each)), text(short)]


def best_so_far(each: Found) -> float:
    """The lowest validation error of its lines."""
    rates = (value(line, VALID) for line in each.run.lines)
    return min(rate for rate in rates if rate is not None)


def hardware(each: Found) -> str:
    """What a finished run was made on: `1 AMD EPYC (2 cores)`, `8 TPU v5 lite (2 hosts)`."""
    of = (each.result or {}).get("hardware")
    if not isinstance(of, dict):
        return "not recorded"
    hosts = of.get("num_hosts", 1)
    cores = f"{of.get('cpu_cores')} cores" if of.get("platform") == "cpu" else ""
    more = ", ".join(part for part in (cores, f"{hosts} hosts" * (hosts != 1)) if part)
    return f"{of.get('num_devices')} {of.get('device')}" + (f" ({more})" if more else "")
