"""The network: sizes, parameters, dropout by position, precision."""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clu import parameter_overview

from bn_vgg.devices import Devices
from bn_vgg.models import make_model
from bn_vgg.models.layers import Conv, Dropout, layer_activations, layer_channels, layer_statistics
from bn_vgg.models.norms import NORMALIZERS, NormFactory
from bn_vgg.models.vgg import Block
from bn_vgg.optimizer import make_optimizer
from bn_vgg.programs import Programs
from bn_vgg.steps import init_state
from configs import default

quickly = pytest.mark.usefixtures("quick_compilation")


def model(**changes):
    return make_model(**(default.get_config().model.to_dict() | changes))


def init(model, side):
    return model.init(jax.random.key(0), jnp.zeros((1, side, side, 3)), train=False)


@pytest.mark.parametrize(
    ("norm", "expected"), [("none", 3152482), ("mean_only", 3152482), ("full", 3152822)]
)
def test_parameter_counts_at_128(norm, expected):
    """The numbers are the post's recipe's."""
    variables = jax.eval_shape(lambda: init(model(norm=norm), 128))
    assert parameter_overview.count_parameters(variables["params"]) == expected


def test_sizes_follow_the_recipe():
    """130, 132 -> 66; 68, 70 -> 35; 37, 39 -> 19; 21, 23 -> 11: 6,050 features."""
    initialize = partial(model().init_with_output, train=False, mutable=True)
    _, shapes = jax.eval_shape(initialize, jax.random.key(0), jnp.zeros((1, 128, 128, 3)))
    outputs = layer_activations(shapes, "output")
    sides = [outputs[f"block{i}"].shape[1:3] for i in range(8)]
    assert sides == [(s, s) for s in (130, 66, 68, 35, 37, 19, 21, 11)]
    assert shapes["params"]["hidden"]["kernel"].shape == (6050, 500)
    same = jax.eval_shape(lambda: init(model(padding="same"), 128))["params"]
    assert same["hidden"]["kernel"].shape == (8 * 8 * 50, 500)
    channels = layer_channels(model(), 128)["output"]
    assert channels == {layer: x.shape[-1] for layer, x in outputs.items()}
    assert list(channels) == [*(f"block{i}" for i in range(8)), "hidden"]


@quickly
def test_initialization_is_glorot_uniform_with_zero_biases():
    params = jax.jit(lambda: init(model(), 32)["params"])()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if path[-1].key == "bias":
            assert not leaf.any()
            continue
        area = np.prod(leaf.shape[:-2])
        half_width = np.sqrt(6 / (area * (leaf.shape[-2] + leaf.shape[-1])))
        assert np.abs(leaf).max() <= half_width
        # Uniform of half-width w has deviation w / sqrt(3); the smallest kernel has 540 entries.
        assert np.std(leaf) == pytest.approx(half_width / np.sqrt(3), rel=0.1)


def test_what_is_compiled_quickly_draws_the_same_weights():
    config = default.get_config("demo").to_dict()
    given = jax.random.key(0), jnp.zeros((1, 32, 32, 3))
    programs = Programs(config, Devices(), 60)
    as_usual = jax.jit(partial(init_state, programs.model, programs.optimizer))(*given)
    # Another draw would be nowhere near; which digit is last depends on the processor.
    same = partial(np.testing.assert_allclose, rtol=1e-6)
    jax.tree.map(same, programs.init(*given), as_usual)


class ByDefinition(Block):
    """ReLU where the recipe has it: before dropout and pooling."""

    @nn.compact
    def __call__(self, x_NHWC, positions_N, train: bool):
        use_bias = not self.norm.replaces_bias
        conv = Conv(self.features, self.padding, use_bias, self.dtype, self.precision, name="conv")
        x = Dropout(self.dropout_rate)(nn.relu(conv(x_NHWC)), positions_N, train)
        return nn.max_pool(x, (2, 2), (2, 2)) if self.pool else x


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5])
@pytest.mark.parametrize("pool", [False, True])
def test_relu_may_come_last(pool, rate):
    """Bit for bit, gradients included."""
    norm = model(norm="none").norm
    x = jax.random.normal(jax.random.key(0), (5, 7, 8, 3))

    options = {"pool": pool, "dtype": jnp.float32, "precision": None}
    params = Block(4, norm, "full", rate, **options).init(jax.random.key(1), x, None, train=False)

    def outcome(block):
        block = block(4, norm, "full", rate, **options)

        def loss(params, x):
            y = block.apply(params, x, jnp.arange(5), train=True, rngs={"epoch": jax.random.key(2)})
            weights = jax.random.normal(jax.random.key(3), y.shape)
            return (y * weights).sum(), y

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)

    jax.tree.map(np.testing.assert_array_equal, outcome(Block), outcome(ByDefinition))


