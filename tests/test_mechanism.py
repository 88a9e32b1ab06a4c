"""What dropout does to the activations, layer by layer."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_vgg import api
from bn_vgg.models import make_model
from experiments import mechanism
from tests.conftest import ROOT
from tests.tiny_config import get_config

pytestmark = pytest.mark.usefixtures("quick_compilation")


def ratios(norm, rate):
    config = get_config()
    config.model.norm, config.model.dropout_rate = norm, rate
    model = make_model(**config.model.to_dict())
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 16, 16, 3), np.uint8)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), train=False)
    found = mechanism.mean_outputs(model, variables, images)
    return {layer: training / evaluation for layer, (training, evaluation) in found.items()}


def test_without_dropout_and_norm_the_modes_are_equal():
    found = ratios("none", 0.0)
    assert set(found) == {"block0", "block1", "block2", "block3", "hidden"}
    assert list(found.values()) == pytest.approx([1] * 5, rel=1e-5)


def test_pooling_over_dropped_out_values_raises_the_mean():
    """The most of four positive values, each doubled or 0, is above the most of the four."""
    found = ratios("none", 0.5)
    assert found["block0"] == pytest.approx(1, rel=0.05)  # dropout keeps the mean
    assert found["block1"] > 1.1
    assert found["block3"] > 1.1 * found["block1"]


def test_of_a_run(tiny_config, cache_folder, tmp_path):
    tiny_config.num_epochs = 1
    tiny_config.model.dropout_rate = 0.5
    api.train(tiny_config, tmp_path, cache_dir=cache_folder)
    done = subprocess.run(
        [sys.executable, "-m", "experiments.mechanism", tmp_path, f"--cache_dir={cache_folder}"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:]]
    found = {layer: ratio for layer, _, _, ratio in rows}
    assert set(found) == {"block0", "block1", "block2", "block3", "hidden"}
    assert float(found["block3"]) > 1
