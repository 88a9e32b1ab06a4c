"""Compares runs over seeds, by any fields of their configurations: a table and a figure.

python -m experiments.compare RUNS [--by=FIELD,FIELD] [--against=VALUE] [--target=PERCENT]

Compares all finished runs below the folder RUNS. Needs pip install -e '.[report]'.
"""

import textwrap
from pathlib import Path

from absl import flags

from bn_vgg import cli
from bn_vgg.errors import UserError, wrap_import_errors

_BY = flags.DEFINE_list("by", ["model.norm"], "Fields of the configuration to group by.")
_AGAINST = flags.DEFINE_string(
    "against", None, "The group to compare with: a value of the first field, or of several."
)
_TARGET = flags.DEFINE_float(
    "target", None, "Also compare the time to this validation error (%).", 0, 100
)
_OUTPUT = flags.DEFINE_string("output", None, "The figure; by default RUNS/compare-FIELD.png.")


def main(path: str) -> None:
    """Runs the command."""
    with wrap_import_errors("report"):
        from experiments import comparison, plots
        from experiments.runs import read_runs
    by = list(dict.fromkeys(_BY.value))
    runs, epochs, unused = read_runs(path, extra_keys=comparison.extra_keys(by))
    output = Path(_OUTPUT.value or Path(path, f"compare-{'-'.join(by)}.png"))
    unfinished = runs[~runs["finished"].astype(bool)]
    for run in unfinished.itertuples():
        unused[run.folder] = f"no result yet, {run.epochs} of {run.num_epochs} epochs"
    if unused:
        _say("Left out: " + "; ".join(f"{name} ({why})" for name, why in unused.items()))
    if len(unfinished) == len(runs):
        raise UserError(f"no run below {path} is finished")
    if _TARGET.value is not None:
        runs["seconds_to"] = runs["folder"].map(comparison.seconds_to(epochs, _TARGET.value))
    runs, fields, besides = comparison.group(runs.drop(unfinished.index), by)
    if added := fields[len(by) :]:
        _say(f"Runs also differ in {', '.join(added)}, so they are grouped by these, too")
    if besides:
        _say(f"Groups differ in {', '.join(besides)}, too")
    if runs["hardware"].nunique() > 1:
        _say(f"Times are not comparable: runs were made on {', '.join(runs['hardware'].unique())}")
    if runs["commit"].nunique() > 1:
        _say(f"Runs were made by {runs['commit'].nunique()} versions of this code")
    measured = comparison.measure(runs, fields, _AGAINST.value, _TARGET.value)
    reached = "" if _TARGET.value is None else f", time to {_TARGET.value:g}% without compiling"
    caption = (
        f"By {', '.join(fields)}: best validation error (%), its difference from "
        f"{_AGAINST.value or 'the first group'}'s over shared seeds, test error (%), time and "
        f"speed{reached}. Mean ± half of the 95% interval over seeds."
    )
    _say(caption)
    print(f"\n{comparison.table(measured)}\n")
    plots.save(comparison.draw(measured, runs, fields, f"{caption} Rings: seeds."), output)
    print(output)


def _say(text: str) -> None:
    print(textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False))


if __name__ == "__main__":
    cli.run(main, positional=("RUNS",))