@pytest.mark.parametrize("norm", NORMALIZERS)
def test_bfloat16_computes_in_it_and_keeps_float32(norm):
    network = model(norm=norm, dtype="bfloat16")
    initialize = partial(network.init_with_output, train=False, mutable=True)
    logits, shapes = jax.eval_shape(initialize, jax.random.key(0), jnp.ones((2, 32, 32, 3)))
    reported = shapes.pop("intermediates")
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((logits, shapes)))
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(reported))
    assert len(layer_activations({"intermediates": reported}, "before_norm")) == 8


def test_layers_of_another_network_are_called_by_their_paths():
    """Two normalizers in a module, and one at the top."""

    class Two(nn.Module):
        norm: NormFactory

        @nn.compact
        def __call__(self, x):
            for name in ("first", "norm"):
                conv = Conv(4, "same", False, jnp.float32, None, name=f"conv_{name}")
                x = self.norm.normalize(x, train=True, conv=conv, name=name)
            return x

    class Network(nn.Module):
        norm: NormFactory

        @nn.compact
        def __call__(self, x):
            x = Two(self.norm, name="two")(x)
            return self.norm.normalize(x.mean((1, 2)), train=True, name="last")

    network = Network(model(norm="full").norm)
    images = jnp.ones((5, 6, 6, 3))
    _, collections = network.init_with_output(jax.random.key(0), images, mutable=True)
    layers = {"two.first", "two", "last"}
    assert set(layer_activations(collections, "before_norm")) == layers
    statistics = layer_statistics(collections["batch_stats"])
    assert {layer: set(of) for layer, of in statistics.items()} == {
        layer: {"mean", "var"} for layer in layers
    }


@quickly
def test_initializing_from_data_gives_each_channel_mean_0_and_variance_1():
    network = model(norm="weight_norm", features=(4, 6))
    images = jax.random.uniform(jax.random.key(1), (8, 20, 20, 3))
    optimizer = make_optimizer(default.get_config().to_dict(), 200)
    state = jax.jit(partial(init_state, network, optimizer))(jax.random.key(0), images)
    _, captured = network.apply(
        state.variables, images, train=True, mutable=["intermediates"],
        capture_intermediates=lambda module, _: module.name == "norm",
    )  # fmt: skip
    for i in range(2):
        (y,) = captured["intermediates"][f"block{i}"]["norm"]["__call__"]
        np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-4)
        np.testing.assert_allclose(y.std((0, 1, 2)), 1, rtol=1e-3)


