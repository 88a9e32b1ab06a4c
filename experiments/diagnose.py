"""Explains a run's metrics: spikes, lagging averages and dead units, in sentences and a figure.

python -m experiments.diagnose RUN [--output=DIR]

Reads the folder of a run, finished or not, prints explanations and a table of its epochs, and draws
diagnosis.png. Needs pip install -e '.[report]'.
"""

import textwrap
from pathlib import Path

from absl import flags

from bn_vgg import cli
from bn_vgg.errors import UserError, wrap_import_errors

_OUTPUT = flags.DEFINE_string("output", None, "Folder for diagnosis.png; by default RUN.")


def main(path: str) -> None:
    """Runs the command."""
    with wrap_import_errors("report"):
        from experiments import diagnosis, plots, runs, spikes
    config, run, epochs = runs.read_run(path)
    if "://" in path and not _OUTPUT.value:
        raise UserError(f"{path} is not on this machine: name a folder with --output")
    output = Path(_OUTPUT.value or path).expanduser()
    found = spikes.find_spikes(epochs, run["valid_examples"], run["compared_examples"])
    if config["eval.statistics"] == "precise" or config["optimizer.average_decay"]:
        found["cause"] = spikes.UNDECIDED
        found["reason"] = "the validation error is not one by the running averages"
    title = f"{config['name']}, seed {config['seed']}"
    print(
        f"{title}: {run['epochs']} epochs of {config['num_epochs']}; "
        f"{run['valid_examples'] or 'an unknown number of'} validation images, of which "
        f"{run['compared_examples'] or 'an unknown number'} are compared.\n"
    )
    for sentence in diagnosis.explain(run, epochs, found):
        print(textwrap.fill(sentence, 100, initial_indent="- ", subsequent_indent="  "))
    print(f"\n{diagnosis.table(epochs, found).to_string(index=False)}\n")
    for note in diagnosis.NOTES.split("\n\n"):
        print(f"{textwrap.fill(note, 100)}\n")
    plots.save(diagnosis.draw(epochs, found, title), output / "diagnosis.png")
    print(f"{output}/diagnosis.png")


if __name__ == "__main__":
    cli.run(main, positional=("RUN",))
