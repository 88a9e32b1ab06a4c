"""Shared by all tests: strict JAX settings, a few cartoons on disk, a tiny configuration."""

import os
import pathlib

# Before JAX is imported: these tests are about the CPU's numbers, wherever they run.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import pytest

from bn_vgg.data import cache as image_cache
from bn_vgg.data.cartoons import Cartoons
from configs import default

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

# A product of (N, C) with (C,) where (N, 1) was meant fails instead of guessing.
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """The tests build the same tiny networks many times: each is compiled once."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("xla")))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


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
    """Two epochs of a network that compiles in seconds, on `cartoon_folder`."""
    config = default.get_config("demo")
    config.name = "tiny"
    config.num_epochs = 2
    config.batch_size = 8
    config.data.source = str(cartoon_folder)
    config.data.min_side = 18
    config.data.crop_size = 16
    config.data.valid_examples = 13
    config.data.test_examples = 11
    config.model.norm = "mean_only"
    config.model.features = (4, 4, 6, 6)
    config.model.hidden_units = 8
    config.eval.batch_size = 8
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
