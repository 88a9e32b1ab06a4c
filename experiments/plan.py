"""The runs of a sweep: their names, folders and exact commands."""

import re
import runpy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bn_vgg import config_file
from bn_vgg.errors import UserError, wrap_errors
from bn_vgg.run_dir import KWARGS
from experiments.presets import PRESETS, Overrides

# Keys of a preset's entry that are not fields of the configuration.
_NOT_FIELDS = ("config", "name", "seed", "stage")


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep."""

    name: str  # of the cell, with its variant: meanonly_crop-small
    seed: int
    config: str  # file and variant: configs/meanonly_crop.py:small
    overrides: dict[str, str]  # fields other than the seed: {"num_epochs": "20"}
    num_epochs: int = 0
    batch_size: int = 0
    resources: dict[str, float] = field(default_factory=dict)  # on a Ray cluster: {"CPU": 1}

    @property
    def folder(self) -> str:
        """The run's folder, relative to the sweep's."""
        return f"{self.name}/seed{self.seed}"

    @property
    def config_arguments(self) -> list[str]:
        """The flags of its configuration."""
        overrides = {"seed": str(self.seed)} | self.overrides
        return [
            f"--config={self.config}",
            *(f"--config.{name}={text}" for name, text in overrides.items()),
        ]

    def workdir(self, out: str) -> str:
        """Returns its working directory; `out` is the sweep's folder or address."""
        return f"{out.rstrip('/')}/{self.folder}"

    def arguments(self, out: str, *flags: str) -> list[str]:
        """Returns the arguments of `python` for this run; `flags` are more flags of bn_vgg.main."""
        workdir = f"--workdir={self.workdir(out)}"
        return ["-m", "bn_vgg.main", *self.config_arguments, workdir, *flags]


def find_preset(name: str) -> list[Overrides]:
    """Returns the entries of a preset, by its name or from the user's Python file.

    Raises:
      UserError: there is no such preset, or the file has no `sweep()` or raises an error.
    """
    if name in PRESETS:
        return PRESETS[name]
    if not name.endswith(".py"):
        raise UserError(
            f"--preset: no preset {name!r}; there are: {', '.join(PRESETS)}; or name a Python "
            "file with a sweep() generator"
        )
    with wrap_errors(f"--preset={name}"):
        entries = list(runpy.run_path(name)["sweep"]())
    if not entries:
        raise UserError(f"--preset={name}: sweep() yields nothing")
    for entry in entries:
        numbers = isinstance(entry, dict) and (entry.get("seed", 0), entry.get("stage", 0))
        if not numbers or "config" not in entry or not all(isinstance(x, int) for x in numbers):
            raise UserError(f"--preset={name}: {entry!r} is not a dict as in presets.py")
    return entries


def plan(
    entries: Sequence[Overrides], *, variant: str, seeds: Sequence[int], settings: dict[str, str]
) -> list[PlannedRun]:
    """Lists all runs, ordered by stage and then by seed.

    `seeds` are for entries without a seed of their own. `settings` are overrides of all runs, and
    not part of their names.

    Raises:
      UserError: a cell or field does not exist, a value is invalid, a setting overrides a field in
        which the preset's runs differ, or two runs would share a folder.
    """
    for name in settings:
        if any(entry.get(name) != entries[0].get(name) for entry in entries):
            raise UserError(f"--set={name}: the preset's runs differ in it")
    staged = []
    for entry in entries:
        own = [entry["seed"]] if "seed" in entry else seeds
        run = _plan_run(entry, variant, max(own), settings)  # checks the largest seed
        for position, seed in enumerate(own):
            staged.append((entry.get("stage", 0), position, replace(run, seed=seed)))
    runs = [run for _, _, run in sorted(staged, key=lambda each: each[:2])]
    folders = [run.folder for run in runs]
    for folder in folders:
        if folders.count(folder) > 1:
            raise UserError(f"two runs of the sweep are called {folder}: give each a 'name'")
    return runs


def _plan_run(entry: Overrides, variant: str, seed: int, settings: dict[str, str]) -> PlannedRun:
    own = {
        name: value if isinstance(value, str) else repr(value)
        for name, value in entry.items()
        if name not in _NOT_FIELDS
    }
    for name, value in entry.items():
        if isinstance(value, dict) and name not in KWARGS:
            raise UserError(
                f"--preset: field {name} is a dict: write '{name}.FIELD' for each of its fields"
            )
    config = str(entry["config"])
    config = config if config.endswith(".py") else f"configs/{config}.py"
    name = str(entry.get("name") or config_file.name_run(Path(config).stem, own))
    # A user's own file need not take a variant.
    if variant != "full":
        name, config = f"{name}-{variant}", f"{config}:{variant}"
    run = PlannedRun(name, seed, config, own | settings | {"name": name})
    loaded = config_file.load_config(run.config_arguments)
    resources = {key: amount for key, amount in loaded.resources.items() if amount}
    return replace(
        run, num_epochs=loaded.num_epochs, batch_size=loaded.batch_size, resources=resources
    )


def parse_seeds(text: str) -> list[int]:
    """Parses `3` as 0, 1, 2, and `0,5,7` or `5,` as given; raises a UserError for other text."""
    if re.fullmatch(r"\d+(,\d+)*,?", text):
        numbers = [int(part) for part in text.removesuffix(",").split(",")]
        seeds = numbers if "," in text else list(range(numbers[0]))
        if seeds and len(set(seeds)) == len(seeds):
            return seeds
    raise UserError(f"--seeds={text}: a number of seeds, such as 3, or different seeds: 0,5,7")


def parse_settings(given: Sequence[str]) -> dict[str, str]:
    """Splits `FIELD=VALUE` texts; raises a UserError for other text, or for a run's own fields."""
    settings = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UserError(f"--set={text}: write FIELD=VALUE, such as num_epochs=20")
        if name in _NOT_FIELDS:
            raise UserError(f"--set={text}: every run has a {name} of its own")
        settings[name] = value
    return settings


def parse_shard(text: str) -> tuple[int, int]:
    """Parses `0/4`, the first of four shards, as (0, 4); raises a UserError for other text."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise UserError(f"--shard={text}: write I/N, from 0/N to N-1/N")
    return int(match[1]), int(match[2])
