"""Shared by all tests: strict JAX settings, a few cartoons on disk, a tiny configuration."""

import os
import pathlib
import signal
import subprocess
import sys

# Before JAX is imported: these tests are about the CPU's numbers, wherever they run.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import pytest

from bn_vgg import cli
from bn_vgg.data import cache as image_cache
from bn_vgg.data.cartoons import Cartoons
from tests.tiny_config import get_config

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

# In a shell's background Ctrl-C is ignored, and under `nohup` a lost terminal, which this
# process's children would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A product of (N, C) with (C,) where (N, 1) was meant fails instead of guessing.
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(cache_folder):
    """The tests build the same tiny networks many times: each is compiled once."""
    cli.keep_compiled(cache_folder)


@pytest.fixture(scope="module")
def quick_compilation():
    """For tests of what a program computes or becomes of, and not of its last digits or speed.

    XLA takes some two thirds of the time, which is most of what these take, to compile to slower
    programs; their processes inherit it. What compares whole runs on several devices, or paths of
    the network, goes without.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def run_command(cache_folder):
    """Runs `python -m bn_vgg.NAME …` from the checkout, as a person would."""

    def run(name, *arguments, status=0, folder=ROOT, **environment):
        done = subprocess.run(
            [sys.executable, "-m", f"bn_vgg.{name}", *map(str, arguments)],
            cwd=folder,
            env=os.environ | {"BN_VGG_CACHE": str(cache_folder)} | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def trained_run(run_command, cartoon_folder, tmp_path_factory):
    """A run of two epochs by the command, with TensorBoard's files, for any number of tests."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    run_command(
        "main", "--config=tests/tiny_config.py", f"--config.data.source={cartoon_folder}",
        f"--workdir={workdir}", "--config.optimizer.learning_rate=1e-3",
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",
    )  # fmt: skip
    return workdir


@pytest.fixture(scope="session")
def cartoon_folder(tmp_path_factory):
    """72 drawings in Kaggle's layout, 36 of each class."""
    folder = tmp_path_factory.mktemp("cartoons")
    drawings = Cartoons(num_images=72)
    for i, record in enumerate(drawings.records):
        name = drawings.class_names[record.label]
        drawings.read(i).save(folder / f"{name}.{i}.png")
    return folder


@pytest.fixture
def tiny_config(cartoon_folder):
    """Two epochs of six steps on `cartoon_folder`."""
    config = get_config()
    config.data.source = str(cartoon_folder)
    return config


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory):
    """Where the tests' decoded images are kept."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def open_cache(cache_folder):
    """Opens the decoded images of a configuration."""

    def open_it(config):
        return image_cache.open_or_build(
            config.data.source, min_side=config.data.min_side, folder=cache_folder, quiet=True
        )

    return open_it
