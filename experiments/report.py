"""The ablation's report: figures, tables, and a verdict on each claim of the post.

python -m experiments.report RUNS_DIR [--output=DIR] [--record=DIR]

Reads every run below RUNS_DIR, those of a sweep in progress too, and writes report.md, the same
as one self-contained report.html, and the figures. Needs matplotlib and markdown:
pip install -e '.[report]'.
"""

import shutil
from pathlib import Path

from absl import flags

from bn_vgg import cli, provenance
from bn_vgg.errors import UserError
from experiments.records import keep_run
from experiments.reporting import claims, sections
from experiments.reporting.found import Found, Left, find
from experiments.reporting.progress import Progress, find_progress
from experiments.state import PLAN, STATE

_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder for the report; RUNS_DIR/report unless it is given."
)
_RECORD = flags.DEFINE_string(
    "record", None, "Folder to copy the small files of every used run and the report to."
)


def main(runs_dir: str) -> None:
    """Runs the command."""
    with cli.needing("report", {"matplotlib": "picture", "markdown": "page"}):
        from experiments.reporting import page, writing
    if "://" in runs_dir:
        raise UserError(f"{runs_dir} is not on this machine: copy the runs here first")
    root = Path(runs_dir).expanduser()
    record = Path(_RECORD.value).expanduser() if _RECORD.value else None
    if record and record.resolve().is_relative_to(root.resolve()):
        raise UserError(
            f"--record={record} is within {root}, where its copies would be found as runs; name "
            "a folder outside of it"
        )
    found, left = find(root)
    sorted_, duplicates = sections.sort(found)
    sweep, damaged = _sweep(root)
    report = page.Report(
        root=runs_dir,
        sections=sorted_,
        verdicts=[claims.decide(section.cells) for section in sorted_],
        left=sorted([*left, *duplicates, *damaged]),
        progress=sweep,
        command=provenance.command(),
        commit=provenance.commit(),
    )
    output = Path(_OUTPUT.value).expanduser() if _OUTPUT.value else root / "report"
    try:
        written = writing.write(report, output)
        if record:
            used = [each for section in sorted_ for each in section.runs]
            _record(used, root, written, record)
    except OSError as error:
        raise UserError(
            f"cannot write {error.filename or output}: {error.strerror or error}"
        ) from error
    print(f"{output}/report.html")


def _sweep(root: Path) -> tuple[Progress | None, list[Left]]:
    """How far the sweep is, if there is one that can be read."""
    try:
        return find_progress(root), []
    except UserError as error:
        return None, [Left(PLAN, str(error))]


def _record(used: list[Found], root: Path, written: list[Path], to: Path) -> None:
    """Copies the used runs' small files, and the report, into a folder of the same layout."""
    (to / "report").mkdir(parents=True, exist_ok=True)
    for each in used:
        keep_run(root / each.folder, to / each.folder)
    for name in (PLAN, STATE):
        if (root / name).exists():
            shutil.copyfile(root / name, to / name)
    for path in written:
        shutil.copyfile(path, to / "report" / path.name)


if __name__ == "__main__":
    cli.run(main, positional=("RUNS_DIR",))
