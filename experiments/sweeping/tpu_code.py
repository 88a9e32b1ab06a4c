"""The code that TPU VMs are given: this checkout's commit, as a git bundle."""

import atexit
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from bn_vgg.errors import UserError

BUNDLE = "bn_vgg.bundle"


class Code(NamedTuple):
    """What a VM is set up with.

    Attributes:
      bundle: of the commit, on this machine.
      installed: names the commit and how it is installed.
    """

    bundle: Path
    installed: str


def clean_commit(root: Path, out: Path) -> str:
    """Returns the checkout's commit.

    Args:
      root: of the checkout.
      out: the sweep's folder, which may be in the checkout: it is no part of the code.

    Raises:
      UserError: files differ from the commit, or this is no git checkout.
    """
    paths = ["."]
    if out.resolve().is_relative_to(root.resolve()):
        paths.append(f":(exclude){out.resolve().relative_to(root.resolve())}")
    changed = _git(root, "status", "--porcelain", "--untracked-files=all", "--", *paths)
    files = [line[3:] for line in changed.splitlines()]
    if files:
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        raise UserError(
            f"{files[0]}{more}: not committed, and the VMs are given the commit; commit, remove "
            "or ignore it"
        )
    return _git(root, "rev-parse", "HEAD").strip()


def make_bundle(root: Path) -> Path:
    """Writes the commit with its history, for as long as this process lives.

    Raises:
      UserError: git fails.
    """
    folder = tempfile.mkdtemp(prefix="bn_vgg")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = Path(folder) / BUNDLE
    _git(root, *bundle_arguments(str(path)))
    return path


def bundle_arguments(path: str) -> list[str]:
    """Arguments of git that write the bundle."""
    return ["bundle", "create", path, "HEAD"]


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise UserError("git is not on the PATH: TPU VMs get the code by it") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise UserError(f"TPU VMs get the code by git, and git {arguments[0]} failed: {reason}")
    return done.stdout
