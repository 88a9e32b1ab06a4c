"""The ablation's report: a verdict on each claim of the post, figures and tables.

python -m experiments.report --runs=DIR [--output=DIR]

Reads every run below --runs, those of a sweep in progress too, and writes report.html, the same as
report.md, and the figures. Needs pip install -e '.[report]'.
"""

from pathlib import Path

from absl import flags

from bn_vgg import cli, provenance
from bn_vgg.errors import UserError, needing

_RUNS = flags.DEFINE_string("runs", None, "Folder that the runs are in, at any depth.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the report; RUNS/report without it.")


def main() -> None:
    """Runs the command."""
    with needing("report"):
        from experiments import page
        from experiments.runs import read_runs
    if not _RUNS.value:
        raise UserError("--runs is missing: give the folder that holds the runs, such as runs")
    if "://" in _RUNS.value:
        raise UserError(f"{_RUNS.value} is not on this machine: copy the runs here first")
    root = Path(_RUNS.value).expanduser()
    output = Path(_OUTPUT.value or root / "report").expanduser()
    runs, epochs, unused = read_runs(root)
    about = {
        "root": _RUNS.value, "unused": unused, "command": provenance.command(),
        "commit": provenance.commit() or "not known",
    }  # fmt: skip
    page.write(runs, epochs, output, about)
    print(f"{output}/report.html")


if __name__ == "__main__":
    cli.run(main)
