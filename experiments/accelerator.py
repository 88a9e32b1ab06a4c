"""What an accelerator can do in the time that there is, what matters most first.

python -m experiments.accelerator --budget_minutes=25

Trains mean-only and full batch norm with random cropping at full size with three seeds, seed
after seed, then the rest of the five-way ablation, then of the grid, until the time is up. The
same command goes on from there: on this machine, or on another one that was given OUT. It needs
the image cache, or files to make it from, and the core packages alone. What is small of each run
(configuration, epochs' lines, result) is copied to OUT_results, for `python -m
experiments.report` on a machine with matplotlib.

It is a sweep: `python -m experiments.sweep --status --out=OUT` shows how far it is.
"""

import shutil
import time
from pathlib import Path

from absl import flags

from bn_vgg import cli
from bn_vgg.data.cache import choose_folder, open_or_build
from bn_vgg.errors import UserError
from experiments.presets import PRESETS, VARIANTS
from experiments.records import keep_run
from experiments.sweeping import state
from experiments.sweeping.driver import Driver
from experiments.sweeping.local import Local
from experiments.sweeping.plan import PlannedRun, parse_seeds, parse_settings, plan
from experiments.sweeping.status import summary

_BUDGET = flags.DEFINE_float(
    "budget_minutes", None, "After so many the runs are stopped.", lower_bound=0.01
)
_OUT = flags.DEFINE_string("out", "runs/accelerator", "Folder of the runs.")
_SEEDS = flags.DEFINE_string("seeds", "3", "How many, 3 for 0, 1, 2; or which: 0,5,7.")
_VARIANT = flags.DEFINE_enum("variant", "full", VARIANTS, "Of the configs.")
_SET = flags.DEFINE_multi_string("set", [], "FIELD=VALUE for every run; may be repeated.")
_CACHE_DIR = flags.DEFINE_string("cache_dir", None, "As bn_vgg.main's.")


def main() -> int | None:
    """Runs the command. Returns 1 where runs were given up."""
    started = time.monotonic()
    if _BUDGET.value is None:
        raise UserError("--budget_minutes is missing: how long the runs may take")
    settings = parse_settings(_SET.value)
    runs = plan_runs(_VARIANT.value, parse_seeds(_SEEDS.value), settings)
    out, folder = _OUT.value, choose_folder(_CACHE_DIR.value)
    if "://" in out:
        raise UserError(f"--out={out} is not on this machine, where the small files are copied")
    to_do = state.unfinished(out, runs)
    _prepare(to_do, folder)
    state.claim(out, "accelerator", _VARIANT.value, settings, runs)
    driver_state = state.DriverState(out)
    driver = Driver(to_do, driver_state, cli.show)
    try:
        backend = Local(out, ["--notensorboard"], folder)
        slots = backend.slots(to_do, cli.show) if to_do else []
        driver.drive(slots, until=started + 60 * _BUDGET.value)
    finally:
        keep_small_files(Path(out), runs)
        cli.show(summary(runs, state.read_states(out, runs)))
    return 1 if driver.failed else None


def _prepare(runs: list[PlannedRun], cache_folder: Path) -> None:
    """Decodes the images before any run: what cannot be had would fail each, in paid time.

    Raises:
      UserError: they cannot be read.
    """
    data = [cli.load_config(run.config_arguments).data for run in runs]
    for source, min_side in dict.fromkeys((each.source, each.min_side) for each in data):
        open_or_build(source, min_side=min_side, folder=cache_folder)


def keep_small_files(out: Path, runs: list[PlannedRun]) -> None:
    """Copies the plan and what is small of each run to a folder beside the sweep's."""
    kept = out.with_name(f"{out.name}_results")
    kept.mkdir(parents=True, exist_ok=True)
    for name in (state.PLAN, state.STATE):
        if (out / name).exists():
            shutil.copyfile(out / name, kept / name)
    for run in runs:
        keep_run(out / run.folder, kept / run.folder)


def plan_runs(variant: str, seeds: list[int], settings: dict[str, str]) -> list[PlannedRun]:
    """All runs of `grid`: first claim 3's two cells, then those of `five_way`, then the others."""
    claim3 = [{"config": "meanonly_crop"}, {"config": "full_crop"}]
    stages = (
        plan(cells, variant=variant, seeds=seeds, settings=settings)
        for cells in (claim3, PRESETS["five_way"], PRESETS["grid"])
    )
    runs = [run for stage in stages for run in stage]
    return [run for i, run in enumerate(runs) if run not in runs[:i]]


if __name__ == "__main__":
    cli.run(main)
