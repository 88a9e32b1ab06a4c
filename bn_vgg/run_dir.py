"""A run's folder: its configuration, metrics and result; bn_vgg/README.md lists the files."""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any

from etils import epath
from flax.traverse_util import flatten_dict

import bn_vgg
from bn_vgg import locking
from bn_vgg.errors import UserError, describe_differences, wrap_read_errors, wrap_write_errors

# The version of these files. Increase it when the code can no longer resume older runs.
FORMAT = 4
# Fields that a restart may change, because no number depends on them.
ONLY_SPEED = {
    "data.placement", "eval.batch_size", "checkpoint.every_steps", "debug.nans",
    "resources.CPU", "resources.GPU", "resources.TPU",
}  # fmt: skip
# Fields whose values are dicts with arbitrary keys.
KWARGS = ("model.norm_kwargs", "model.kwargs", "optimizer.kwargs", "schedule.kwargs")


class Workdir:
    """A run's folder, local or `gs://`. Only the first host writes."""

    def __init__(self, path: str, *, writes: bool = True):
        self.path = epath.Path(path).expanduser()
        self._local, self._writes = "://" not in path, writes
        self.damaged = self.path / "damaged"

    @property
    def checkpoints(self) -> epath.Path:
        """The folder of the checkpoints, absolute, as Orbax requires.

        Raises:
          UserError: Orbax cannot write to this path.
        """
        # epath would resolve gs:// as if it were a local folder.
        path = epath.Path(os.path.abspath(self.path)) if self._local else self.path
        # Orbax finds its files by glob patterns, and TensorStore takes only valid UTF-8.
        if odd := re.search(r"[*?\[\\\udc80-\udcff]", str(path)):
            raise UserError(
                f"no checkpoint can be kept in {path}, because of {odd[0]!a} in its path; name "
                "another --workdir"
            )
        return path / "checkpoints"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes out of the folder, on this machine or a shared file system.

        Object stores have no locks: nothing is done there, nor on hosts that do not write.

        Raises:
          UserError: another process uses the folder, or the folder cannot be written.
        """
        if not (self._writes and self._local):
            yield
            return
        with wrap_write_errors(f"the working directory {self.path}"):
            self.path.mkdir(parents=True, exist_ok=True)
            holding = contextlib.ExitStack()
            holding.enter_context(locking.hold_lock(Path(self.path) / ".lock"))
        with holding:
            try:
                yield
            finally:
                # Remove the folder if no run has begun in it.
                with contextlib.suppress(OSError):
                    if {each.name for each in self.path.iterdir()} <= {".lock", ".lock.json"}:
                        shutil.rmtree(self.path)

    def claim(
        self, config: dict[str, Any], data: dict[str, Any], user_code: dict[str, str] | None = None
    ) -> None:
        """Writes `config`, nested, and `data` to the folder, if it holds no other run.

        `user_code` has digests of user-defined code, see `provenance.user_code`.

        Raises:
          UserError: it holds a run of another configuration, format, code or data, or cannot be
            written.
        """
        config, user_code = json.loads(json.dumps(config)), user_code or {}  # tuples become lists
        with wrap_write_errors(f"the working directory {self.path}"):
            if self._writes:
                self.path.mkdir(parents=True, exist_ok=True)
            self.check_format()
            if self._has_begun():
                self._refuse_other(config, data, user_code)
            elif self.exists("config.json") and self.read("config.json") != config and self._writes:
                # Of another configuration, which never began.
                for name in ("events.out.tfevents.*", "wandb.json"):
                    for file in self.path.glob(name):
                        file.unlink()
            about = {"format": FORMAT, "bn_vgg": bn_vgg.__version__, "user_code": user_code}
            self.write("format.json", about)
            self.write("config.json", config)
            self.write("data.json", data)

    def _has_begun(self) -> bool:
        with wrap_read_errors(self.path):
            checkpoints = self.path / "checkpoints"
            kept = checkpoints.exists() and any(checkpoints.iterdir())
            # Without a lock another process may be in its first epoch.
            names = ["metrics.jsonl", "result.json", *([] if self._local else ["config.json"])]
            return kept or any(map(self.exists, names))

    def _refuse_other(
        self, config: dict[str, Any], data: dict[str, Any], user_code: dict[str, str]
    ) -> None:
        if not self.exists("config.json"):
            raise UserError(f"{self.path} holds checkpoints, but no config.json: copy all of it")
        old, new = flatten(self.read("config.json")), flatten(config)
        # Other schedules depend on num_epochs: the epochs so far would have had other rates.
        may_grow = new["schedule.name"] == "constant"
        if may_grow and new["num_epochs"] > old.get("num_epochs", 0):
            old["num_epochs"] = new["num_epochs"]
        old |= {field: new[field] for field in ONLY_SPEED & new.keys()}
        if differing := describe_differences(old, new):
            raise UserError(
                f"{self.path} holds a run of another configuration: its {differing}. Name another "
                "--workdir (only num_epochs may grow, if config.schedule.name is constant)"
            )
        old_data = self.read("data.json") if self.exists("data.json") else data
        if any(old_data.get(x) != data[x] for x in ("fingerprint", "class_names", "examples")):
            raise UserError(
                f"{self.path} holds a run on other data: {data['source']} has changed (in a "
                "folder, file times count: copy with `cp -p`). Name another --workdir"
            )
        old_code = self.read("format.json").get("user_code", user_code)
        if changed := [name for name, digest in user_code.items() if old_code.get(name) != digest]:
            raise UserError(
                f"the code of {changed[0]} has changed since the run in {self.path} began: name "
                "another --workdir"
            )

    def check_format(self) -> None:
        """Raises a UserError if the folder has another version of the files."""
        if not self.exists("config.json"):
            return
        # Format 1 had no such file.
        about = self.read("format.json") if self.exists("format.json") else {"format": 1}
        if about["format"] != FORMAT:
            written = f", written by bn_vgg {about['bn_vgg']}" if "bn_vgg" in about else ""
            raise UserError(
                f"{self.path} holds a run of format {about['format']}{written}; this version can "
                f"resume only format {FORMAT}: name another --workdir, or use that version"
            )

    def exists(self, name: str) -> bool:
        """Whether the file exists; raises a UserError if the folder cannot be read."""
        with wrap_read_errors(self.path):
            return (self.path / name).exists()

    def read(self, name: str) -> Any:
        """Reads a JSON file."""
        return self._read(name, json.loads)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Reads the lines of `metrics.jsonl`, one for each epoch; an empty list without it."""
        if not self.exists("metrics.jsonl"):
            return []
        return self._read("metrics.jsonl", lambda text: [*map(json.loads, text.splitlines())])

    def _read(self, name: str, parse: Callable[[str], Any]) -> Any:
        path = self.path / name
        try:
            with wrap_read_errors(path):
                return parse(path.read_text())
        except FileNotFoundError as error:
            raise UserError(f"{self.path} holds no run: there is no {name} in it") from error
        except ValueError as error:  # not JSON, or not UTF-8
            raise UserError(f"{path} is damaged: {error}") from error

    def write(self, name: str, content: Any) -> None:
        """Writes a JSON file atomically."""
        self._write_text(name, json.dumps(content, indent=2) + "\n")

    def write_metrics(self, lines: list[dict[str, Any]]) -> None:
        """Rewrites the lines of all epochs, because object stores cannot append."""
        self._write_text("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))

    def _write_text(self, name: str, text: str) -> None:
        if not self._writes:
            return
        partial = self.path / f"{name}.partial"
        with wrap_write_errors(f"{self.path / name} ({len(text):,} bytes)"):
            try:
                with partial.open("w") as file:
                    file.write(text)
                    if self._local:  # the content must be on disk before it is renamed
                        file.flush()
                        os.fsync(file.fileno())
                partial.replace(self.path / name)
            except OSError:
                with contextlib.suppress(OSError):
                    partial.unlink()
                raise


def flatten(nested: dict[str, Any], fields: Container[str] = ()) -> dict[str, Any]:
    """Turns {'a': {'b': 1}} into {'a.b': 1}; tuples become lists, as in JSON.

    An empty dict, and the values of `fields` (full names), stay as they are.
    """

    def join(path: tuple[Any, ...]) -> str:  # the keys of kwargs may be numbers
        return ".".join(map(str, path))

    def is_leaf(path: tuple[Any, ...], value: Any) -> bool:
        return bool(path) and (not value or join(path) in fields)

    flat = flatten_dict(nested, is_leaf=is_leaf)
    return {join(path): list(x) if isinstance(x, tuple) else x for path, x in flat.items()}
