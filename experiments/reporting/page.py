"""The report as Markdown: verdicts first, then each section's numbers, then every run."""

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.asking.answers import Table
from experiments.diagnosing.diagnosis import UNDECIDED, percent
from experiments.reporting import tables
from experiments.reporting.found import Found, Left
from experiments.reporting.markup import code, table, text
from experiments.reporting.progress import Progress
from experiments.reporting.sections import Section
from experiments.reporting.verdict import SIGNIFICANCE, Verdict


@dataclass
class Report:
    """What the page shows.

    Attributes:
      root: the folder of the runs, as it was given.
      sections: of runs, the published size first.
      verdicts: on the claims, one list a section.
      left: folders that are not used.
      progress: of the sweep that the runs belong to, if any.
      command: that makes the page, and the commit that it was made at.
    """

    root: str
    sections: list[Section]
    verdicts: list[list[Verdict]]
    left: list[Left]
    progress: Progress | None
    command: str
    commit: str | None


def markdown(report: Report, figures: dict[str, dict[str, str]]) -> str:
    """Makes the page.

    Args:
      report: what to show.
      figures: by section's slug, file names by what they show: `figure1`, `figure2`, `others`,
        `grid`.
    """
    pairs = list(zip(report.sections, report.verdicts, strict=True))
    failed = report.progress.failed if report.progress else {}
    of_the_grid = [pair for pair in pairs if pair[0].cells]
    lines = ["# The ablation, re-run", "", _summary(report), ""]
    if of_the_grid:
        lines += [*table(_glance(of_the_grid)), "By [these rules](#how-claims-are-decided).", ""]
    for section, verdicts in pairs:
        lines += _section(section, verdicts, figures[section.slug], failed)
    if of_the_grid:
        lines += _rules(of_the_grid[0][1])
    if report.left:
        lines += ["## Not used", ""]
        lines += [
            f"- {code(folder)}: {text(reason)}{_failure(folder, failed)}"
            for folder, reason in report.left
        ]
        lines += [""]
    lines += [f"Made by `{report.command}`, commit {report.commit or 'not known'}."]
    return "\n".join([*lines, ""])


def _summary(report: Report) -> str:
    runs = [each for section in report.sections for each in section.runs]
    finished = sum(each.result is not None for each in runs)
    sentences = [f"{_count(len(runs), 'run')} below {code(report.root)}, {finished} finished."]
    if report.left:
        sentences.append(f"{_count(len(report.left), 'folder')} not used: see the end.")
    if report.progress:
        of = report.progress
        sentences.append(
            f"The sweep {code(of.preset)} ({text(of.variant)}) plans {_count(of.planned, 'run')}: "
            f"{of.finished} finished, {of.unfinished} unfinished, {of.not_begun} not begun"
            + (f"; {len(of.failed)} of the unfinished were given up." if of.failed else ".")
        )
    sentences.append(
        "Errors are means ± standard errors over seeds. The best validation error is the least "
        "of all epochs, so it flatters by the choice; the test error is that epoch's network's."
    )
    return " ".join(sentences)


def _glance(pairs: Sequence[tuple[Section, list[Verdict]]]) -> Table:
    head = ["claim", *(_title(section) for section, _ in pairs)]
    by_claim = zip(*(verdicts for _, verdicts in pairs), strict=True)
    return [
        head,
        *(
            [f"{of_claim[0].number}. {of_claim[0].claim}", *(_verdict(each) for each in of_claim)]
            for of_claim in by_claim
        ),
    ]


def _rules(verdicts: list[Verdict]) -> list[str]:
    """How claims are decided, and what the post's own numbers say to them."""
    return [
        "## How claims are decided", "",
        SIGNIFICANCE, "",
        *(f"- **{each.number}.** {each.rule} *The post:* {each.published}" for each in verdicts),
        "",
    ]  # fmt: skip


def _verdict(verdict: Verdict) -> str:
    return UNDECIDED if verdict.verdict == UNDECIDED else f"**{verdict.verdict}**"


def _title(section: Section) -> str:
    number = section.slug.removeprefix(section.variant).removeprefix("-")
    which = f", data {number}" if number else ""
    return f"{section.side}x{section.side} ({section.variant}{which})"


