"""Writes the ablation's report: a verdict on each claim of the post, figures and tables.

python -m experiments.report --runs=DIR [--output=DIR]

Reads all runs below --runs, including unfinished ones, and writes report.md, the same content as
report.html, and the figures. Needs pip install -e '.[report]'.
"""

from pathlib import Path

from absl import flags

from bn_vgg import cli, provenance
from bn_vgg.errors import wrap_import_errors

_RUNS = flags.DEFINE_string("runs", None, "Folder with the runs, at any depth.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the report; by default RUNS/report.")


def main() -> None:
    """Runs the command."""
    with wrap_import_errors("report"):
        from experiments import page
        from experiments.runs import read_runs
    runs, epochs, unused = read_runs(_RUNS.value)
    output = Path(_OUTPUT.value or Path(_RUNS.value, "report"))
    about = {
        "root": _RUNS.value, "unused": unused, "command": provenance.command(),
        "commit": provenance.commit() or "not known",
    }  # fmt: skip
    page.write(runs, epochs, output, about)
    print(f"{output}/report.html")


if __name__ == "__main__":
    cli.run(main)
