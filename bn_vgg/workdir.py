"""What a run keeps in its folder besides checkpoints: config, data, metrics, result.

config.json     the configuration, nested, as run;
data.json       the data's fingerprint, classes and numbers of examples;
metrics.jsonl   a line per epoch;
result.json     written when the run is finished.
"""

import json
import os
from typing import Any

from etils import epath

from bn_vgg.errors import UserError

# What may differ from start to start, besides more epochs: it changes nothing but speed.
_ONLY_SPEED = {"data.placement", "eval.batch_size"}


class Workdir:
    """A run's folder, local or `gs://`. Only the first host writes."""

    def __init__(self, path: str, *, writes: bool = True):
        self.path = epath.Path(path).expanduser()
        self._writes = writes

    @property
    def checkpoints(self) -> epath.Path:
        """Where the checkpoints are; Orbax wants it absolute."""
        folder = self.path / "checkpoints"
        # epath would resolve gs:// as if it were a local folder.
        return folder if "://" in str(folder) else epath.Path(os.path.abspath(folder))

    def claim(self, config: dict[str, Any], data: dict[str, Any]) -> None:
        """Takes the folder for a run of `config` on `data`, or goes on with one.

        Raises:
          UserError: it holds a run of another configuration or on other data, or cannot
            be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if (self.path / "config.json").exists():
                _refuse_other(self.path, self.read("config.json"), config)
            if (self.path / "data.json").exists():
                _refuse_other_data(self.path, self.read("data.json"), data)
            self.write("config.json", config)
            self.write("data.json", data)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"cannot write the working directory {self.path}: {reason}") from error

    def read(self, name: str) -> Any:
        """Reads a JSON file.

        Raises:
          UserError: it is missing or no JSON.
        """
        path = self.path / name
        try:
            return json.loads(path.read_text())
        except FileNotFoundError as error:
            raise UserError(f"{self.path} holds no run: there is no {name} in it") from error
        except json.JSONDecodeError as error:
            raise UserError(f"{path} is damaged: {error}") from error

    def exists(self, name: str) -> bool:
        """Whether the file is there."""
        return (self.path / name).exists()

    def write(self, name: str, content: Any) -> None:
        """Writes a JSON file so that it is there whole or not at all."""
        self._write_text(name, json.dumps(content, indent=2) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """Reads the epochs' lines; none where nothing was written yet."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines()]

    def write_metrics(self, lines: list[dict[str, Any]]) -> None:
        """Writes all epochs' lines anew: object stores cannot append."""
        self._write_text("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))

    def _write_text(self, name: str, text: str) -> None:
        if not self._writes:
            return
        partial = self.path / f"{name}.partial"
        try:
            partial.write_text(text)
            partial.replace(self.path / name)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"cannot write {self.path / name}: {reason}") from error


def flatten(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turns {'a': {'b': 1}} into {'a.b': 1}; tuples become lists, as in JSON.

    Only what holds something is taken apart: {'a': {}} stays as it is.
    """
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def _refuse_other(path, old: dict[str, Any], new: dict[str, Any]) -> None:
    old, new = flatten(old), flatten(new)
    if new["num_epochs"] > old.get("num_epochs", 0):
        old["num_epochs"] = new["num_epochs"]
    old |= {field: new[field] for field in _ONLY_SPEED & new.keys()}
    missing = "(not there)"
    differing = [
        f"{field} was {old.get(field, missing)} and is {new.get(field, missing)}"
        for field in sorted(old.keys() | new.keys())
        if old.get(field, missing) != new.get(field, missing)
    ]
    if differing:
        raise UserError(
            f"{path} holds a run of another configuration: {'; '.join(differing)}. "
            "Name another --workdir (only num_epochs may grow)"
        )


def _refuse_other_data(path, old: dict[str, Any], new: dict[str, Any]) -> None:
    if old["fingerprint"] != new["fingerprint"]:
        raise UserError(
            f"{path} holds a run on other data: the content of {new['source']} has changed "
            "since. Name another --workdir"
        )
