"""Runs the tests with the lowest, or the newest, packages that pyproject.toml admits.

python -m tests.check_dependencies lowest
python -m tests.check_dependencies newest --python=3.13 tests/test_steps.py -n 2

What is not an option of its own goes to pytest. The packages are installed into a fresh virtual
environment in build/dependencies/. It needs uv (pip install uv) and a package index. Packages that
are needed only by these packages are the newest either way: what those may be is not said here.
"""

import argparse
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESOLUTIONS = {"lowest": "lowest-direct", "newest": "highest"}


def main() -> int:
    """Runs the command. Returns pytest's exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.check_dependencies", allow_abbrev=False, description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("which", choices=RESOLUTIONS)
    parser.add_argument("--python", default=f"{sys.version_info.major}.{sys.version_info.minor}")
    given, for_pytest = parser.parse_known_args()
    folder = ROOT / "build" / "dependencies" / f"{given.which}-{given.python}"
    python = folder / "bin" / "python"
    for command in (
        ["venv", "--quiet", "--clear", f"--python={given.python}", folder],
        [
            "pip", "install", "--quiet", f"--python={python}",
            f"--resolution={RESOLUTIONS[given.which]}", "--editable=.[dev]",
        ],
        ["pip", "list", f"--python={python}"],
    ):  # fmt: skip
        subprocess.run([sys.executable, "-m", "uv", *command], cwd=ROOT, check=True)
    return subprocess.run([python, "-m", "pytest", *for_pytest], cwd=ROOT).returncode


def requirements() -> list[str]:
    """All that pyproject.toml names, optional ones too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return sum(project["optional-dependencies"].values(), project["dependencies"])


def name(requirement: str) -> str:
    """A requirement's package, as package indexes spell it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement)[0]).lower()


if __name__ == "__main__":
    sys.exit(main())