def _failure(folder: str, failed: dict[str, str]) -> str:
    return f"; it was given up: {text(failed[folder])}" if folder in failed else ""


def _section(
    section: Section, verdicts: list[Verdict], figures: dict[str, str], failed: dict[str, str]
) -> list[str]:
    sources = ", ".join(map(code, section.sources))
    lines = [f"## {_title(section)}", "", f"Images: {sources}.{_size_note(section)}", ""]
    if section.cells:
        lines += ["### The grid", "", *table(tables.grid(section))]
        if "grid" in figures:
            lines += [f"![Best validation error of each cell]({figures['grid']})", ""]
    rows = tables.groups(section)
    if len(rows) > 1:
        lines += ["### Every configuration", "", *table(rows)]
        lines += [
            "*Epochs to* a validation error: the first with no higher one. *Images/s*: of "
            "training, the median epoch. *The post's*: one run each, at 128x128: its best "
            "validation error and, where it was published, its test error. Speed and time are as "
            "the runs had them, with whatever else ran on their machines.", "",
        ]  # fmt: skip
    lines += _unfinished(section.runs, failed) + _unrecorded(section)
    lines += _curves(figures)
    if section.cells:
        lines += ["### The claims", ""]
        for verdict in verdicts:
            lines += _claim(verdict)
    return [
        *lines, "### The runs", "", *table(tables.runs(section)),
        "*Stood still*: the number of first epochs in a row with a training error of at least "
        f"{percent(tables.TAKEN_OFF)}. No run is left out for it.", "",
    ]  # fmt: skip


def _size_note(section: Section) -> str:
    if section.variant == "full":
        return ""
    return " The post's experiment is at 128x128: a verdict here is one at this size."


def _unfinished(runs: Sequence[Found], failed: dict[str, str]) -> list[str]:
    found = [each for each in runs if each.result is None]
    if not found:
        return []
    return [
        "Unfinished, and so in the curves but not in the tables above:", "",
        *(
            f"- {code(each.folder)}: {each.epochs} of {each.planned} epochs"
            + (", not tested yet" if each.epochs >= each.planned else "")
            + f"; best validation error so far {percent(tables.best_so_far(each))} (1 seed)"
            + _failure(each.folder, failed)
            for each in found
        ), "",
    ]  # fmt: skip


def _unrecorded(section: Section) -> list[str]:
    """Says what older runs were recorded without."""
    labels: dict[tuple[str, ...], list[str]] = {}
    for label, by_seed in section.groups.items():
        for each in by_seed.values():
            of = labels.setdefault(each.place.unrecorded, [])
            if label not in of:
                of.append(label)
    return [
        line
        for fields, of in labels.items()
        if fields
        for line in (
            f"Runs of {', '.join(map(code, of))} were recorded before these fields existed, and "
            f"count as if they had today's values: {', '.join(map(code, fields))}.", "",
        )
    ]  # fmt: skip


def _curves(figures: dict[str, str]) -> list[str]:
    lines = []
    for number in ("1", "2"):
        name = figures.get(f"figure{number}")
        if name:
            lines += [f"![The post's figure {number}, redrawn over seeds]({name})", ""]
    if lines:
        lines += [
            "The post's figures, in their own axes of errors. A line is thin beyond the epochs "
            "that all of its seeds have done. The post counts epochs from 0, its first point being "
            "after the first epoch: here that is epoch 1. Its curves are read off its plots to "
            "about 0.4 points and go on beyond the axis where its runs were longer.", "",
        ]  # fmt: skip
    if "others" in figures:
        lines += [f"![Errors of what is not a cell of the grid]({figures['others']})", ""]
    return ["### The curves", "", *lines] if lines else []


def _claim(verdict: Verdict) -> list[str]:
    lines = [
        f"#### {verdict.number}. {verdict.claim}", "",
        f"**{verdict.verdict.capitalize()}.** {' '.join(verdict.sentences)}".rstrip(), "",
    ]  # fmt: skip
    if verdict.missing:
        lines += [f"Missing: {'; '.join(verdict.missing)}.", ""]
    return [*lines, *(table(verdict.rows) if len(verdict.rows) > 1 else [])]


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
