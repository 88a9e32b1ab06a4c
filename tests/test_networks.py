"""Other networks than the VGG under the same normalizers: the residual one, and a user's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bn_vgg
from bn_vgg.config_file import load_config
from bn_vgg.errors import UserError
from bn_vgg.models import make_model
from bn_vgg.models.layers import layer_channels
from configs import default
from tests.test_steps import train_batch

pytestmark = pytest.mark.usefixtures("quick_compilation")

# A user's file.
OWN = """
from typing import Any

import flax.linen as nn
from bn_vgg.models.layers import Conv
from bn_vgg.models.vgg import VGG


class Narrow(VGG):
    pass


class Own(nn.Module):
    norm: Any
    num_classes: int
    dropout_rate: float
    dtype: Any
    precision: Any
    features: int = 8

    @nn.compact
    def __call__(self, images, *, train, positions_N=None):
        bias = not self.norm.replaces_bias
        conv = Conv(self.features, "same", bias, self.dtype, self.precision)
        x = self.norm.relu(self.norm.normalize(images, train=train, conv=conv))
        self.sow("intermediates", "output", x)
        x = nn.Dropout(0.1)(x.mean((1, 2)), deterministic=not train)
        return nn.Dense(self.num_classes)(x)


class NoPrecision(nn.Module):
    norm: Any
    num_classes: int
    dropout_rate: float
    dtype: Any


class OwnStatistics(Own):
    @nn.compact
    def __call__(self, images, *, train, positions_N=None):
        x = nn.BatchNorm(not train)(images).mean((1, 2))
        for _ in range(1 + (self.features == 2)):
            self.sow("intermediates", "output", x)
        return nn.Dense(1 if self.features == 1 else 2)(x)


class OwnInput(Own):
    @nn.compact
    def __call__(self, images, *, train, positions_N=None):
        return super().__call__(nn.BatchNorm(not train)(images), train=train)


class Broken(Own):
    def __call__(self, images, *, train, positions_N=None):
        return images @ images
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_networks.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)


def load(name, *more):
    arguments = ["--config=tests/tiny_config.py", "--config.data.source=cartoons"]
    return load_config([*arguments, f"--config.model.name={name}", *more])


