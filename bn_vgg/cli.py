"""What the commands share: flags, errors in one line, logs and paths."""

import contextlib
import errno
import io
import logging as std_logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import jax
from absl import app, flags, logging
from etils import epath
from tqdm import tqdm

from bn_vgg import errors, stopping
from bn_vgg.config_file import load_file
from bn_vgg.errors import Interrupted, UserError, cannot_write, described, one_line


def run(main: Callable[..., int | None], positional: tuple[str, ...] = ()) -> None:
    """Parses the flags, runs `main` and exits; see the statuses in errors.py.

    A UserError becomes `error: …` on standard error. So does a wrong flag. `main` is called with
    the arguments that `positional` names, as text; all of them must be given.
    """
    # Before TensorFlow is imported, which would chat on standard error; JAX has set the first to 1.
    if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    # Before matplotlib is: a shell that a notebook started names a backend that is not there.
    os.environ["MPLBACKEND"] = "agg"
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may hold what is no text
        sys.stdout.reconfigure(errors="backslashreplace")
    app.run(
        lambda argv: _guarded(partial(main, *argv[1:])),
        flags_parser=partial(_parse_flags, positional=positional),
    )


def _guarded(main: Callable[[], int | None]) -> int | None:
    log_to_file(None)
    stopping.raise_on_terminate()
    try:
        status = main()
        sys.stdout.flush()
        return status
    except UserError as error:
        logging.info("the error came from here", exc_info=True)
        return _fail(str(error), errors.EXIT_USER_ERROR)
    except Interrupted as error:
        return _fail(str(error), error.status)
    except KeyboardInterrupt:
        return _fail("interrupted; run the same command again to go on", errors.EXIT_INTERRUPTED)
    except BrokenPipeError:  # `| head` has read enough
        stop_showing()
        return errors.EXIT_BROKEN_PIPE
    except Exception as error:
        if _log_file is None:
            raise
        logging.info("a bug, or too little memory", exc_info=True)
        where = f"the traceback is in {_log_file.baseFilename}"
        return _fail(f"{described(error)}; {where}", errors.EXIT_BUG)


def _fail(message: str, status: int) -> int:
    with contextlib.suppress(OSError):  # the terminal may be what was lost
        print(f"error: {message}", file=sys.stderr, flush=True)
    return status


def _parse_flags(argv: list[str], positional: tuple[str, ...]) -> list[str]:
    fields: Mapping[str, object] = {}
    try:
        argv = [_as_shells_do(argument) for argument in argv]
        fields = load_file(argv)
        rest = flags.FLAGS(argv)
        given = rest[1:]
        if len(given) > len(positional):
            raise UserError(f"unexpected argument {given[len(positional)]!r}; see --help")
        if len(given) < len(positional):
            raise UserError(f"{positional[len(given)]} is missing; see --help")
        return rest
    except BrokenPipeError:  # of --help
        stop_showing()
        sys.exit(errors.EXIT_BROKEN_PIPE)
    except SystemExit:  # absl's status after --help is 1
        sys.exit(0)
    except flags.UnrecognizedFlagError as error:
        meant = [field for field in fields if field.split(".")[-1] == error.flagname]
        guess = "".join(f"; did you mean --config.{field}?" for field in meant)
        sys.exit(
            _fail(f"no flag --{error.flagname}{guess or '; see --help'}", errors.EXIT_USER_ERROR)
        )
    except Exception as error:  # besides flags.Error, what ml_collections and the file raise
        unset = re.search(r"Flag (--\w+) must have a value other than None", str(error))
        told = f"{unset[1]} is missing; see --help" if unset else one_line(error)
        sys.exit(_fail(told, errors.EXIT_USER_ERROR))


def _as_shells_do(argument: str) -> str:
    """Takes `--dry-run` as `--dry_run`, and `--out=~/x` as a shell takes `--out ~/x`."""
    name, equals, value = argument.partition("=")
    flag = name.removeprefix("--").replace("-", "_")
    name = f"--{flag}" if name.startswith("--") and flag in flags.FLAGS else name
    return name + equals + os.path.expanduser(value)


