"""Shell scripts for the workers of a TPU VM, and what they report.

Each script ends well and reports in a line of its own, so that a call of ssh that fails means
that a worker could not be reached, whatever happened on it:

    bn_vgg HOST WORD STATUS REST

In a worker's home folder:

    bn_vgg.bundle          the code as it was sent, a git bundle
    bn_vgg, bn_vgg_venv    the checkout, and the packages
    bn_vgg_setup.log       what installing them said
    bn_vgg_ready           what is installed, once it is
    bn_vgg_runs/ATTEMPT    log, exit and pid: output, exit status and process of a run
"""

import hashlib
import re
import shlex
from typing import NamedTuple

from experiments.sweeping.tpu_code import BUNDLE

# The image's own Python is too old: this one comes by uv.
_PYTHON = "3.12"
_SECONDS_TO_DIE = 30
# Of a log's last line, which goes into a message.
_CHARACTERS = 400
# Anchored, so that it does not fit the shell that looks for it.
_RUN = '"^$HOME/bn_vgg_venv/bin/python -m bn_vgg[.]main"'
_KILL = (
    f"pkill -TERM -f {_RUN}; "
    f"for i in $(seq {_SECONDS_TO_DIE}); do pgrep -f {_RUN} >/dev/null || break; sleep 1; done; "
    f"pkill -KILL -f {_RUN}"
)


class Report(NamedTuple):
    """A worker's answer.

    Attributes:
      host: the worker.
      word: `ready`, `set_up`, `started`, `running`, `exit`, `gone` or `killed`.
      status: exit status, with `set_up` and `exit`; else 0.
      rest: what is installed; the last line of a log.
    """

    host: str
    word: str
    status: int = 0
    rest: str = ""


def installed(commit: str, setup: str | None) -> str:
    """A name for what a VM is set up with."""
    return hashlib.sha256(f"{commit} {_set_up(setup)}".encode()).hexdigest()[:16]


def ask_ready() -> str:
    """Reports `ready` with what is installed."""
    return _report("ready", rest="$(cat ~/bn_vgg_ready 2>/dev/null)")


def set_up(name: str, setup: str | None) -> str:
    """Ends what runs, installs the bundle that was sent, and reports `set_up`.

    Args:
      name: what it is called when it is installed.
      setup: of the user's, last.
    """
    log = "~/bn_vgg_setup.log"
    return (
        f"{_KILL}; rm -f ~/bn_vgg_ready; {{ {_set_up(setup)} && echo {name} >~/bn_vgg_ready; }} "
        f">{log} 2>&1 </dev/null; status=$?; {_report('set_up', '$status', _last_line(log))}"
    )


def start(attempt: str, arguments: list[str]) -> str:
    """Ends what runs, starts a run that outlives the connection, and reports `started`.

    Args:
      attempt: names it.
      arguments: of Python.
    """
    folder = f"~/bn_vgg_runs/{attempt}"
    run = (
        f"{{ cd ~/bn_vgg && . ~/bn_vgg_venv/bin/activate && "
        f"~/bn_vgg_venv/bin/python {shlex.join(arguments)}; }} >{folder}/log 2>&1; "
        f"echo $? >{folder}/exit.partial; mv {folder}/exit.partial {folder}/exit"
    )
    return (
        f"{_KILL}; mkdir -p {folder} && rm -f {folder}/exit && "
        f"{{ setsid nohup bash -c {shlex.quote(run)} </dev/null >/dev/null 2>&1 & }} && "
        f"echo $! >{folder}/pid && {_report('started')}"
    )


def look(attempt: str) -> str:
    """Reports `running`, `exit` or `gone`, with the last line of the log."""
    folder = f"~/bn_vgg_runs/{attempt}"
    # In this order: a process that is found dead has left its status before.
    return (
        f"word=gone; status=0; if kill -0 $(cat {folder}/pid 2>/dev/null) 2>/dev/null; "
        f"then word=running; elif [ -f {folder}/exit ]; "
        f"then word=exit; status=$(cat {folder}/exit); fi; "
        f"{_report('$word', '$status', _last_line(f'{folder}/log'))}"
    )


def kill() -> str:
    """Ends what runs and reports `killed`."""
    return f"{_KILL}; {_report('killed')}"


def log_of(attempt: str) -> str:
    """Path of a run's log, from the home folder."""
    return f"bn_vgg_runs/{attempt}/log"


def reports(output: str) -> list[Report]:
    """Finds the reports in the output of ssh, by worker."""
    found = re.findall(r"^bn_vgg (\S+) (\w+) (\d+) (.*)$", output, re.MULTILINE)
    return sorted(Report(host, word, int(code), rest.strip()) for host, word, code, rest in found)


def _set_up(setup: str | None) -> str:
    steps = [
        "cd ~",
        "rm -rf bn_vgg",
        f"git clone -q {BUNDLE} bn_vgg",
        "cd bn_vgg",
        "python3 -m pip install -q --user uv",
        f"python3 -m uv venv -q --clear --python {_PYTHON} ~/bn_vgg_venv",
        "python3 -m uv pip install -q --python ~/bn_vgg_venv/bin/python -e '.[tpu]'",
        ". ~/bn_vgg_venv/bin/activate",
    ]
    # In a shell of its own: whatever it does to the shell must not reach what follows.
    return " && ".join([*steps, *([f"bash -c {shlex.quote(setup)}"] if setup else [])])


def _report(word: str, status: str = "0", rest: str = "") -> str:
    return f"""printf '%s\\n' "bn_vgg $(hostname) {word} {status} {rest}\""""


def _last_line(log: str) -> str:
    blank = "'^[[:space:]]*$'"
    return f"$(grep -v {blank} {log} 2>/dev/null | tail -n 1 | cut -c 1-{_CHARACTERS})"
