"""Loads configuration files by path, with overrides of the command line, and checks them."""

import difflib
import hashlib
import itertools
import os
import re
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from bn_vgg.config import check_config
from bn_vgg.errors import UserError, describe_error, one_line, wrap_errors
from bn_vgg.models import MODELS, VGG_FIELDS, is_vgg
from bn_vgg.models.lookup import find_callable
from bn_vgg.optimizer import RMSPROP_FIELDS
from bn_vgg.run_dir import KWARGS, ONLY_SPEED, flatten

# File systems allow 255 bytes; TensorBoard shows fewer.
_LONGEST_NAME = 100
_IN_KWARGS = tuple(f"{field}." for field in KWARGS)
# The fields of the file that was loaded last, before overrides.
_file_fields: dict[str, object] = {}


def load_config(arguments: Sequence[str]) -> ConfigDict:
    """Returns the configuration of `--config=FILE:VARIANT` and `--config.FIELD=VALUE`."""
    load_file_fields(["", *arguments])
    own_flags = flags.FlagValues()
    flag = config_flags.DEFINE_config_file(
        "config", flag_values=own_flags, sys_argv=list(arguments), lock_config=True
    )
    try:
        own_flags(["", *arguments])
    except Exception as error:  # flags.Error, or any error of ml_collections or the file
        raise UserError(one_line(error)) from error
    return checked_config(flag)


def checked_config(flag: flags.FlagHolder) -> ConfigDict:
    """Returns the value of a `--config` flag.

    Raises:
      UserError: the flag is missing, or one of the configuration's values is invalid.
    """
    if flag.value is None:
        raise UserError(f"--config is missing; {_describe_configs()}")
    try:
        config = flag.value.to_dict()
    except Exception as error:  # a field computed from an overridden one
        raise UserError(f"--config has values that cannot be read: {one_line(error)}") from error
    with wrap_errors("--config"):
        check_config(config)
    _check_owners(flatten(config))
    return flag.value


def _check_owners(config: Mapping[str, object]) -> None:
    """Raises a UserError if an overridden field is not read by the chosen optimizer or network."""
    unread: list[tuple[str, str, str]] = []
    if config["optimizer.name"] != "rmsprop":
        unread += [("optimizer", "rmsprop", name) for name in RMSPROP_FIELDS]
    if not is_vgg(find_callable("config.model.name", str(config["model.name"]), MODELS)):
        unread += [("model", "vgg8", name) for name in VGG_FIELDS]
    for group, owner, name in unread:
        field = f"{group}.{name}"
        if config[field] != _file_fields.get(field, config[field]):
            raise UserError(
                f"config.{field} is only for {owner}; pass arguments of {config[f'{group}.name']} "
                f"as --config.{group}.kwargs=\"{{'name': value}}\""
            )


def default_workdir(config: ConfigDict) -> str:
    """Returns `runs/NAME/seedSEED`, where NAME lists the overrides of the command line.

    It leaves out `data.source` and the fields that a restart may change.
    """
    left_out = {"name", "seed", "data.source"} | ONLY_SPEED
    fields = flatten(config.to_dict())
    changed = {
        field: value
        for field, value in fields.items()
        if field not in left_out and (field not in _file_fields or value != _file_fields[field])
    }
    changed |= {f: "none" for f in _file_fields if f.startswith(_IN_KWARGS) and f not in fields}
    return f"runs/{name_run(config.name, changed)}/seed{config.seed}"


def name_run(name: str, overrides: Mapping[str, object]) -> str:
    """Names a run by its configuration and its overrides: `full-norm_decay=0.9`.

    `num_epochs` is left out, because a restart may raise it. Long names end in a digest.
    """
    parts = [
        f"{field.removesuffix('.name').rpartition('.')[2]}={value}"
        for field, value in overrides.items()
        if field != "num_epochs"
    ]
    name = re.sub(r"[^\w.=+-]+", "_", "-".join([name, *parts])).strip("_")
    if len(name) <= _LONGEST_NAME:
        return name
    digest = hashlib.blake2b(name.encode(), digest_size=4).hexdigest()
    return f"{name[: _LONGEST_NAME - 9]}-{digest}"


