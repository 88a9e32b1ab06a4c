"""Runs the tests with the lowest, or the newest, packages that pyproject.toml admits.

python -m tests.check_dependencies lowest
python -m tests.check_dependencies newest --python=3.13 tests/test_steps.py -n 2

What is not an option of its own goes to pytest. The packages are installed into a fresh virtual
environment in build/dependencies/, and their versions are written beside it. It needs uv (pip
install uv) and a package index. Packages that are needed only by these packages are the newest
either way: what those may be is not said here.
"""

import argparse
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESOLUTIONS = {"lowest": "lowest-direct", "newest": "highest"}


def main() -> int:
    """Runs the command. Returns the exit status of what failed first, pytest's or uv's."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.check_dependencies", allow_abbrev=False, description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("which", choices=RESOLUTIONS)
    parser.add_argument(
        "--python", default=f"{sys.version_info.major}.{sys.version_info.minor}",
        help="a version that uv finds here (default: this one, %(default)s)",
    )  # fmt: skip
    given, for_pytest = parser.parse_known_args()
    # Of this virtual environment, whether or not it is activated, or else from the PATH.
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        parser.error("it needs uv: pip install uv")

    folder = ROOT / "build" / "dependencies" / f"{given.which}-{given.python}"
    python = folder / "bin" / "python"
    try:
        run(uv, "venv", "--quiet", "--clear", f"--python={given.python}", folder)
        run(
            uv, "pip", "install", "--quiet", f"--python={python}",
            f"--resolution={RESOLUTIONS[given.which]}", "--editable=.[dev]",
        )  # fmt: skip
        frozen = run(uv, "pip", "freeze", "--exclude-editable", f"--python={python}", keep=True)
        folder.with_name(folder.name + ".txt").write_text(frozen)
        wanted = {name(requirement) for requirement in requirements()}
        print(" ".join(line for line in frozen.splitlines() if name(line) in wanted), flush=True)
        run(python, "-m", "pytest", *for_pytest)
    except subprocess.CalledProcessError as error:
        return error.returncode
    return 0


def requirements() -> Iterable[str]:
    """All that pyproject.toml names, optional ones too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    yield from project["dependencies"]
    for optional in project["optional-dependencies"].values():
        yield from optional


def name(requirement: str) -> str:
    """A requirement's package, as package indexes spell it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement)[0]).lower()


def run(*command: str | Path, keep: bool = False) -> str:
    """Shows a command and runs it. Returns what it printed, if that is to be kept."""
    print("+ " + shlex.join(map(str, command)), flush=True)
    done = subprocess.run(
        list(map(str, command)), cwd=ROOT, check=True, text=True,
        stdout=subprocess.PIPE if keep else None,
    )  # fmt: skip
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
