"""Where a result comes from: hardware, versions, commit, user-defined code, command."""

import hashlib
import importlib.metadata
import os
import pkgutil
import platform
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from absl import logging

import bn_vgg

_ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pillow")


def jax_settings(model: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the JAX settings that affect a run's numbers; `model` is `config.model`."""
    return {
        "jax_default_prng_impl": "threefry2x32",
        "jax_threefry_partitionable": True,
        "jax_random_seed_offset": 0,
        "jax_enable_x64": False,
        # For products in optimizers and user-defined normalizers; our layers set their own.
        "jax_default_matmul_precision": model["precision"] if model["dtype"] == "float32" else None,
        "jax_numpy_dtype_promotion": "standard",
    }


def pin_jax_settings(model: Mapping[str, Any]) -> None:
    """Sets `jax_settings`, overriding environment variables."""
    for name, value in jax_settings(model).items():
        if getattr(jax.config, name) != value:
            logging.info("%s is set to %s", name, value)
            jax.config.update(name, value)


def hardware() -> dict:
    """Describes the devices of all hosts and this host's CPU."""
    device = jax.devices()[0]
    return {
        "platform": device.platform,
        "device": _processor() if device.platform == "cpu" else device.device_kind,
        "num_devices": jax.device_count(),
        "num_hosts": jax.process_count(),
        "cpu_cores": os.cpu_count(),
    }


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that affect a run's numbers."""
    packages = {package: importlib.metadata.version(package) for package in _PACKAGES}
    return {"python": platform.python_version(), **packages, "bn-vgg": bn_vgg.__version__}


def commit() -> str | None:
    """Returns the commit of the code, with `-dirty` if files were changed; None if unknown.

    Archives by `git archive` have the commit in the file COMMIT.
    """
    exported = _ROOT / "COMMIT"
    if exported.exists() and not (known := exported.read_text().strip()).startswith("$Format"):
        return known
    if not (_ROOT / ".git").exists():  # git would look for a repository in parent folders
        return None
    # By default git refuses a checkout of another user, as in a container.
    git = ["git", "-c", f"safe.directory={_ROOT}"]
    try:
        described = subprocess.run(
            [*git, "describe", "--always", "--abbrev=40", "--dirty", "--match="],
            cwd=_ROOT, capture_output=True, text=True, check=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()


def user_code(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns digests of the files that define the user's classes and functions, by `module:name`.

    `config` is nested. Of code that is made by an installed package, such as a partial, it is the
    file of the module that is named. Files that these import, installed packages and code of a
    notebook are not included.
    """
    digests = {}
    fields = config["model"]["name"], config["model"]["norm"], config["optimizer"]["name"]
    for name in (*fields, config["schedule"]["name"]):
        if ":" not in name:
            continue
        named = name.partition(":")[0]
        modules = getattr(pkgutil.resolve_name(name), "__module__", named), named
        files = [getattr(sys.modules.get(module), "__file__", None) for module in modules]
        if own := [file for file in files if file and not _is_installed(Path(file))]:
            content = Path(own[0]).read_bytes()
            digests[name] = hashlib.blake2b(content, digest_size=16).hexdigest()
    return digests


def _is_installed(file: Path) -> bool:
    installed = bool({"site-packages", "dist-packages"} & {*file.parts})
    return installed or file.is_relative_to(sysconfig.get_path("stdlib"))


def command() -> str | None:
    """Returns this process's command, as run in the checkout; None in a notebook."""
    program = Path(sys.argv[0]).resolve()
    if program.parent not in (_ROOT / "bn_vgg", _ROOT / "experiments"):
        return None
    module = f"{program.parent.name}.{program.stem}"
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