def load_file_fields(argv: list[str]) -> Mapping[str, object]:
    """Loads the configuration that `argv` names, and returns its fields before overrides.

    The flag loads the file again. This call reports errors in one line, not in a long traceback.

    Raises:
      UserError: the file is missing or raises an error, or an override names no field of it.
    """
    argument = _config_argument(argv)
    if argument is None:
        return {}
    path, colon, variant = argument.partition(":")
    if not os.path.isfile(path):  # Path.is_file raises an error if the name is too long
        found = _found_configs()
        close = [x for x in found if Path(x).stem == path]
        close = close or difflib.get_close_matches(path, found, n=1, cutoff=0.85)
        guess = f"did you mean {close[0]}? " if close else ""
        raise UserError(f"--config: no file {path}; {guess}{_describe_configs()}")
    _make_siblings_importable(Path(path).resolve().parent)
    try:
        get_config = runpy.run_path(path).get("get_config")
        if get_config is None:
            raise UserError(f"--config={argument}: it has no get_config()")
        loaded = get_config(variant) if colon else get_config()
        if not isinstance(loaded, ConfigDict):
            made = type(loaded).__name__
            raise UserError(f"--config={argument}: get_config returns a {made}, not a ConfigDict")
        fields = flatten(loaded.to_dict())
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # any error of the file's own code
        raise UserError(f"--config={argument}: {describe_error(error)}") from error
    # ml_collections executes every file in this module, which keeps the names of the previous one.
    sys.modules.pop("config_config", None)
    _file_fields.clear()
    _file_fields.update(fields)
    for given in argv:
        if override := re.match(r"--?config\.([\w.]+)", given):
            _check_override(override[1])
    return _file_fields


def _check_override(name: str) -> None:
    if name == "variant":
        raise UserError("config.variant: a variant is named by --config=FILE:VARIANT")
    if any(f"{field}.".startswith(f"{name}.") for field in _file_fields):
        return
    for field in KWARGS:
        if name.startswith(f"{field}."):
            key = name.removeprefix(f"{field}.")
            raise UserError(f"config.{name}: write --config.{field}=\"{{'{key}': value}}\"")
    close = difflib.get_close_matches(name, list(_file_fields))
    guess = f"did you mean {', '.join(close)}? " if close else ""
    raise UserError(f"no field config.{name}; {guess}there are: {', '.join(_file_fields)}")


def _make_siblings_importable(folder: Path) -> None:
    """Lets a configuration file import the files beside it, `from configs import default`.

    It takes precedence over a `configs/` in the current folder, or one that is already imported.
    """
    if not (folder / "__init__.py").exists():
        return
    for name in [n for n in sys.modules if n.partition(".")[0] == folder.name]:
        file = getattr(sys.modules[name], "__file__", None)
        if file is None or Path(file).resolve().parent != folder:
            del sys.modules[name]
    if str(folder.parent) in sys.path:
        sys.path.remove(str(folder.parent))
    sys.path.insert(0, str(folder.parent))


def _found_configs() -> list[str]:
    return sorted(map(str, Path("configs").glob("[!_]*.py")))


def _describe_configs() -> str:
    if found := _found_configs():
        return f"there are: {', '.join(found)}"
    return f"there is no configs/ in {Path.cwd()}: run it in the checkout, or name a path"


def _config_argument(argv: list[str]) -> str | None:
    # The last of several --config flags counts.
    for argument, following in reversed([*itertools.pairwise([*argv, ""])]):
        if argument in ("-config", "--config"):
            return following
        if argument.startswith(("-config=", "--config=")):
            return argument.partition("=")[2]
    return None