@quickly
@pytest.mark.parametrize("norm", ["mean_only", "weight_norm_mean_only"])
class TestMeanOnlyAsABias:
    """The convolution knows its mean beforehand; taking it from the result is the reference."""

    def outcome(self, norm, takes_mean, axis_name=None, padding="full"):
        """Loss, gradients and statistics of a training pass over 6 images, 2 a device."""
        network = model(
            norm=norm, features=(4, 6), hidden_units=8, padding=padding, axis_name=axis_name
        )
        given = ("use_running_average", "mean_of_x")[: 2 if takes_mean else 1]
        network = network.clone(norm=dataclasses.replace(network.norm, call_arguments=given))
        rng = np.random.default_rng(0)
        images = jnp.asarray(rng.uniform(size=(6, 13, 13, 3)), jnp.float32)
        targets = jnp.asarray(rng.normal(size=(6, 2)), jnp.float32)
        variables = jax.jit(lambda: network.init(jax.random.key(0), images, train=False))()

        def loss(params, images, targets):
            logits, updated = network.apply(
                {"params": params, "batch_stats": variables["batch_stats"]},
                images, train=True, mutable=["batch_stats"],
            )  # fmt: skip
            return jnp.mean((logits - targets) ** 2), updated

        step = jax.value_and_grad(loss, has_aux=True)
        if axis_name is None:
            return jax.jit(step)(variables["params"], images, targets)
        shares = [x.reshape(3, 2, *x.shape[1:]) for x in (images, targets)]
        spread = jax.vmap(step, (None, 0, 0), axis_name=axis_name)
        mean = jax.jit(lambda *args: jax.tree.map(lambda x: x.mean(0), spread(*args)))
        return mean(variables["params"], *shares)

    @pytest.mark.parametrize("axis_name", [None, "batch"])
    def test_equals_the_plain_path(self, norm, axis_name):
        plain, fused = (self.outcome(norm, takes_mean, axis_name) for takes_mean in (False, True))

        def close(a, b):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(np.abs(a).max(), 1e-3))

        jax.tree.map(close, plain, fused)

    def test_same_padding_takes_the_plain_path(self, norm):
        plain, fused = (
            str(jax.make_jaxpr(lambda takes=takes: self.outcome(norm, takes, padding="same"))())
            for takes in (False, True)
        )
        assert plain == fused


class TestDropout:
    def apply(self, x, positions, rate=0.5, train=True, seed=0):
        return Dropout(rate).apply(
            {}, x, jnp.asarray(positions), train, rngs={"epoch": jax.random.key(seed)}
        )

    @pytest.mark.parametrize("rate", [0.5, 0.3])
    def test_a_mask_depends_on_key_and_position_alone(self, rate):
        x = jnp.ones((4, 3, 5, 7))
        whole = self.apply(x, [7, 1, 7, 3], rate)
        np.testing.assert_array_equal(whole[0], whole[2])
        assert (whole[0] != whole[1]).any()
        np.testing.assert_array_equal(self.apply(x[:1], [1], rate)[0], whole[1])
        assert (self.apply(x, [7, 1, 7, 3], rate, seed=1) != whole).any()

    @pytest.mark.parametrize("rate", [0.5, 0.2])
    def test_kept_values_are_scaled_and_the_rate_is_met_everywhere(self, rate):
        """Of 600 draws at each of 77 places: 5 deviations; of all 46,200 as well."""
        y = self.apply(jnp.full((600, 7, 11), 3.0), np.arange(600), rate)
        assert set(np.unique(y)) == {np.float32(0), np.float32(3 / (1 - rate))}
        deviation = np.sqrt(rate * (1 - rate))
        dropped = np.asarray(y == 0)
        assert np.abs(dropped.mean(0) - rate).max() < 5 * deviation / np.sqrt(600)
        assert abs(dropped.mean() - rate) < 5 * deviation / np.sqrt(46_200)
        # Places next to one another, which share a random word, know nothing of each other.
        flat = dropped.reshape(600, 77) - dropped.mean()
        neighbours = (flat[:, :-1] * flat[:, 1:]).mean() / deviation**2
        assert abs(neighbours) < 5 / np.sqrt(600 * 76)

    def test_evaluation_and_rate_0_change_nothing(self):
        x = jnp.ones((2, 3))
        np.testing.assert_array_equal(self.apply(x, [0, 1], train=False), x)
        np.testing.assert_array_equal(Dropout(0.0).apply({}, x, None, True), x)

    def test_it_sits_on_every_relu_before_the_pooling(self):
        """Eight convolutional and one dense: as many masks as the recipe says."""
        network = model(dropout_rate=0.5, norm="full")
        variables = jax.eval_shape(lambda: init(network, 32))
        options = {"positions_N": jnp.arange(2), "rngs": {"epoch": jax.random.key(0)}}
        passed = partial(network.apply, train=True, mutable=["batch_stats"], **options)
        jaxpr = str(jax.make_jaxpr(passed)(variables, jnp.ones((2, 32, 32, 3))))
        # A mask is the only thing in the network that is drawn with these bits.
        assert jaxpr.count("random_bits") == 9
