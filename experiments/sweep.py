"""Trains a whole sweep: cells of the grid, each with several seeds.

python -m experiments.sweep --preset=five_way --seeds=3 --out=runs/five_way

Stop it and start it again as you like: what is finished is skipped, what was interrupted goes
on, what failed is tried again. `--dry_run` prints every run's command, `--status` a table of
how far each is, of a sweep that another process drives too. experiments/presets.py lists the
presets and says how to write your own.
"""

import shutil
import sys
from pathlib import Path

from absl import flags

from bn_vgg import cli
from bn_vgg.data.cache import choose_folder
from bn_vgg.errors import UserError
from experiments.presets import PRESETS, VARIANTS
from experiments.sweeping import state
from experiments.sweeping.backend import Backend
from experiments.sweeping.driver import ATTEMPTS, Driver
from experiments.sweeping.local import Local
from experiments.sweeping.plan import find_preset, parse_seeds, parse_settings, plan
from experiments.sweeping.ray_cluster import RayCluster
from experiments.sweeping.sky_jobs import TASK, SkyJobs
from experiments.sweeping.status import summary, table

_PRESET = flags.DEFINE_string("preset", None, "A name in experiments/presets.py, or your file.")
_OUT = flags.DEFINE_string("out", None, "The sweep's folder; runs/<preset> unless it is given.")
_SEEDS = flags.DEFINE_string("seeds", "1", "How many, 3 for 0, 1, 2; or which: 0,5,7.")
_VARIANT = flags.DEFINE_enum("variant", "full", VARIANTS, "Of the configs.")
_SET = flags.DEFINE_multi_string("set", [], "FIELD=VALUE for every run; may be repeated.")
_BACKEND = flags.DEFINE_enum("backend", "local", ["local", "ray", "sky"], "Where to run.")
_JOBS = flags.DEFINE_integer("jobs", None, "Runs at once (local).", lower_bound=1)
_ATTEMPTS = flags.DEFINE_integer("attempts", ATTEMPTS, "At a run that fails.", lower_bound=1)
_TENSORBOARD = flags.DEFINE_bool("tensorboard", True, "As bn_vgg.main's.")
_CACHE_DIR = flags.DEFINE_string("cache_dir", None, "As bn_vgg.main's.")
_RAY_ADDRESS = flags.DEFINE_string("ray_address", "auto", "Of the Ray cluster's head (ray).")
_SKY_TASK = flags.DEFINE_string("sky_task", str(TASK), "A SkyPilot task file (sky).")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the commands and end.")
_STATUS = flags.DEFINE_bool("status", False, "Print how far the sweep in --out is and end.")


def main() -> int | None:
    """Runs the command. Returns 1 where runs were given up."""
    if _STATUS.value:
        print(status_of(_out()))
        return None
    if _PRESET.value is None:
        raise UserError(f"--preset is missing; there are: {', '.join(PRESETS)}")
    settings = parse_settings(_SET.value)
    runs = plan(
        find_preset(_PRESET.value), variant=_VARIANT.value, seeds=parse_seeds(_SEEDS.value),
        settings=settings,
    )  # fmt: skip
    out = _out()
    backend = _make_backend(out)
    if _DRY_RUN.value:
        print("\n".join(backend.commands(runs)))
        return None
    state.claim(out, _PRESET.value, _VARIANT.value, settings, runs)
    driver_state = state.DriverState(out)
    to_do = state.unfinished(out, runs)
    cli.show(summary(runs, state.read_states(out, runs)))
    driver = Driver(to_do, driver_state, cli.show, _ATTEMPTS.value)
    try:
        driver.drive(backend.slots(to_do, cli.show) if to_do else [])
    finally:
        backend.close()
        cli.show(summary(runs, state.read_states(out, runs)))
    for run in driver.failed:
        print(f"failed: {run.folder}: {driver_state.runs[run.folder]['error']}", file=sys.stderr)
    return 1 if driver.failed else None


def status_of(out: str) -> str:
    """The table of all runs that were ever planned in a folder.

    Raises:
      UserError: it holds no sweep.
    """
    runs = state.read_plan(out)["runs"]
    return table(runs, state.read_states(out, runs), shutil.get_terminal_size((160, 0)).columns)


def _out() -> str:
    if _OUT.value:
        return _OUT.value
    if _PRESET.value is None:
        raise UserError("--out is missing: the sweep's folder")
    return f"runs/{Path(_PRESET.value).stem}"


def _make_backend(out: str) -> Backend:
    run_flags = [] if _TENSORBOARD.value else ["--notensorboard"]
    run_flags += [f"--cache_dir={_CACHE_DIR.value}"] if _CACHE_DIR.value else []
    if _BACKEND.value == "ray":
        return RayCluster(out, run_flags, _RAY_ADDRESS.value)
    if _BACKEND.value == "sky":
        return SkyJobs(out, run_flags, _SKY_TASK.value)
    return Local(out, run_flags, choose_folder(_CACHE_DIR.value), _JOBS.value)


if __name__ == "__main__":
    cli.run(main)
