"""One run after the other in this process, as `python -m bn_vgg.main` would make each."""

import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from absl import logging

import bn_vgg
from bn_vgg import cli
from bn_vgg.errors import UserError, described
from bn_vgg.launch import launch
from bn_vgg.programs import Session


class Attempts:
    """Makes runs that share a process, its devices and its compiled programs."""

    def __init__(self, cache_folder: Path, say: Callable[[str], None]):
        """Prepares.

        Args:
          cache_folder: of decoded images and compiled programs.
          say: shows a line to a person.
        """
        # As a command does: otherwise the libraries' logs fill the terminal.
        logging.use_absl_handler()
        cli.log_to_file(None)
        self._cache_folder, self._say = cache_folder, say
        self._session: Session | None = None

    def make(self, arguments: list[str]) -> str | None:
        """Makes a run, or goes on with it.

        Args:
          arguments: of `bn_vgg.main`, as they are recorded with the result.

        Returns:
          What went wrong, in a line; None if the run is done.
        """
        # What the result's `command` says: this makes the same run again, by itself.
        sys.argv = [str(Path(bn_vgg.__file__).with_name("main.py")), *arguments]
        path = _value(arguments, "--workdir")
        try:
            config = cli.load_config([a for a in arguments if a.startswith("--config")])
            self._session = self._session or Session()
            launch(
                config,
                path,
                cache_folder=self._cache_folder,
                session=self._session,
                say=self._tell,
                tensorboard="--notensorboard" not in arguments,
            )
        except UserError as error:
            logging.info("%s", error)
            return str(error)
        except Exception as error:  # a bug, or a device without memory: the next run may do
            logging.error("%s", traceback.format_exc())
            return f"{described(error)}; the traceback is in {path}/log.txt"
        finally:
            cli.log_to_file(None)
        return None

    def _tell(self, line: str) -> None:
        logging.info("%s", line)
        self._say(line)


def _value(arguments: list[str], flag: str) -> str:
    return next(a.partition("=")[2] for a in arguments if a.startswith(f"{flag}="))
