"""Trains a whole sweep: cells of the grid, each with several seeds.

python -m experiments.sweep --preset=five_way --seeds=3

Stop it and start it again as you like: what is finished is skipped, what was interrupted goes
on, what failed is tried again. `--dry_run` prints every run's command, `--status` a table of
how far each is. experiments/presets.py lists the presets and says how to write your own;
experiments/README.md explains the rest.
"""

import shutil
import sys
import time
from pathlib import Path

from absl import flags

from bn_vgg import cli, config_file
from bn_vgg.errors import UserError
from experiments import state, status
from experiments.driver import ATTEMPTS, Driver
from experiments.executors import Executor
from experiments.executors.local import Local
from experiments.executors.ray import Ray
from experiments.executors.sky import TASK, Sky
from experiments.plan import (
    PlannedRun,
    find_preset,
    parse_seeds,
    parse_settings,
    parse_shard,
    plan,
)
from experiments.presets import PRESETS, VARIANTS

_PRESET = flags.DEFINE_string("preset", None, "A name in experiments/presets.py, or your file.")
_OUT = flags.DEFINE_string("out", None, "The sweep's folder; default: runs/<preset and variant>.")
_SEEDS = flags.DEFINE_string("seeds", "1", "How many, 3 for 0, 1, 2; or which: 0,5,7.")
_VARIANT = flags.DEFINE_enum("variant", "full", VARIANTS, "Size of the configurations.")
_SET = flags.DEFINE_multi_string("set", [], "FIELD=VALUE for every run; may be repeated.")
_BUDGET = flags.DEFINE_float(
    "budget_minutes", None, "Stop after this time; copy small files to OUT_results.", 0.01
)
_EXECUTOR = flags.DEFINE_enum("executor", "local", ["local", "ray", "sky"], "Where to run.")
_JOBS = flags.DEFINE_integer("jobs", None, "Runs (with sky: VMs) at once, at most.", 1)
_DEVICES = flags.DEFINE_integer(
    "devices_per_run", None, "GPUs (default 1), TPU chips (1) or cores (2) of each run.", 1
)
_ATTEMPTS = flags.DEFINE_integer("attempts", ATTEMPTS, "At a run that crashes.", 1)
_TENSORBOARD = flags.DEFINE_bool("tensorboard", True, "As bn_vgg.main's.")
_CACHE_DIR = flags.DEFINE_string("cache_dir", None, "As bn_vgg.main's.")
_RAY_ADDRESS = flags.DEFINE_string("ray_address", "auto", "Address of the Ray cluster's head.")
_SKY_TASK = flags.DEFINE_string("sky_task", str(TASK), "A SkyPilot task file.")
_SHARD = flags.DEFINE_string("shard", None, "I/N: every Nth run, from the Ith; OUT has the plan.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the commands and end.")
_STATUS = flags.DEFINE_bool("status", False, "Print how far the sweep in --out is and end.")


def main() -> int | None:
    """Runs the command. Returns 1 if runs were given up."""
    started = time.monotonic()
    out = _out()
    if _STATUS.value:
        runs = state.read_plan(out)["runs"]
        width = min(shutil.get_terminal_size((status.WIDTH, 0)).columns, 160)
        print(status.run_table(runs, state.read_states(out, runs), width))
        return None
    if _PRESET.value is None:
        raise UserError(f"--preset is missing; there are: {', '.join(PRESETS)}")
    settings = parse_settings(_SET.value)
    runs = plan(
        find_preset(_PRESET.value), variant=_VARIANT.value, seeds=parse_seeds(_SEEDS.value),
        settings=settings,
    )  # fmt: skip
    until = started + 60 * _BUDGET.value if _BUDGET.value else float("inf")
    executor = _make_executor(out)
    if _SHARD.value:
        index, count = parse_shard(_SHARD.value)
        return _drive(executor, state.DriverState(None), out, runs[index::count], until)
    if _DRY_RUN.value:
        print("\n".join(executor.command(work) for work in executor.divide(runs)))
        return None
    with state.driving(out) as driver_state:
        state.claim(out, _PRESET.value, _VARIANT.value, settings, runs)
        return _drive(executor, driver_state, out, runs, until)


def _drive(
    executor: Executor, driver_state: state.DriverState, out: str, runs: list[PlannedRun],
    until: float,
) -> int | None:  # fmt: skip
    to_do = state.unfinished(out, runs)
    work = [each for each in executor.divide(runs) if any(run in to_do for run in each.runs)]
    driver = Driver(executor, driver_state, out, cli.show, _ATTEMPTS.value)
    try:
        if work:
            slots = executor.open(work)
            names = slots[0] if len(set(slots)) == 1 else ", ".join(slots)
            done = f" ({len(runs) - len(to_do)} of {len(runs)} are done)" * (to_do != runs)
            cli.show(f"{len(to_do)} runs to do{done}, {len(slots)} at once on {names}")
            if isinstance(executor, Local):
                _advise(executor.platform, to_do[0])
            driver.drive(work, runs, len(slots), until)
    finally:
        if _BUDGET.value and "://" not in out:
            cli.show(f"small files: {state.copy_small_files(out, runs)}")
        cli.show(status.summary(runs, state.read_states(out, runs)))
    for each, error in driver.failed:
        print(f"failed: {each.name}: {error}", file=sys.stderr)
    cli.show(f"\n{status.cell_table(runs, state.read_states(out, runs))}\n")
    cli.show(f"python -m experiments.report --runs={out}")
    return 1 if driver.failed else None


def _advise(platform: str, run: PlannedRun) -> None:
    config = config_file.load_config(run.config_arguments)
    if platform == "cpu" and config.get("variant") == "full" and config.data.crop_size >= 128:
        cli.show("128x128 takes a CPU hours a run: --variant=small is the same at 48x48")


def _out() -> str:
    if _OUT.value:
        return _OUT.value
    if _PRESET.value is None:
        raise UserError("--out is missing: the sweep's folder" if _STATUS.value else
                        f"--preset is missing; there are: {', '.join(PRESETS)}")  # fmt: skip
    suffix = "" if _VARIANT.value == "full" else f"-{_VARIANT.value}"
    return f"runs/{Path(_PRESET.value).stem}{suffix}"


def _make_executor(out: str) -> Executor:
    run_flags = [] if _TENSORBOARD.value else ["--notensorboard"]
    run_flags += [f"--cache_dir={_CACHE_DIR.value}"] if _CACHE_DIR.value else []
    if _EXECUTOR.value == "ray":
        return Ray(out, run_flags, _RAY_ADDRESS.value)
    if _EXECUTOR.value == "sky":
        sweep_flags = [
            f"--preset={_PRESET.value}", f"--variant={_VARIANT.value}", f"--seeds={_SEEDS.value}",
            *(f"--set={text}" for text in _SET.value), f"--attempts={_ATTEMPTS.value}", *run_flags,
        ]  # fmt: skip
        sweep_flags += [f"--devices_per_run={_DEVICES.value}"] if _DEVICES.value else []
        return Sky(out, run_flags, sweep_flags, _SKY_TASK.value, _JOBS.value, _DEVICES.value)
    return Local(out, run_flags, _JOBS.value, _DEVICES.value)


if __name__ == "__main__":
    cli.run(main)
