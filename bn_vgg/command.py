"""What the commands share: flags and errors that end in one line, not a traceback."""

import contextlib
import logging as std_logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax
from absl import app, flags, logging
from etils import epath
from ml_collections import ConfigDict, config_flags

from bn_vgg.config_checks import check_config
from bn_vgg.errors import UserError
from bn_vgg.workdir import flatten

# Exit statuses. 1 is Python's own, of an unexpected exception.
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


def run(main: Callable[..., int | None], positional: tuple[str, ...] = ()) -> None:
    """Parses the flags, runs `main` and exits; see the statuses above.

    A UserError becomes `error: …` on standard error. So does a wrong flag.

    Args:
      main: the command. It is called with the positional arguments, as text.
      positional: what these are called, `WORKDIR`; all of them must be given.
    """
    # Before TensorFlow or XLA are imported, which would chat on standard error.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    logging.get_absl_handler().setLevel(std_logging.WARNING)
    app.run(
        lambda argv: _guarded(partial(main, *argv[1:])),
        flags_parser=partial(_parse_flags, positional=positional),
    )


def checked_config(flag: flags.FlagHolder) -> ConfigDict:
    """Returns the value of a `--config` flag.

    Raises:
      UserError: it is missing, names no file, or one of its values means nothing.
    """
    if flag.value is None:
        raise UserError(f"--config is missing; {_configs()}")
    check_config(flag.value.to_dict())
    return flag.value


def keep_compiled(folder: Path) -> None:
    """Keeps what XLA compiles in `folder`/xla, so that a second start is quick.

    JAX_COMPILATION_CACHE_DIR, where it is set, has the last word.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(folder / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def say(line: str) -> None:
    """Shows a line to a person, at once, and keeps it in the log."""
    print(line, flush=True)
    logging.info("%s", line)


def log_to_file(path: epath.Path | None) -> None:
    """Sends what the libraries log to a file, and only warnings to the terminal."""
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().setLevel(std_logging.WARNING)
    if path is None or "://" in str(path):
        return
    handler = std_logging.FileHandler(path)
    # Orbax logs dozens of lines a checkpoint: its warnings are enough.
    handler.addFilter(
        lambda record: record.levelno > std_logging.INFO or "orbax" not in record.pathname
    )
    handler.setFormatter(std_logging.Formatter("%(asctime)s %(levelname).1s %(message)s"))
    std_logging.getLogger().addHandler(handler)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a path to write to, which takes the place of `path` when all went well."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _guarded(main: Callable[[], int | None]) -> int | None:
    try:
        return main()
    except UserError as error:
        return _fail(str(error), EXIT_USER_ERROR)
    except KeyboardInterrupt:
        return _fail("interrupted; run the same command again", EXIT_INTERRUPTED)


def _parse_flags(argv: list[str], positional: tuple[str, ...]) -> list[str]:
    try:
        _check_config_argument(argv)
        rest = flags.FLAGS(argv)
    except (UserError, flags.Error) as error:
        sys.exit(_fail(str(error).replace("\n", " "), EXIT_USER_ERROR))
    given = rest[1:]
    if len(given) > len(positional):
        unexpected = given[len(positional)]
        sys.exit(_fail(f"unexpected argument {unexpected!r}; see --help", EXIT_USER_ERROR))
    if len(given) < len(positional):
        missing = positional[len(given)]
        sys.exit(_fail(f"{missing} is missing; see --help", EXIT_USER_ERROR))
    return rest


def _check_config_argument(argv: list[str]) -> None:
    """Loads the configuration once, without overrides: ml_collections' errors are pages.

    Raises:
      UserError: the file is missing or fails, or an override names no field of it.
    """
    argument = _config_argument(argv)
    if not argument:
        return
    path = argument.partition(":")[0]
    if not Path(path).is_file():
        raise UserError(f"--config: no file {path}; {_configs()}")
    alone = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=alone, sys_argv=[argument])
    try:
        alone([argv[0], f"--config={argument}"])
        fields = flatten(alone.config.to_dict())
    except Exception as error:  # whatever the file's own code raises
        raise UserError(f"--config={argument}: {str(error).strip().splitlines()[-1]}") from error
    for given in argv:
        override = re.match(r"--?config\.([\w.]+)", given)
        if override:
            _check_override(override[1], fields)


def _check_override(name: str, fields: dict[str, object]) -> None:
    if any(f"{field}.".startswith(f"{name}.") for field in fields):
        return
    whole, _, part = name.rpartition(".")
    if fields.get(whole) == {}:
        example = f"--config.{whole}=\"{{'{part}': …}}\""
        raise UserError(f"config.{whole} is given as a whole: {example}")
    raise UserError(f"no field config.{name}; there are: {', '.join(fields)}")


def _configs() -> str:
    return f"there are: {', '.join(sorted(map(str, Path('configs').glob('[!_]*.py'))))}"


def _config_argument(argv: list[str]) -> str:
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        if argument.lstrip("-") == "config":
            return following
        if argument.lstrip("-").startswith("config="):
            return argument.partition("=")[2]
    return ""


def _fail(message: str, status: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status
