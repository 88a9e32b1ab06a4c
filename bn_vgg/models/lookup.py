"""Looks up classes by their names in a registry, or user-defined ones as `package.module:Class`."""

import contextlib
import difflib
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bn_vgg.errors import UserError, describe_error


def find_callable(
    field: str, name: str, registry: Mapping[str, Any], aliases: Mapping[str, str] | None = None
) -> Callable[..., Any]:
    """Returns the class or function that a field of the configuration names.

    `aliases` map other names to names in the registry, for suggestions.

    Raises:
      UserError: there is no such class, or its module cannot be imported.
    """
    if name in registry:
        return registry[name]
    if ":" not in name:
        known = {key: key for key in registry} | dict(aliases or {})
        plain = {
            key.replace("_", "") + ending: to
            for key, to in known.items()
            for ending in ("", "norm", "normalization")
        }
        wanted = name.lower().replace("_", "").replace("-", "")
        close = difflib.get_close_matches(wanted, plain, n=1, cutoff=0.8)
        meant = f"did you mean {plain[close[0]]}? " if close else ""
        names = ", ".join(registry)
        raise UserError(
            f"{field}: unknown name {name!r}; {meant}choose one of {names}, or your own as "
            "package.module:NAME"
        )
    try:
        found = pkgutil.resolve_name(name)
    except (Exception, SystemExit) as error:  # any error of the module's own code
        missing = isinstance(error, ModuleNotFoundError)
        advice = "; it must be in the current folder or on PYTHONPATH" if missing else ""
        raise UserError(
            f"{field}: cannot import {name}: {describe_error(error)}{advice}"
        ) from error
    if not callable(found):
        raise UserError(f"{field}={name} is not a class or function")
    return found


@contextlib.contextmanager
def wrap_plugin_errors(field: str, name: str, build: Callable) -> Iterator[None]:
    """Turns an error of a user-defined class into a UserError that names its file and line."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, UserError) or ":" not in name:
            raise
        file = getattr(sys.modules.get(build.__module__), "__file__", None)
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
        where = f" in {file}, line {lines[-1]}" if lines else ""
        raise UserError(f"{field}={name} failed{where}: {describe_error(error)}") from error
