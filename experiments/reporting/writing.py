"""Writes a report: its figures, report.md and report.html."""

from pathlib import Path

from matplotlib.figure import Figure

from bn_vgg import cli
from experiments import figures
from experiments.reporting import curves, markup, page
from experiments.reporting.grid_figure import draw_grid
from experiments.reporting.sections import Section


def write(report: page.Report, output: Path) -> list[Path]:
    """Writes all files of a report into a folder, which is made. Returns them.

    Raises:
      OSError: it cannot be written.
    """
    output.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    names: dict[str, dict[str, str]] = {}
    for section in report.sections:
        of_section = names.setdefault(section.slug, {})
        for name, figure in _draw(section).items():
            path = output / f"{name}-{section.slug}.png"
            with cli.replacing(path) as partial:
                figures.save(figure, partial)
            of_section[name] = path.name
            written.append(path)
    source = page.markdown(report, names)
    for name, content in {
        "report.md": source,
        "report.html": markup.page(source, output),
    }.items():
        with cli.replacing(output / name) as partial:
            partial.write_text(content, encoding="utf-8")
        written.append(output / name)
    return written


def _draw(section: Section) -> dict[str, Figure]:
    drawn = {name: curves.draw(name, section) for name in curves.FIGURES}
    drawn["others"] = curves.draw_others(section)
    drawn["grid"] = draw_grid(section)
    return {name: figure for name, figure in drawn.items() if figure is not None}
