"""Shared by all tests: strict JAX settings, a few cartoons on disk, a tiny configuration."""

import os
import pathlib
import signal
import subprocess
import sys

# Before JAX is imported: these tests are about the CPU's numbers, wherever they run.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from tests.xla_flags import QUICK

os.environ["XLA_FLAGS"] = f"{QUICK} {os.environ.get('XLA_FLAGS', '')}"

import jax
import numpy as np
import pytest
from PIL import Image

from bn_vgg import cli
from bn_vgg.data.cache import open_or_build
from bn_vgg.data.cartoons import cartoons
from bn_vgg.data.pipeline import Data
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
    """Compiles in less time to slower programs, here and in processes that are started.

    Tests of last digits, on several devices or by another path through the network, go without.
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
    drawings = cartoons(72)
    for i, (record, read) in enumerate(zip(drawings.records, drawings.readers(), strict=True)):
        read().save(folder / f"{drawings.class_names[record.label]}.{i}.png")
    return folder


@pytest.fixture(scope="session")
def noise_folder(tmp_path_factory):
    """72 images of noise as large as they are used, in Kaggle's layout."""
    folder = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    for i in range(72):
        shape = (18, 20, 3) if i % 4 < 2 else (22, 18, 3)
        pixels = rng.integers(0, 256, shape, np.uint8)
        Image.fromarray(pixels).save(folder / f"{('cat', 'dog')[i % 2]}.{i}.png")
    return folder


@pytest.fixture
def tiny_config(cartoon_folder):
    """Two epochs of six steps on `cartoon_folder`."""
    config = get_config()
    config.data.source = str(cartoon_folder)
    return config


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory):
    """Where decoded images and compiled programs are kept, by all workers."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "shared_cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def open_cache(cache_folder):
    """Opens the decoded images of a configuration."""

    def open_it(config):
        return open_or_build(
            config.data.source, min_side=config.data.min_side, folder=cache_folder, quiet=True
        )

    return open_it


@pytest.fixture
def before_step(monkeypatch):
    """Returns `before_step(at, action)`: runs in this process call `action` after `at` steps.

    That is before the chunk that takes the next step.
    """
    train, actions = Data.train, {}

    def acting(self, epoch, *, skip=0):
        step = epoch * self.steps_per_epoch + skip
        for chunk in train(self, epoch, skip=skip):
            actions.get(step, lambda: None)()
            yield chunk
            step += chunk.num_steps

    monkeypatch.setattr(Data, "train", acting)
    return actions.__setitem__