def say(line: str) -> None:
    """Shows a line to a person and keeps it in the log."""
    logging.info("%s", line)
    show(line)


def show(line: str) -> None:
    """Shows a line to a person, above a progress bar where there is one.

    Where nobody reads on, as behind `| head`, or a terminal or the room in `> file` is gone,
    nothing ends.
    """
    try:
        tqdm.write(line)
        sys.stdout.flush()
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO, errno.ENOSPC, errno.EDQUOT):
            raise
        stop_showing()


def stop_showing() -> None:
    """Sends standard output to nowhere, which Python would otherwise fail to flush at its end."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


# Of the run in progress.
_log_file: std_logging.FileHandler | None = None


def log_to_file(path: epath.Path | None) -> None:
    """Sends what the libraries log to this file alone, and warnings to the terminal."""
    global _log_file
    quieten()
    logging.set_verbosity(logging.INFO)
    root = std_logging.getLogger()
    if _log_file is not None:
        root.removeHandler(_log_file)
        with contextlib.suppress(OSError):  # what is left to write of it may find no room
            _log_file.close()
        _log_file = None
    if path is None or "://" in str(path):
        return
    with cannot_write(str(path)):
        _log_file = std_logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    # A full disk is told of by what needs the room, not by each line.
    _log_file.handleError = lambda record: None  # type: ignore[method-assign]
    # Orbax logs dozens of lines a checkpoint: its warnings are enough.
    _log_file.addFilter(lambda record: record.levelno > std_logging.INFO or _is_shown(record))
    _log_file.setFormatter(std_logging.Formatter("%(asctime)s %(levelname).1s %(message)s"))
    root.addHandler(_log_file)


def quieten() -> None:
    """Shows only warnings, and of Orbax nothing: what it raises becomes a UserError.

    Where one of its tasks fails, asyncio and TensorStore tell of each of the others by a page. JAX
    warns of the fork by which a sweep starts each run.
    """
    logging.use_absl_handler()  # in a notebook Python's own would show all
    handler = logging.get_absl_handler()
    handler.setLevel(std_logging.WARNING)
    handler.addFilter(_is_shown)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    warnings.filterwarnings("ignore", r"os.fork\(\) was called", RuntimeWarning)
    sys.unraisablehook = _log_unraisable


def _is_shown(record: std_logging.LogRecord) -> bool:
    return record.name != "asyncio" and "orbax" not in record.pathname


def _log_unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    # What is raised where nobody can catch it, as in a callback of TensorStore's.
    error = unraisable.exc_value
    logging.info("%s: %r", unraisable.err_msg or "ignored", error, exc_info=error)


def check_backend() -> None:
    """Raises a UserError where JAX cannot use the devices that it is told to use."""
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:
        why = str(error) or "there is no such device"  # for CUDA without a GPU JAX only asserts
        named = os.environ.get("JAX_PLATFORMS")
        where = f" with JAX_PLATFORMS={named}" if named else ""
        raise UserError(f"JAX finds nothing to compute on{where}: {why}") from error


def keep_compiled(folder: Path) -> None:
    """Keeps what XLA compiles in `folder`/xla, so that a second start is quick.

    JAX_COMPILATION_CACHE_DIR, where it is set, has the last word.
    """
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        # XLA divides a CPU's sums among the cores that a process may use, but does not tell
        # programs for different numbers of them apart.
        kept = folder / "xla" / f"{len(usable_cores())}_cores"
        jax.config.update("jax_compilation_cache_dir", str(kept))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def usable_cores() -> list[int]:
    """The processor's cores that this process may use, by their numbers."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Makes the folder of `path` and yields one to write to, which replaces it if all went well."""
    if os.path.isdir(path):  # pathlib's raises where the user may not look
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
