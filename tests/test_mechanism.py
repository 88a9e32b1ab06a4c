"""What dropout does to the activations, layer by layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_vgg.data.batches import Images
from bn_vgg.data.windows import five_windows
from bn_vgg.models import make_model
from experiments.asking import mechanism
from tests.runs import run
from tests.tiny_config import get_config

pytestmark = pytest.mark.usefixtures("quick_compilation")


class TestMechanism:
    def measure(self, norm, rate):
        config = get_config()
        config.model.norm, config.model.dropout_rate = norm, rate
        model = make_model(**config.model.to_dict())
        windows = np.random.default_rng(0).integers(0, 256, (2, 8, 16, 16, 3), np.uint8)
        variables = model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), train=False)
        return mechanism.mean_outputs(model, variables, windows)

    def test_without_dropout_and_norm_the_modes_are_equal(self):
        ratios = mechanism.ratios(self.measure("none", 0.0))
        assert list(ratios) == ["block0", "block1", "block2", "block3", "hidden"]
        assert list(ratios.values()) == pytest.approx([1] * 5, rel=1e-5)

    def test_pooling_over_dropped_out_values_raises_the_mean(self):
        """The most of four positive values, each doubled or 0, is above the most of the four."""
        ratios = mechanism.ratios(self.measure("none", 0.5))
        assert ratios["block0"] == pytest.approx(1, rel=0.05)  # dropout keeps the mean
        assert ratios["block1"] > 1.1
        assert ratios["block3"] > 1.1 * ratios["block1"]

    def test_of_a_run(self, tiny_config, open_cache, cache_folder, tmp_path):
        tiny_config.num_epochs = 1
        tiny_config.model.dropout_rate = 0.5
        run(tiny_config, open_cache(tiny_config), tmp_path)
        means = mechanism.measure(str(tmp_path), cache_folder)
        assert set(means) == {"training", "evaluation"}
        ratios = mechanism.ratios(means)
        assert "block3" in ratios
        assert all(np.isfinite(ratio) and ratio > 0 for ratio in ratios.values())

    def test_windows_are_of_full_batches(self, tiny_config, open_cache):
        images = open_cache(tiny_config)
        windows = mechanism.centre_windows(Images.of(images, np.arange(72)), 16)
        assert windows.shape == (1, 72, 16, 16, 3)
        np.testing.assert_array_equal(windows[0, 5], five_windows(images.image(5), 16)[-1])

    def test_a_layer_that_is_never_active_has_no_ratio(self):
        means = {"training": {"a": 2.0, "b": 0.0}, "evaluation": {"a": 1.0, "b": 0.0}}
        assert mechanism.ratios(means) == {"a": 2.0}
