"""What a run keeps in its folder besides checkpoints; bn_vgg/README.md lists the files."""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any

from etils import epath

import bn_vgg
from bn_vgg import locking
from bn_vgg.errors import UserError, cannot_read, cannot_write, differences

# Of a run's files. Raise it when this code could not go on with a run of the version before.
FORMAT = 4
# What may differ from start to start, besides more epochs: it changes nothing but speed.
ONLY_SPEED = {
    "data.placement", "eval.batch_size", "checkpoint.every_steps", "debug.nans",
    "resources.CPU", "resources.GPU", "resources.TPU",
}  # fmt: skip
# Fields whose values are dicts of anybody's own.
KWARGS = ("model.norm_kwargs", "model.kwargs", "optimizer.kwargs", "schedule.kwargs")


class Workdir:
    """A run's folder, local or `gs://`. Only the first host writes."""

    def __init__(self, path: str, *, writes: bool = True):
        self.path = epath.Path(path).expanduser()
        self._local, self._writes = "://" not in path, writes
        self.damaged = self.path / "damaged"

    @property
    def checkpoints(self) -> epath.Path:
        """Where the checkpoints are; Orbax wants it absolute.

        Raises:
          UserError: none can be kept there, because of the path.
        """
        # epath would resolve gs:// as if it were a local folder.
        path = epath.Path(os.path.abspath(self.path)) if self._local else self.path
        # Orbax looks for its files by glob patterns, and TensorStore takes UTF-8 without escapes.
        if odd := re.search(r"[*?\[\\\udc80-\udcff]", str(path)):
            raise UserError(
                f"no checkpoint can be kept in {path}, because of {odd[0]!a} in its path; name "
                "another --workdir"
            )
        return path / "checkpoints"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes out, on this machine or a shared file system.

        An object store has no locks: nothing is done there, nor by hosts that do not write.

        Raises:
          UserError: another process is in it; the message names it. Or it cannot be written.
        """
        if not (self._writes and self._local):
            yield
            return
        with cannot_write(f"the working directory {self.path}"):
            self.path.mkdir(parents=True, exist_ok=True)
            holding = contextlib.ExitStack()
            holding.enter_context(locking.held(Path(self.path) / ".lock"))
        with holding:
            try:
                yield
            finally:
                # A folder where no run came to be is removed.
                with contextlib.suppress(OSError):
                    if {each.name for each in self.path.iterdir()} <= {".lock", ".lock.json"}:
                        shutil.rmtree(self.path)

    def claim(self, config: dict[str, Any], data: dict[str, Any]) -> None:
        """Takes the folder for a run of `config`, nested, on `data`, or goes on with one.

        Raises:
          UserError: it holds a run of another configuration or format or on other data, or cannot
            be written.
        """
        with cannot_write(f"the working directory {self.path}"):
            if self._writes:
                self.path.mkdir(parents=True, exist_ok=True)
            self.check_format()
            if self.exists("config.json"):
                _refuse_other(self.path, self.read("config.json"), config)
            elif (self.path / "checkpoints").exists():
                raise UserError(
                    f"{self.path} holds checkpoints, but no config.json: copy all of it"
                )
            old = self.read("data.json") if self.exists("data.json") else data
            if any(old.get(x) != data[x] for x in ("fingerprint", "class_names", "examples")):
                raise UserError(
                    f"{self.path} holds a run on other data: {data['source']} has changed, or, of "
                    "a folder, the files' times (copy with `cp -p`). Name another --workdir"
                )
            self.write("format.json", {"format": FORMAT, "bn_vgg": bn_vgg.__version__})
            self.write("config.json", config)
            self.write("data.json", data)

    def check_format(self) -> None:
        """Raises a UserError where another version of the code has written the folder."""
        if not self.exists("config.json"):
            return
        # Format 1 had no such file.
        about = self.read("format.json") if self.exists("format.json") else {"format": 1}
        if about["format"] != FORMAT:
            written = f", written by bn_vgg {about['bn_vgg']}" if "bn_vgg" in about else ""
            raise UserError(
                f"{self.path} holds a run of format {about['format']}{written}; this version goes "
                f"on with format {FORMAT} alone: name another --workdir, or use that version"
            )

    def exists(self, name: str) -> bool:
        """Whether the file is there; a UserError where the system does not say."""
        with cannot_read(self.path):
            return (self.path / name).exists()

    def read(self, name: str) -> Any:
        """Reads a JSON file."""
        return self._read(name, json.loads)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Reads the epochs' lines; none where nothing was written yet."""
        if not self.exists("metrics.jsonl"):
            return []
        return self._read("metrics.jsonl", lambda text: [*map(json.loads, text.splitlines())])

    def _read(self, name: str, parse: Callable[[str], Any]) -> Any:
        path = self.path / name
        try:
            with cannot_read(path):
                return parse(path.read_text())
        except FileNotFoundError as error:
            raise UserError(f"{self.path} holds no run: there is no {name} in it") from error
        except ValueError as error:  # no JSON, or no text
            raise UserError(f"{path} is damaged: {error}") from error

    def write(self, name: str, content: Any) -> None:
        """Writes a JSON file so that it is there whole or not at all."""
        self._write_text(name, json.dumps(content, indent=2) + "\n")

    def write_metrics(self, lines: list[dict[str, Any]]) -> None:
        """Writes all epochs' lines anew: object stores cannot append."""
        self._write_text("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))

    def _write_text(self, name: str, text: str) -> None:
        if not self._writes:
            return
        partial = self.path / f"{name}.partial"
        with cannot_write(f"{self.path / name} ({len(text):,} bytes)"):
            try:
                with partial.open("w") as file:
                    file.write(text)
                    if self._local:  # there before it takes the other's name
                        file.flush()
                        os.fsync(file.fileno())
                partial.replace(self.path / name)
            except OSError:
                with contextlib.suppress(OSError):
                    partial.unlink()
                raise


def flatten(
    nested: dict[str, Any], prefix: str = "", fields: Container[str] = ()
) -> dict[str, Any]:
    """Turns {'a': {'b': 1}} into {'a.b': 1}; tuples become lists, as in JSON.

    An empty dict, and the value of each of `fields`, named in full, stay as they are.
    """
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value and name not in fields:
            flat |= flatten(value, f"{name}.", fields)
        else:
            flat[name] = list(value) if isinstance(value, tuple) else value
    return flat


def _refuse_other(path, old: dict[str, Any], new: dict[str, Any]) -> None:
    old, new = flatten(old), flatten(json.loads(json.dumps(new)))  # tuples in tuples, too
    # A schedule other than `constant` would have had other rates for the epochs that are done.
    may_grow = new["schedule.name"] == "constant"
    if may_grow and new["num_epochs"] > old.get("num_epochs", 0):
        old["num_epochs"] = new["num_epochs"]
    old |= {field: new[field] for field in ONLY_SPEED & new.keys()}
    if differing := differences(old, new):
        raise UserError(
            f"{path} holds a run of another configuration: its {differing}. Name another "
            "--workdir (only num_epochs may grow, and that under a constant learning rate)"
        )
