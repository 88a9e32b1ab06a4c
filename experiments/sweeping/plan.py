"""The runs of a sweep: their names, folders and exact commands."""

import re
import runpy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from bn_vgg import cli
from bn_vgg.errors import UserError
from experiments.presets import PRESETS, Overrides

# Of what is overridden, what does not make it another experiment.
_NO_PART_OF_NAMES = ("config", "name", "seed")


class PlannedRun(NamedTuple):
    """One run of a sweep.

    Attributes:
      name: the configuration's, with its variant: `meanonly_crop-small`.
      seed: of the run.
      config: file and variant: `configs/meanonly_crop.py:small`.
      overrides: values of fields as texts, besides the seed: {'num_epochs': '20'}.
      num_epochs: that it is planned for.
      resources: what it asks of a cluster: {'CPU': 1}.
    """

    name: str
    seed: int
    config: str
    overrides: dict[str, str]
    num_epochs: int = 0
    resources: dict[str, float] = {}  # noqa: RUF012  (never changed)

    @property
    def folder(self) -> str:
        """Of the run, below the sweep's."""
        return f"{self.name}/seed{self.seed}"

    @property
    def config_arguments(self) -> list[str]:
        """The arguments that make its configuration."""
        overrides = {"seed": str(self.seed)} | self.overrides
        return [
            f"--config={self.config}",
            *(f"--config.{field}={text}" for field, text in overrides.items()),
        ]

    def arguments(self, out: str, *further: str) -> list[str]:
        """The arguments of `python` that make it.

        Args:
          out: the sweep's folder.
          further: flags of `bn_vgg.main`.
        """
        workdir = f"--workdir={self.workdir(out)}"
        return ["-m", "bn_vgg.main", *self.config_arguments, workdir, *further]

    def workdir(self, out: str) -> str:
        """Its working directory, below the sweep's folder or the address `out`."""
        return f"{out.rstrip('/')}/{self.folder}"


def find_preset(name: str) -> list[Overrides]:
    """Returns the overrides of a preset, by its name or from a file of the user's.

    Raises:
      UserError: there is none of that name, or the file has no `sweep()` or fails.
    """
    if name in PRESETS:
        return PRESETS[name]
    if not name.endswith(".py"):
        raise UserError(
            f"--preset: no preset {name!r}; there are: {', '.join(PRESETS)}; or name a Python "
            "file with a sweep() generator"
        )
    path = Path(name)
    if not path.is_file():
        raise UserError(f"--preset: no file {path}")
    try:
        entries = list(runpy.run_path(str(path))["sweep"]())
    except Exception as error:  # whatever the file's own code raises
        raise UserError(f"--preset={path}: {type(error).__name__}: {error}") from error
    for entry in entries:
        if not isinstance(entry, Mapping) or "config" not in entry:
            raise UserError(f"--preset={path}: sweep() yields {entry!r}, no dict with a 'config'")
        try:
            int(entry.get("seed", 0))
        except (TypeError, ValueError) as error:
            seed = entry["seed"]
            raise UserError(f"--preset={path}: sweep() yields {seed!r} as a seed") from error
        for field, value in entry.items():
            if isinstance(value, Mapping) and not field.endswith("_kwargs"):
                raise UserError(
                    f"--preset={path}: sweep() yields {field!r} as a dict: write each field "
                    f"of it by itself, '{field}.{next(iter(value), 'FIELD')}'"
                )
    if not entries:
        raise UserError(f"--preset={path}: sweep() yields nothing")
    return entries


def plan(
    entries: Iterable[Overrides], *, variant: str, seeds: Sequence[int], settings: dict[str, str]
) -> list[PlannedRun]:
    """Lists the runs, all of the first seed before those of the second.

    Args:
      entries: of a preset.
      variant: one of `VARIANTS`.
      seeds: that each is made with.
      settings: overrides of all runs, as texts.

    Raises:
      UserError: a cell or field does not exist, a value means nothing, a field is set twice,
        or two runs would share a folder.
    """
    of_seed: dict[int, list[PlannedRun]] = {}
    for entry in entries:
        twice = sorted(settings.keys() & entry.keys())
        if twice:
            raise UserError(f"--set={twice[0]}: the preset sets it itself, to {entry[twice[0]]!r}")
        for seed in [int(entry["seed"])] if "seed" in entry else seeds:
            of_seed.setdefault(seed, []).append(_planned(entry, variant, seed, settings))
    runs = [run for runs in of_seed.values() for run in runs]
    folders = [run.folder for run in runs]
    for folder in folders:
        if folders.count(folder) > 1:
            raise UserError(f"two runs of the sweep are called {folder}: give each a 'name'")
    return runs


def _planned(entry: Overrides, variant: str, seed: int, settings: dict[str, str]) -> PlannedRun:
    own = {field: as_flag(x) for field, x in entry.items() if field not in _NO_PART_OF_NAMES}
    config = _config_file(str(entry["config"]))
    # The full size is what a file gives unasked; one of the user's own may know no variants.
    config += "" if variant == "full" else f":{variant}"
    run = PlannedRun("", seed, config, own | settings)
    loaded = cli.load_config(run.config_arguments)
    name = loaded.name
    if "name" in entry or own:
        name = str(entry.get("name", _name(Path(str(entry["config"])).stem, own)))
        # As configs/ calls its cells.
        name += "" if variant == "full" else f"-{variant}"
        run.overrides["name"] = name
        loaded = cli.load_config(run.config_arguments)
    return run._replace(name=name, num_epochs=loaded.num_epochs, resources=_resources(loaded))


def _config_file(config: str) -> str:
    if config.endswith(".py"):
        return config
    cells = sorted(path.stem for path in Path("configs").glob("[!_]*.py"))
    if not cells:
        raise UserError(f"there is no configs/ in {Path.cwd()}: run it in the checkout")
    if config not in cells:
        raise UserError(f"no cell {config!r}; there are: {', '.join(cells)}")
    return f"configs/{config}.py"


def _name(config: str, own: dict[str, str]) -> str:
    parts = [f"{field.rpartition('.')[2]}={text}" for field, text in own.items()]
    return re.sub(r"[^\w.=+-]+", "_", "-".join([config, *parts])).strip("_")


def _resources(config: ConfigDict) -> dict[str, float]:
    return {name: amount for name, amount in config.resources.items() if amount}


def as_flag(value: Any) -> str:
    """Writes a value as a `--config.FIELD=` flag takes it."""
    return value if isinstance(value, str) else repr(value)


def parse_seeds(text: str) -> list[int]:
    """Reads `3` as 0, 1, 2, and `0,5,7`, or `5,`, as they stand.

    Raises:
      UserError: it is neither.
    """
    try:
        numbers = [int(part) for part in text.removesuffix(",").split(",")]
    except ValueError as error:
        raise UserError(f"--seeds={text}: a number of seeds, or seeds with commas") from error
    seeds = numbers if "," in text else list(range(numbers[0]))
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds={text}: at least one seed, from 0, each once")
    return seeds


def parse_settings(given: Sequence[str]) -> dict[str, str]:
    """Splits `FIELD=VALUE` texts.

    Raises:
      UserError: one of them is none, or sets what each run has of its own.
    """
    settings = {}
    for text in given:
        field, equals, value = text.partition("=")
        if not equals or not field:
            raise UserError(f"--set={text}: FIELD=VALUE is wanted, such as num_epochs=20")
        if field in _NO_PART_OF_NAMES:
            raise UserError(f"--set={text}: every run has a {field} of its own")
        settings[field] = value
    return settings
