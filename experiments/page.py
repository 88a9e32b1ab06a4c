"""Renders the report: report.md by a template, report.html from it, and the figures."""

from pathlib import Path
from typing import Any

import jinja2
import markdown
import pandas as pd

from bn_vgg import cli
from experiments import claims, plots, stats, tables

_TEMPLATES = Path(__file__).parent / "templates"
_OTHER_SIZE = "These verdicts are for this size; the post's experiment is at 128x128."


def write(runs: pd.DataFrame, epochs: pd.DataFrame, output: Path, about: dict[str, Any]) -> None:
    """Writes report.md, report.html and the figures into a folder.

    `about` has further values for the template: `root`, `unused`, `command` and `commit`.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["in_row"] = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    sections = [
        _section(name, own, epochs[epochs["section"] == name], output)
        for name, own in runs.groupby("section", sort=False)
    ]
    text = environment.get_template("report.md.j2").render(
        about, sections=sections, claims=claims.CLAIMS, general_rule=claims.GENERAL_RULE,
        standstill=f"{stats.STANDSTILL_ERROR:.0%}", finished=int(runs["finished"].sum()),
        total=len(runs),
    )  # fmt: skip
    body = markdown.markdown(text, extensions=["tables", "toc", "sane_lists"])
    for word in (claims.SUPPORTED, claims.CONTRADICTED):
        body = body.replace(f"<strong>{word}<", f'<strong class="{word}">{word}<')
    html = environment.get_template("report.html.j2").render(body=body)
    for name, content in (("report.md", text), ("report.html", html)):
        with cli.atomic_write(output / name) as partial:
            partial.write_text(content, encoding="utf-8")


def _section(name: str, runs: pd.DataFrame, epochs: pd.DataFrame, output: Path) -> dict[str, Any]:
    """Draws a section's figures, and returns its values for the template."""
    variant, _, number = name.partition("-")
    side = runs["data.crop_size"].iloc[0]
    title = f"Best validation errors, {side}x{side}"
    pictures = {"best": plots.draw_best(tables.longest_runs(runs), title)}
    pictures |= {each: plots.draw_post_figure(each, runs, epochs) for each in plots.FIGURES}
    figures = {}
    for figure, picture in pictures.items():
        if picture is not None:
            figures[figure] = f"{figure}-{name}.png"
            plots.save(picture, output / figures[figure])
    return {
        "title": f"{side}x{side} ({variant}{f', data {number}' if number else ''})",
        "sources": [f"`{source}`" for source in sorted(runs["data.source"].unique())],
        "note": "" if variant == "full" else _OTHER_SIZE,
        "verdicts": [(claim, claim.decide(runs, epochs)) for claim in claims.CLAIMS],
        "figures": figures,
        "grid": tables.grid(runs),
        "cells": tables.cells(runs),
        "runs": tables.all_runs(runs),
    }
