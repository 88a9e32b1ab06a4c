"""Trains all runs of a sweep, such as cells of the grid with several seeds each.

python -m experiments.sweep --preset=five_way --seeds=3

The same command resumes a sweep: it skips finished runs, resumes interrupted ones and repeats
failed ones. See experiments/README.md, and experiments/presets.py for presets of your own.
"""

import shutil
import sys
import time
from pathlib import Path

from absl import flags

from bn_vgg import cli
from bn_vgg.errors import EXIT_USER_ERROR, UserError
from experiments import plan, state, status
from experiments.driver import Driver
from experiments.executors import Executor
from experiments.executors.local import Local
from experiments.executors.ray import Ray
from experiments.executors.sky import TASK, Sky
from experiments.presets import PRESETS, VARIANTS

_PRESET = flags.DEFINE_string("preset", None, "A name in experiments/presets.py, or your file.")
_OUT = flags.DEFINE_string("out", None, "The sweep's folder; default: runs/<preset and variant>.")
_SEEDS = flags.DEFINE_string("seeds", "1", "How many (3 for 0, 1, 2), or a list: 0,5,7.")
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
_ATTEMPTS = flags.DEFINE_integer("attempts", 3, "Attempts at a run that crashes.", 1)
_TENSORBOARD = flags.DEFINE_bool("tensorboard", True, "As in bn_vgg.main.")
_WANDB = flags.DEFINE_bool("wandb", False, "As in bn_vgg.main.")
_CACHE_DIR = flags.DEFINE_string("cache_dir", None, "As in bn_vgg.main.")
_RAY_ADDRESS = flags.DEFINE_string("ray_address", "auto", "Address of the Ray cluster's head.")
_SKY_TASK = flags.DEFINE_string("sky_task", str(TASK), "A SkyPilot task file.")
_SHARD = flags.DEFINE_string("shard", None, "I/N: every Nth run, starting at run I (from 0).")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the commands and exit.")
_STATUS = flags.DEFINE_bool("status", False, "Print the progress of the sweep in --out and exit.")


def main() -> int | None:
    """Runs the command. Returns 1, or 2 with --shard, if runs failed."""
    until = time.monotonic() + 60 * _BUDGET.value if _BUDGET.value else float("inf")
    preset = _PRESET.value or ""
    if not (preset or (_STATUS.value and _OUT.value)):
        raise UserError(f"--preset is missing; there are: {', '.join(PRESETS)}")
    suffix = "" if _VARIANT.value == "full" else f"-{_VARIANT.value}"
    out = _OUT.value or f"runs/{Path(preset).stem}{suffix}"
    if _STATUS.value:
        sweep = state.read_sweep(out)
        width = min(shutil.get_terminal_size((status.WIDTH, 0)).columns, 160)
        print(status.run_table(sweep.runs, sweep.states(active=state.is_active(out)), width))
        return None
    runs = every = plan.plan(
        plan.find_preset(preset), variant=_VARIANT.value,
        seeds=plan.parse_seeds(_SEEDS.value), settings=plan.parse_settings(_SET.value),
    )  # fmt: skip
    executor = _make_executor(out)
    if _SHARD.value:
        index, count = plan.parse_shard(_SHARD.value)
        runs = runs[index::count]
    if _DRY_RUN.value:
        print("\n".join(executor.command(work) for work in executor.divide(runs)))
        return None
    if _SHARD.value:
        if "://" not in out:  # on gs:// the sweep that launched this shard writes the plan
            with state.open_sweep(out, every, wait=lambda _: None):
                pass
        return _drive(executor, state.Sweep(out, runs), until)
    with state.open_sweep(out, runs) as sweep:
        return _drive(executor, sweep, until)


def _drive(executor: Executor, sweep: state.Sweep, until: float) -> int | None:
    runs, to_do = sweep.runs, sweep.unfinished()
    work = [each for each in executor.divide(runs) if any(run in to_do for run in each.runs)]
    slots = executor.open(work)[: _JOBS.value] if work else []
    driver = Driver(executor, sweep, len(slots), _ATTEMPTS.value)
    try:
        if work:
            names = slots[0] if len(set(slots)) == 1 else ", ".join(slots)
            done = f" ({len(runs) - len(to_do)} of {len(runs)} are done)" if to_do != runs else ""
            cli.show(f"{len(to_do)} runs to do{done}, {len(slots)} at once on {names}")
            on_cpu = isinstance(executor, Local) and executor.platform == "cpu"
            if on_cpu and _VARIANT.value == "full" and _PRESET.value in PRESETS:
                cli.show("at 128x128 runs take hours on a CPU; --variant=small is 48x48")
            driver.drive(work, until)
    finally:
        if _BUDGET.value and "://" not in sweep.out:
            cli.show(f"small files: {sweep.copy_small_files()}")
        cli.show(status.summary(runs, sweep.states()))
    for each, error in driver.failed:
        print(f"failed: {each.name}: {error}", file=sys.stderr)
    cli.show(f"\n{status.cell_table(runs, sweep.states())}\n")
    if "://" not in sweep.out:  # the report reads only local folders
        cli.show(f"python -m experiments.report --runs={sweep.out}")
    # The sweep that launched a shard must not repeat it, because this one has done so.
    return (EXIT_USER_ERROR if _SHARD.value else 1) if driver.failed else None


def _make_executor(out: str) -> Executor:
    run_flags = [] if _TENSORBOARD.value else ["--notensorboard"]
    run_flags += ["--wandb"] if _WANDB.value else []
    run_flags += [f"--cache_dir={_CACHE_DIR.value}"] if _CACHE_DIR.value else []
    if _EXECUTOR.value == "ray":
        if _DEVICES.value:
            raise UserError("--devices_per_run: for Ray use --set=resources.GPU=… (CPU, TPU)")
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
