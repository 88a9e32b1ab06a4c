"""The ablation's report: a verdict on each claim of the post, figures and tables.

python -m experiments.report --runs=DIR [--output=DIR]

Reads every run below --runs, those of a sweep in progress too, and writes report.html, the same as
report.md, and the figures. Needs pip install -e '.[report]'.
"""

from pathlib import Path

from absl import flags

from bn_vgg import cli, provenance
from bn_vgg.errors import needing

_RUNS = flags.DEFINE_string(
    "runs", None, "Folder that the runs are in, at any depth.", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the report; RUNS/report without it.")


def main() -> None:
    """Runs the command."""
    with needing("report"):
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
