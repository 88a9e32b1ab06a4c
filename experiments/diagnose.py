"""One page about a run: its errors, its running averages, its dead units, and what they mean.

python -m experiments.diagnose WORKDIR [--output=DIR]

Reads metrics.jsonl and config.json, of a run in progress too, and writes diagnosis.md and
diagnosis.png. The picture needs matplotlib: pip install -e '.[report]'.
"""

from pathlib import Path
from typing import Any

from absl import flags

from bn_vgg import cli
from bn_vgg.errors import UserError
from experiments.diagnosing import diagnosis, verdicts
from experiments.diagnosing.diagnosis import KINDS, Line, Run, percent, value

_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder for diagnosis.md and .png; WORKDIR/diagnosis unless it is given."
)

# What the page says of the configuration, where it is known.
_SETTINGS = {
    "model.norm": "norm {}",
    "batch_size": "batches of {}",
    "model.dropout_rate": "dropout {:g}",
}
_COLUMNS = {
    "train": "train/error_rate",
    "valid": "valid/error_rate",
    "best": "valid/best_error_rate",
    "running": KINDS["running"],
    "precise": KINDS["precise"],
    "batch": KINDS["batch"],
}


def main(workdir: str) -> None:
    """Runs the command."""
    with cli.needing("report", {"matplotlib": "picture"}):
        from experiments import figures
        from experiments.diagnosing import diagnosis_figure
    run = diagnosis.read_run(workdir)
    if "://" in workdir and not _OUTPUT.value:
        raise UserError(f"{workdir} is not on this machine: name a folder with --output")
    output = Path(_OUTPUT.value or Path(workdir).expanduser() / "diagnosis")
    spikes = diagnosis.find_spikes(run.lines, run.sizes)
    try:
        output.mkdir(parents=True, exist_ok=True)
        with cli.replacing(output / "diagnosis.png") as partial:
            picture = diagnosis_figure.draw_diagnosis(run.lines, spikes, title_of(run))
            figures.save(picture, partial)
        with cli.replacing(output / "diagnosis.md") as partial:
            partial.write_text(markdown(run, spikes), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror or error}") from error
    print(f"{output}/diagnosis.md")


def title_of(run: Run) -> str:
    """The run's name and seed, as far as they are known."""
    name, seed = run.config.get("name", "A run"), run.config.get("seed")
    return name if seed is None else f"{name}, seed {seed}"


def markdown(run: Run, spikes: list[diagnosis.Spike]) -> str:
    """Makes the page."""
    settings = [
        text.format(run.config[key]) for key, text in _SETTINGS.items() if key in run.config
    ]
    planned = run.config.get("num_epochs")
    last = run.lines[-1]["epoch"]
    settings.append(f"{last} of {planned} epochs" if planned else f"{last} epochs")
    return "\n".join(
        [
            f"# {title_of(run)}",
            "",
            f"The run: {', '.join(settings)}.",
            "",
            *(f"- {sentence}" for sentence in verdicts.explain(run.lines, run.config, run.sizes)),
            "",
            "![Errors, running averages and dead units over epochs](diagnosis.png)",
            "",
            *table(run.lines, spikes),
            "",
            *_notes(run.sizes),
            "",
        ]
    )


def table(lines: list[Line], spikes: list[diagnosis.Spike]) -> list[str]:
    """Makes a row for each epoch, of the columns that any line has."""
    columns = {
        name: key
        for name, key in _COLUMNS.items()
        if any(value(line, key) is not None for line in lines)
    }
    head = ["epoch", *columns]
    distances = diagnosis.layers(lines, "mean_distance")
    head += ["largest mean distance"] if distances else []
    head += ["spike of the"] if spikes else []
    causes = {spike.epoch: spike.cause for spike in spikes}
    rows = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for line in lines:
        cells: list[Any] = [line["epoch"]]
        found = [value(line, key) for key in columns.values()]
        cells += ["" if rate is None else percent(rate) for rate in found]
        if distances:
            cells.append(_largest(line, distances))
        if spikes:
            cells.append(causes.get(line["epoch"], ""))
        rows.append(f"| {' | '.join(map(str, cells))} |")
    return rows


def _largest(line: Line, layers: list[str]) -> str:
    found = [(value(line, f"mean_distance/{layer}"), layer) for layer in layers]
    known = [(distance, layer) for distance, layer in found if distance is not None]
    if not known:
        return ""
    distance, layer = max(known)
    return f"{distance:.2g} ({layer})"


def _notes(sizes: diagnosis.Sizes) -> list[str]:
    """What the columns are, and the rules of the verdict."""
    valid, compared = (f"{n:,}" if n else "an unknown number of" for n in sizes)
    share = percent(diagnosis.SPIKE_SHARE).replace(".0", "")
    return [
        f"*train*: running mean over the epoch's batches. *valid* and *best*: five windows, "
        f"running averages, {valid} images. *running*, *precise* and *batch*: the centre window "
        f"of {compared} of them, by running averages, by statistics recomputed with the epoch's "
        "weights, and by each evaluation batch's own; only these three compare with one another. "
        "*Mean distance*: root mean square over channels of (running mean - precise mean), in "
        "precise standard deviations.",
        "",
        f"A *spike* is an epoch whose validation error is more than "
        f"{diagnosis.points(diagnosis.SPIKE_POINTS)} and {diagnosis.MANY_EPOCHS_ERRORS} binomial "
        "standard errors above that of two epochs, one before and one after it, with at most "
        f"{diagnosis.SPIKE_WIDTH} epochs in between. The first epoch is none; the last is "
        f"compared with the lowest of the {diagnosis.SPIKE_WIDTH} before it. Its excess is "
        "measured from the higher of the two epochs, on the compared images by running averages. "
        f"The spike is *of the averages* if precise statistics take away at least {share} of it, "
        f"*of the weights* if the error by precise statistics itself rises by at least {share} "
        "of it, and undecided if both, neither, or if the compared images do not show it.",
        "",
        "A difference on the same images *may be chance* below "
        f"{diagnosis.FEW_EPOCHS_ERRORS} standard errors ({diagnosis.MANY_EPOCHS_ERRORS} where all "
        "epochs are looked at), taking the largest standard error that two such errors can have: "
        "how many images only one of them gets right is not recorded. So it is conservative.",
    ]


if __name__ == "__main__":
    cli.run(main, positional=("WORKDIR",))
