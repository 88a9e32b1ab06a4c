"""Markdown's pieces: text that is not of this code, tables, and the one-file HTML page."""

import base64
import html
import re
from pathlib import Path

import markdown

from experiments.asking.answers import Table

# What Markdown or HTML would take for markup: an underscore only where it is not within a word.
_SPECIAL = re.compile(r"[&<>`*\[\]|\\]|(?<![^\W_])_|_(?![^\W_])")

_STYLE = """
:root { color-scheme: light; }
body { max-width: 66rem; margin: 0 auto; padding: 1rem; color: #222; background: #fff;
  font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: break-word; }
h1, h2, h3 { line-height: 1.25; margin: 2em 0 0.6em; }
h1 { margin-top: 0.5em; }
h2 { border-top: 1px solid #ddd; padding-top: 1em; }
img { max-width: 100%; height: auto; }
code { background: #f3f3f3; padding: 0.1em 0.25em; border-radius: 3px; font-size: 0.9em; }
.scroll { overflow-x: auto; margin: 1em 0; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
td { white-space: nowrap; }
td:first-child { white-space: normal; min-width: 5rem; }
th, td { padding: 0.35em 0.8em 0.35em 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid #e4e4e4; }
th { border-bottom: 2px solid #bbb; }
"""


def text(of: str) -> str:
    """Writes text so that Markdown shows it as it is."""
    # A line end would end a table's row.
    return _SPECIAL.sub(lambda found: f"&#{ord(found[0])};", " ".join(of.split()))


def code(of: str) -> str:
    """The same, set as code; what would end the code or a table's cell is written as text."""
    return f"`{of}`" if of and not set(of) & set("`|\n\r\\") else text(of)


def table(rows: Table) -> list[str]:
    """Makes the lines of a table, whose first row is the head, and an empty one after it."""
    head, *rest = [f"| {' | '.join(row)} |" for row in rows]
    return [head, f"|{' --- |' * len(rows[0])}", *rest, ""]


def page(source: str, folder: Path) -> str:
    """Makes one self-contained HTML page.

    Args:
      source: Markdown, with a title in its first line.
      folder: of the PNGs that it names; they go into the page.
    """
    title = html.escape(source.partition("\n")[0].lstrip("# "))
    body = markdown.markdown(source, extensions=["tables", "sane_lists", "toc"])
    body = body.replace("<table>", '<div class="scroll"><table>')
    body = body.replace("</table>", "</table></div>")
    body = re.sub(r'src="([^":/]+\.png)"', lambda found: _embedded(folder / found[1]), body)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n"
        "</body>\n</html>\n"
    )


def _embedded(path: Path) -> str:
    content = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'src="data:image/png;base64,{content}"'
