"""Shared by all commands: flags, one-line errors, logs and paths."""

import contextlib
import errno
import io
import logging as std_logging
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import jax
from absl import app, flags, logging
from etils import epath
from tqdm import tqdm

from bn_vgg import errors, stopping
from bn_vgg.config_file import load_file_fields
from bn_vgg.errors import Interrupted, UserError, describe_error, one_line, wrap_write_errors


def run(main: Callable[..., int | None], positional: tuple[str, ...] = ()) -> None:
    """Parses the flags, runs `main` and exits with a status of errors.py.

    A UserError or a wrong flag prints one line, `error: …`, to standard error. `main` is called
    with the positional arguments, as strings; `positional` names them, and all are required.
    """
    # Set before TensorFlow is imported, to silence its logs. JAX has set the first variable to 1.
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    # A shell that was started from a notebook names a matplotlib backend that is not installed.
    os.environ["MPLBACKEND"] = "agg"
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names may contain invalid UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    app.run(
        lambda argv: _run_main(partial(main, *argv[1:])),
        flags_parser=partial(_parse_flags, positional=positional),
    )


def _run_main(main: Callable[[], int | None]) -> int | None:
    log_to_file(None)
    tqdm.get_lock()  # tqdm fails if a signal interrupts the lock's creation
    stopping.raise_on_terminate()
    try:
        status = main()
        sys.stdout.flush()
        return status
    except UserError as error:
        logging.info("the error came from here", exc_info=True)
        return _fail(str(error), error.status)
    except Interrupted as error:
        return _fail(str(error), error.status)
    except KeyboardInterrupt:
        return _fail("interrupted; run the same command again to go on", errors.EXIT_INTERRUPTED)
    except BrokenPipeError:  # such as `| head`
        discard_stdout()
        return errors.EXIT_BROKEN_PIPE
    except Exception as error:
        if _log_file is None:
            raise
        logging.info("a bug, or out of memory", exc_info=True)
        where = f"the traceback is in {_log_file.baseFilename}"
        return _fail(f"{describe_error(error)}; {where}", errors.EXIT_BUG)


def _fail(message: str, status: int) -> int:
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(f"error: {message}", file=sys.stderr, flush=True)
    return status


def _parse_flags(argv: list[str], positional: tuple[str, ...]) -> list[str]:
    fields: Mapping[str, object] = {}
    try:
        argv = [_normalize_flag(argument) for argument in argv]
        fields = load_file_fields(argv)
        rest = flags.FLAGS(argv)
        given = rest[1:]
        if len(given) > len(positional):
            raise UserError(f"unexpected argument {given[len(positional)]!r}; see --help")
        if len(given) < len(positional):
            raise UserError(f"{positional[len(given)]} is missing; see --help")
        return rest
    except BrokenPipeError:  # `--help | head`
        discard_stdout()
        sys.exit(errors.EXIT_BROKEN_PIPE)
    except SystemExit:  # absl exits with 1 after --help
        sys.exit(0)
    except flags.UnrecognizedFlagError as error:
        meant = [field for field in fields if field.split(".")[-1] == error.flagname]
        guess = "".join(f"; did you mean --config.{field}?" for field in meant)
        sys.exit(
            _fail(f"no flag --{error.flagname}{guess or '; see --help'}", errors.EXIT_USER_ERROR)
        )
    except Exception as error:  # flags.Error, or any error of ml_collections or the file
        unset = re.search(r"Flag (--\w+) must have a value other than None", str(error))
        message = f"{unset[1]} is missing; see --help" if unset else one_line(error)
        sys.exit(_fail(message, errors.EXIT_USER_ERROR))


def _normalize_flag(argument: str) -> str:
    """Rewrites `--dry-run` as `--dry_run`, and expands `~` after `=`, which shells do not."""
    name, equals, value = argument.partition("=")
    flag = name.removeprefix("--").replace("-", "_")
    name = f"--{flag}" if name.startswith("--") and flag in flags.FLAGS else name
    return name + equals + os.path.expanduser(value)