def start(config):
    model = bn_vgg.make_model(config)
    state = bn_vgg.init_state(config, model, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    return state, bn_vgg.make_train_step(config, model)


@pytest.mark.parametrize(
    ("norm", "pre_activation"),
    [("weight_norm_mean_only", False), ("mean_only", True), ("batch_renorm", True)],
)
def test_a_residual_network_takes_normalizers_of_each_kind(norm, pre_activation):
    config = load("resnet", f"--config.model.norm={norm}", "--config.model.dropout_rate=0.2")
    config.model.kwargs = {"depth": 8, "width": 4, "pre_activation": pre_activation}

    def one_step():
        state, step = start(config)
        return state, step(state, train_batch(8), jax.random.key(0))[0]

    before, after = jax.eval_shape(one_step)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    assert after.batch_stats


def test_a_residual_network_learns_its_batch():
    config = load("resnet", "--config.model.norm=full", "--config.optimizer.name=adam")
    config.model.kwargs = {"depth": 8, "width": 4}
    config.optimizer.learning_rate = 0.01
    state, step = start(config)
    step, losses = jax.jit(step), []
    for _ in range(20):
        state, metrics = step(state, train_batch(8), jax.random.key(0))
        losses.append(float(metrics.compute()["loss"]))
    assert np.mean(losses[-5:]) < 0.5 * losses[0]


def test_resnet_20_is_the_papers():
    """0.27 million parameters; stages of 32, 16 and 8 pixels with 16, 32 and 64 channels."""
    settings = default.get_config().model.to_dict()
    model = make_model(**settings | {"name": "resnet", "norm": "full", "num_classes": 10})
    given = jax.random.key(0), jnp.zeros((1, 32, 32, 3))
    variables = jax.eval_shape(lambda *x: model.init(*x, train=False), *given)
    kernels = 9 * (3 * 16 + 6 * 16 * 16 + 16 * 32 + 5 * 32 * 32 + 32 * 64 + 5 * 64 * 64)
    norms = 2 * (7 * 16 + 6 * 32 + 6 * 64)
    sizes = jax.tree.leaves(jax.tree.map(lambda x: x.size, variables["params"]))
    assert sum(sizes) == kernels + norms + 64 * 10 + 10
    assert list(layer_channels(model, 32)["output"].values()) == 3 * [16] + 3 * [32] + 3 * [64]


def test_a_users_network_trains_and_predicts(own, tmp_path, cache_folder, cartoon_folder, caplog):
    """One file of the user's own, none of ours."""
    config = load("own_networks:Own", "--config.model.kwargs={'features': 4}")
    config.data.source = str(cartoon_folder)
    result = bn_vgg.train(config, tmp_path / "run", cache_dir=cache_folder)
    assert result["num_parameters"] == 27 * 4 + 4 + 4 * 2 + 2
    images = np.zeros((3, 20, 20, 3), np.uint8)
    assert bn_vgg.load(tmp_path / "run").predict(images).shape == (3, 2)
    assert "has changed" not in caplog.text
    (tmp_path / "own_networks.py").write_text(OWN + "\n")
    bn_vgg.load(tmp_path / "run")
    assert "the code of own_networks:Own has changed since" in caplog.text


def test_a_users_subclass_of_vgg_takes_its_fields(own):
    config = load("own_networks:Narrow", "--config.model.hidden_units=9")
    assert bn_vgg.make_model(config).hidden_units == 9


def test_statistics_of_its_own_are_not_taken_precisely(own):
    averaged = "--config.optimizer.average_decay=0.9"
    with pytest.raises(UserError, match=r"OwnStatistics with .*norm=none has .* recomputed"):
        load("own_networks:OwnStatistics", "--config.model.norm=none", averaged)
    arguments = ["own_networks:OwnInput", "--config.model.norm=full"]
    with pytest.raises(UserError, match=r"norm=full has .* set config.eval.precise_examples=0"):
        load(*arguments)
    load(*arguments, "--config.eval.precise_examples=0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnt"], "name 'resnt'; did you mean resnet. choose one of vgg8, resnet, or your own"),
        (["resnet", "{'depht': 8}"], "config.model.kwargs: resnet takes no 'depht'; it takes: dep"),
        (["resnet", "{'depth': 9}"], "config.model.kwargs: depth is 9; it must be 8, 14, 20"),
        (["resnet", "{'width': 'a'}"], "made with config.model.name=resnet, .*: TypeError"),
        (["own_networks:OwnStatistics"], "does not use its `norm`: set config.model.norm=none"),
        (["own_networks:OwnStatistics", "{'features': 1}"], r"returns float32\(8, 1\), not floa"),
        (["own_networks:OwnStatistics", "{'features': 2}"], "network sows output more than once"),
        (["own_networks:Missing"], "cannot import own_networks:Missing"),
        (["own_networks:NoPrecision"], "own_networks:NoPrecision has no field precision"),
        (["own_networks:Broken"], r"Broken failed in .*own_networks.py, line \d+: TypeError"),
    ],
)
def test_what_is_no_network_is_refused(arguments, message, own):
    name, *kwargs = arguments
    with pytest.raises(UserError, match=message):
        load(name, *(f"--config.model.kwargs={each}" for each in kwargs))


def test_weights_cannot_be_normalized_before_their_convolution():
    before = "--config.model.kwargs={'pre_activation': True}"
    with pytest.raises(UserError, match="weight_norm must follow a convolution"):
        load("resnet", "--config.model.norm=weight_norm", before)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.padding=same", "config.model.padding is only for vgg8; pass arguments of resnet"),
        ("optimizer.decay=0.5", "optimizer.decay is only for rmsprop; pass arguments of sgd"),
    ],
)
def test_what_nobody_would_read_is_refused(override, message):
    with pytest.raises(UserError, match=message):
        load("resnet", "--config.optimizer.name=sgd", f"--config.{override}")
