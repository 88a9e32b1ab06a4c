"""Finds a class by its name in a registry, or a user-defined one as `package.module:Class`."""

import contextlib
import difflib
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bn_vgg.errors import UserError, described


def find_class(
    field: str, name: str, registry: Mapping[str, Any], other_names: Mapping[str, str]
) -> Callable[..., Any]:
    """Returns the class or function that a field of the configuration names.

    `other_names` of what is in the registry are only suggested.

    Raises:
      UserError: there is none, or its module cannot be imported.
    """
    if name in registry:
        return registry[name]
    if ":" not in name:
        known = {key: key for key in registry} | {**other_names}
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
            f"{field}: no {name!r}; {meant}there are: {names}, and your own as package.module:Class"
        )
    try:
        found = pkgutil.resolve_name(name)
    except (Exception, SystemExit) as error:  # whatever the module's own code raises
        raise UserError(f"{field}: cannot import {name}: {described(error)}") from error
    if not callable(found):
        raise UserError(f"{field}={name} is no class or function")
    return found


@contextlib.contextmanager
def blaming(field: str, name: str, build: Callable) -> Iterator[None]:
    """Turns an exception of a user-defined class into a UserError that names its file and line."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, UserError) or ":" not in name:
            raise
        file = getattr(sys.modules.get(build.__module__), "__file__", None)
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
        where = f" in {file}, line {lines[-1]}" if lines else ""
        raise UserError(f"{field}={name} failed{where}: {described(error)}") from error
