"""The report's page: what templates/ shows of each section, and its figures."""

import re
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import pandas as pd

from bn_vgg import cli
from experiments import claims, plots, stats, tables
from experiments.presets import CELLS
from experiments.runs import crop_size

TEMPLATES = Path(__file__).parent / "templates"
NOTES = {
    "errors": "Errors are means ± standard errors over seeds. The best validation error is the "
    "lowest of all epochs, so it flatters by the choice; the test error is that epoch's network's.",
    "curves": "The post's curves are read off its plots to about 0.4 points. It counts epochs from "
    "0, its first point being after the first epoch: here that is epoch 1.",
    "cells": "*The post's*: best validation error of one run, at 128x128. Times are as the runs "
    "had them, on the hardware below, with whatever else ran there. A field that a run was "
    "recorded without counts as the cell's.",
    "runs": "*Stood still*: the number of first epochs in a row with a training error of at least "
    f"{stats.TAKEN_OFF:.0%}. No run is left out for it.",
}


def write(runs: pd.DataFrame, epochs: pd.DataFrame, output: Path, about: dict[str, Any]) -> None:
    """Writes report.md, report.html and the figures into a folder, which is made.

    Args:
      runs: of `experiments.runs.read_runs`.
      epochs: of the same.
      output: the folder.
      about: what else the templates show: `root`, `unused`, `command` and `commit`.

    Raises:
      OSError: it cannot be written.
    """
    output.mkdir(parents=True, exist_ok=True)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined,
        autoescape=jinja2.select_autoescape(["html.j2"]), trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"marked": marked, "in_row": in_row}
    sections = [
        _section(name, own, epochs[epochs["section"] == name], output)
        for name, own in runs.groupby("section", sort=False)
    ]
    page = about | {
        "sections": sections,
        "claims": claims.CLAIMS,
        "general_rule": claims.GENERAL_RULE,
        "notes": NOTES,
        "finished": int(runs["finished"].sum()),
        "total": len(runs),
    }
    for name in ("report.md", "report.html"):
        with cli.replacing(output / name) as partial:
            text = environment.get_template(f"{name}.j2").render(page)
            partial.write_text(text, encoding="utf-8")


def _section(name: str, runs: pd.DataFrame, epochs: pd.DataFrame, output: Path) -> dict[str, Any]:
    """Draws a section's figures, and returns what the templates show of it."""
    variant, _, number = name.partition("-")
    size = f"{crop_size(variant)}x{crop_size(variant)}"
    drawn = {"best": plots.draw_best(tables.longest(runs), f"Best validation errors, {size}")}
    drawn |= {each: plots.draw_post_figure(each, runs, epochs) for each in plots.FIGURES}
    drawn |= {f"changes-{cell}": plots.draw_changes(cell, runs, epochs) for cell in CELLS}
    figures = {}
    for figure, picture in drawn.items():
        if picture is not None:
            figures[figure] = f"{figure}-{name}.png"
            with cli.replacing(output / figures[figure]) as partial:
                plots.save(picture, partial)
    return {
        "title": f"{size} ({variant}{f', data {number}' if number else ''})",
        "sources": [f"`{source}`" for source in sorted(runs["data.source"].unique())],
        "note": ""
        if variant == "full"
        else "The post's experiment is at 128x128: a verdict here is one at this size.",
        "verdicts": [(claim, claim.decide(runs, epochs)) for claim in claims.CLAIMS],
        "figures": figures,
        "grid": tables.grid(runs),
        "cells": tables.cells(runs),
        "runs": tables.every_run(runs),
    }


def marked(text: Any) -> markupsafe.Markup:
    """Turns the few marks of Markdown that our texts have into HTML, and escapes the rest."""
    html = str(markupsafe.escape(text)).replace("&lt;br&gt;", "<br>")
    for pattern, tag in ((r"`(.+?)`", "code"), (r"\*\*(.+?)\*\*", "b"), (r"\*(.+?)\*", "i")):
        html = re.sub(pattern, rf"<{tag}>\1</{tag}>", html)
    return markupsafe.Markup(html)


def in_row(text: Any) -> str:
    """Makes a text fit for a cell of a Markdown table."""
    return str(text).replace("|", "\\|").replace("\n", " ")
