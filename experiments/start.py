"""Which seeds take off? The first steps of training, with and without RMSProp's bias correction.

python -m experiments.start --source='photos/*.zip' --norms=none,mean_only

Trains each normalizer with random cropping for a few steps, with the recipe's optimizer and with
`config.optimizer.bias_correction`, and writes start.jsonl (a line for each run), start.md and
start.png to --output. The same command goes on where it was stopped. The figure needs
matplotlib: pip install -e '.[report]'.
"""

import json
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from bn_vgg import cli, config_file, provenance
from bn_vgg.data.cache import choose_folder
from bn_vgg.errors import UserError
from experiments.first_steps import (
    CELLS,
    CHUNK,
    Record,
    grouped,
    line,
    make_runner,
    of_setting,
    page,
)
from experiments.presets import VARIANTS

_SOURCE = flags.DEFINE_string("source", None, "As --config.data.source.")
_OUTPUT = flags.DEFINE_string("output", "runs/start", "Folder for start.jsonl, .md and .png.")
_NORMS = flags.DEFINE_list("norms", ["none", "mean_only"], f"Of {', '.join(CELLS)}.")
_SEEDS = flags.DEFINE_integer("seeds", 8, "How many: 8 for 0 to 7.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 80, f"Of each run; a multiple of {CHUNK}.", lower_bound=20)
_VARIANT = flags.DEFINE_enum("variant", "full", VARIANTS, "Size of the configurations.")
_CACHE_DIR = flags.DEFINE_string("cache_dir", None, "As bn_vgg.main's.")


def main() -> None:
    """Runs the command."""
    if unknown := [norm for norm in _NORMS.value if norm not in CELLS]:
        raise UserError(f"--norms: no {unknown[0]!r}; there are: {', '.join(CELLS)}")
    if _STEPS.value % CHUNK:
        raise UserError(f"--steps={_STEPS.value} is no multiple of {CHUNK}")
    with cli.needing("report", {"matplotlib": "figure"}):
        import matplotlib  # noqa: F401 - before hours of training
    output, cache = Path(_OUTPUT.value).expanduser(), choose_folder(_CACHE_DIR.value)
    output.mkdir(parents=True, exist_ok=True)
    cli.keep_compiled(cache)
    path = output / "start.jsonl"
    records = [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []
    for norm in _NORMS.value:
        for bias_correction in (False, True):
            config = _load(norm, bias_correction)
            _check_same(records, config)
            done = {each["seed"] for each in of_setting(records, norm, bias_correction)}
            missing = [seed for seed in range(_SEEDS.value) if seed not in done]
            take = make_runner(config, cache, _STEPS.value) if missing else None
            for seed in missing:
                assert take is not None
                records.append(_about(config) | take(seed))
                with path.open("a") as file:
                    file.write(json.dumps(records[-1]) + "\n")
                cli.show(line(records[-1]))
    with cli.replacing(output / "start.png") as partial:
        _draw(records, partial)
    (output / "start.md").write_text(page(records), encoding="utf-8")
    cli.show(f"{output}/start.md")


def _load(norm: str, bias_correction: bool) -> ConfigDict:
    path = Path(__file__).resolve().parents[1] / "configs" / f"{CELLS[norm]}.py"
    source = [f"--config.data.source={_SOURCE.value}"] if _SOURCE.value else []
    correction = f"--config.optimizer.bias_correction={bias_correction}"
    return config_file.load_config([f"--config={path}:{_VARIANT.value}", correction, *source])


def _check_same(records: list[Record], config: ConfigDict) -> None:
    """Raises a UserError where runs of another size, source or length are in the folder."""
    wanted = {"variant": config.variant, "source": config.data.source, "steps": _STEPS.value}
    for each in records:
        found = {"variant": each["variant"], "source": each["source"], "steps": len(each["loss"])}
        if found != wanted:
            raise UserError(f"--output={_OUTPUT.value} holds runs of {found}, not of {wanted}")


def _about(config: ConfigDict) -> Record:
    return {
        "norm": config.model.norm, "bias_correction": config.optimizer.bias_correction,
        "variant": config.variant, "source": config.data.source,
        "hardware": provenance.hardware(), "versions": provenance.versions(),
        "commit": provenance.commit(), "command": provenance.command(),
    }  # fmt: skip


def _draw(records: list[Record], path: Path) -> None:
    """Training error over steps, a panel for each setting and a line for each seed."""
    import numpy as np
    from matplotlib.figure import Figure

    groups = grouped(records)
    rows = -(-len(groups) // 2)
    figure = Figure(figsize=(10, 0.5 + 2.4 * rows), layout="constrained")
    panels = figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False)
    for axes in panels.flat[len(groups) :]:
        axes.set_visible(False)
    for axes, (title, runs) in zip(panels.flat, groups.items(), strict=False):
        for run in runs:
            error = np.reshape(run["error_rate"], (-1, CHUNK)).mean(axis=1)
            colour = "#0072B2" if run["bias_correction"] else "#D55E00"
            axes.plot(CHUNK * np.arange(1, len(error) + 1), 100 * error, lw=0.9, color=colour)
        axes.axhline(50, color="grey", lw=0.8, ls="--")
        axes.grid(visible=True, axis="y", color="#e6e6e6")
        axes.set_title(f"{title} ({len(runs)} seeds)", loc="left", size=10)
    figure.supxlabel("step", size=10)
    figure.supylabel(f"training error in %, mean of {CHUNK} steps", size=10)
    figure.savefig(path, format="png", dpi=160)


if __name__ == "__main__":
    cli.run(main)