def say(line: str) -> None:
    """Prints a line and logs it."""
    logging.info("%s", line)
    show(line)


def show(line: str) -> None:
    """Prints a line, above the progress bar if there is one.

    A closed pipe (`| head`), a lost terminal or a full disk (`> file`) does not stop the command.
    """
    try:
        tqdm.write(line)
        sys.stdout.flush()
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO, errno.ENOSPC, errno.EDQUOT):
            raise
        discard_stdout()


def discard_stdout() -> None:
    """Redirects standard output to /dev/null, so that Python's last flush does not fail."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


# The current run's log.txt.
_log_file: std_logging.FileHandler | None = None


def log_to_file(path: epath.Path | None) -> None:
    """Logs to this file, or to none, and prints only warnings to the terminal."""
    global _log_file
    quiet_libraries()
    logging.set_verbosity(logging.INFO)
    root = std_logging.getLogger()
    if _log_file is not None:
        root.removeHandler(_log_file)
        with contextlib.suppress(OSError):  # the last flush may find the disk full
            _log_file.close()
        _log_file = None
    if path is None or "://" in str(path):
        return
    with wrap_write_errors(str(path)):
        _log_file = std_logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    # On a full disk logging must not end the run; saving a checkpoint reports it.
    _log_file.handleError = lambda record: None  # type: ignore[method-assign]
    # Orbax logs dozens of lines for each checkpoint; its warnings are enough.
    _log_file.addFilter(lambda record: record.levelno > std_logging.INFO or _is_shown(record))
    _log_file.setFormatter(std_logging.Formatter("%(asctime)s %(levelname).1s %(message)s"))
    root.addHandler(_log_file)


def quiet_libraries() -> None:
    """Prints only warnings, except those of Orbax, whose errors become UserErrors.

    When one of Orbax's tasks fails, asyncio and TensorStore print a traceback for each other task.
    JAX warns about `os.fork`, by which sweeps start their runs.
    """
    logging.use_absl_handler()  # a notebook's root handler would print everything
    handler = logging.get_absl_handler()
    handler.setLevel(std_logging.WARNING)
    handler.addFilter(_is_shown)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    warnings.filterwarnings("ignore", r"os.fork\(\) was called", RuntimeWarning)
    sys.unraisablehook = _log_unraisable


def _is_shown(record: std_logging.LogRecord) -> bool:
    return record.name != "asyncio" and "orbax" not in record.pathname


def _log_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    # Raised where it cannot be caught, such as in a callback of TensorStore.
    error = unraisable.exc_value
    if isinstance(error, Interrupted):  # would be lost, so send the signal again
        threading.Timer(0.1, os.kill, (os.getpid(), error.status - 128)).start()
    logging.info("%s: %r", unraisable.err_msg or "ignored", error, exc_info=error)


def check_backend() -> None:
    """Raises a UserError if JAX cannot initialize its backend."""
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:
        why = str(error) or "there is no such device"  # CUDA without a GPU: JAX only asserts
        named = os.environ.get("JAX_PLATFORMS")
        where = f" with JAX_PLATFORMS={named}" if named else ""
        raise UserError(f"JAX finds no usable device{where}: {why}") from error


def enable_compilation_cache(folder: Path) -> None:
    """Caches compiled programs in `folder`/xla; JAX_COMPILATION_CACHE_DIR overrides the folder."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        # On a CPU the compiled code, and so the order of sums, depends on the number of usable
        # cores, but the cache's key does not.
        path = folder / "xla" / f"{len(usable_cores())}_cores"
        jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def usable_cores() -> list[int]:
    """Returns the numbers of the CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write to, which is renamed to `path` if no error occurs."""
    if os.path.isdir(path):  # Path.is_dir raises a PermissionError
        raise UserError(f"cannot write {path}: it is a folder")
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
