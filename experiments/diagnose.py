"""A page about a run: its errors, running averages and dead units, and what they mean.

python -m experiments.diagnose RUN [--output=DIR]

Reads a run's folder, of a run in progress too, and writes diagnosis.md and diagnosis.png. Needs
pip install -e '.[report]'.
"""

from pathlib import Path

from absl import flags

from bn_vgg import cli
from bn_vgg.errors import UserError

_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder for diagnosis.md and .png; RUN/diagnosis unless it is given."
)
_PACKAGES = {"pandas": "diagnosis", "matplotlib": "picture"}


def main(path: str) -> None:
    """Runs the command."""
    with cli.needing("report", _PACKAGES):
        from experiments import diagnosis, plots, runs, spikes
    config, run, epochs = runs.read_run(path)
    if "://" in path and not _OUTPUT.value:
        raise UserError(f"{path} is not on this machine: name a folder with --output")
    output = Path(_OUTPUT.value or Path(path).expanduser() / "diagnosis")
    found = spikes.find_spikes(epochs, run["valid_examples"], run["compared_examples"])
    title = f"{config.get('name', 'A run')}, seed {config.get('seed', 'not known')}"
    counts = (
        f"{run['epochs']} of {config.get('num_epochs', 'an unknown number of')} epochs; "
        f"{run['valid_examples'] or 'an unknown number of'} validation images, of which "
        f"{run['compared_examples'] or 'an unknown number'} are compared."
    )
    sentences = diagnosis.explain(run, epochs, found)
    rows = [*diagnosis.table(epochs, found).T.reset_index().T.astype(str).to_numpy()]
    rows.insert(1, ["---"] * len(rows[0]))
    page = [
        f"# {title}", "", counts, "", *(f"- {sentence}" for sentence in sentences), "",
        "![Errors, running averages and dead units over epochs](diagnosis.png)", "",
        *(f"| {' | '.join(row)} |" for row in rows), "", diagnosis.NOTES, "", spikes.RULE, "",
    ]  # fmt: skip
    try:
        output.mkdir(parents=True, exist_ok=True)
        with cli.replacing(output / "diagnosis.png") as partial:
            plots.save(diagnosis.draw(epochs, found, title), partial)
        with cli.replacing(output / "diagnosis.md") as partial:
            partial.write_text("\n".join(page), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror or error}") from error
    print("\n".join([*sentences, f"{output}/diagnosis.md"]))


if __name__ == "__main__":
    cli.run(main, positional=("RUN",))
