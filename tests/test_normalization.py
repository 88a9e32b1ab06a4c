"""The plug: shipped names, anybody's own by its path, and what is said of wrong ones."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_vgg.errors import UserError
from bn_vgg.models import make_model
from bn_vgg.models.norms import NORMALIZERS, make_norm_factory
from bn_vgg.optimizer import rmsprop
from bn_vgg.state import jit_init
from bn_vgg.steps import make_train_step
from configs import default
from tests.test_steps import train_batch

pytestmark = pytest.mark.usefixtures("quick_compilation")

# A user's file: every class and function below is somebody's own normalizer.
OWN = """
import flax.linen as nn
import jax.numpy as jnp

NOT_CALLABLE = 3


class Twice(nn.Module):
    factor: float = 2.0

    def __call__(self, x):
        return x * self.factor


def make_twice(name=None, factor=2.0, momentum=0.0):
    return Twice(factor=factor + momentum, name=name)


class Needs(nn.Module):
    def __call__(self, x, temperature):
        return x


class OtherShape(nn.Module):
    def __call__(self, x):
        return x[:, :-1]


class OtherDtype(nn.Module):
    def __call__(self, x):
        return x.astype(jnp.bfloat16)


class Nothing(nn.Module):
    def __call__(self, x):
        pass


class Fails(nn.Module):
    def __call__(self, x):
        return x + jnp.ones(17)


class Train(nn.Module):
    def __call__(self, x, train=True):
        return x


class Misspelt(nn.Module):
    def __call__(self, x, use_running_avg=False):
        return x


class NotShared(nn.Module):
    def __call__(self, x, use_running_average):
        return x


class OtherKernel(NotShared):
    def kernel(self, kernel):
        return kernel.sum(-1)


class FailingKernel(NotShared):
    def kernel(self, kernel):
        return kernel @ jnp.ones(17)


class OtherStatistic(nn.Module):
    @nn.compact
    def __call__(self, x, use_running_average):
        mean = self.variable("batch_stats", "mean", jnp.zeros, ())
        if not use_running_average:
            mean.value = x.mean((0, 1, 2))
        return x - jnp.reshape(mean.value, (1, 1, 1, -1))


class Silent(nn.Module):
    pass


def no_module(name=None):
    return 3


def make_badly(name=None):
    raise RuntimeError("out of ideas")


class StandardWeights(nn.Module):
    replaces_bias = True

    def __call__(self, x, mean_of_x):
        shift = 0 if mean_of_x is None else mean_of_x()
        return x - jnp.reshape(shift, (1, 1, 1, -1))

    def kernel(self, kernel):
        return kernel - kernel.mean((0, 1, 2), keepdims=True)
"""


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    """Puts the user's files where Python finds them."""
    (tmp_path / "own_norms.py").write_text(OWN)
    (tmp_path / "broken_norms.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.syspath_prepend(tmp_path)


def network(norm, **changes):
    settings = default.get_config().model.to_dict() | {
        "norm": norm, "features": (4, 4), "hidden_units": 8
    }  # fmt: skip
    return make_model(**(settings | changes))


def init(model, side=12):
    return model.init(jax.random.key(0), jnp.ones((2, side, side, 3)), train=False)


def factory(norm, axis_name=None, **kwargs):
    return make_norm_factory(
        norm, norm_kwargs=kwargs, decay=0.9, epsilon=1e-4, average="stdev",
        axis_name=axis_name, dtype=jnp.float32,
    )  # fmt: skip


@pytest.mark.parametrize("norm", ["own_norms:Twice", "own_norms:make_twice"])
def test_somebodys_own_stands_between_convolution_and_relu(norm):
    model = network(norm, norm_kwargs={"factor": 3.0}, norm_decay=0.0)
    plain = network("none")
    variables = init(model)
    assert jax.tree.structure(variables) == jax.tree.structure(init(plain))
    # Without biases the network is homogeneous but for its dense layers: compare a block.
    images = jnp.linspace(0, 1, 2 * 12 * 12 * 3).reshape(2, 12, 12, 3)
    outputs = [
        m.apply(variables, images, train=False, mutable=["intermediates"])[1]["intermediates"]
        for m in (model, plain)
    ]
    tripled, once = (output["block0"]["output"][0] for output in outputs)
    assert np.abs(once).max() > 0
    np.testing.assert_allclose(tripled, 3 * once, rtol=1e-6)


def test_a_functions_parameters_are_set_as_a_classs_fields():
    assert factory("own_norms:make_twice").settings == {"momentum": 0.9}
    assert factory("own_norms:Twice").settings == {}


@pytest.mark.parametrize("name", ["GroupNorm", "LayerNorm", "BatchNorm", "RMSNorm"])
def test_flaxs_own_fit_as_they_are(name):
    kwargs = {"num_groups": 2} if name == "GroupNorm" else {}
    made = factory(f"flax.linen:{name}", axis_name="batch", **kwargs)
    assert made.replaces_bias == (name != "RMSNorm")
    assert made.averages == (name == "BatchNorm")
    assert made.settings["epsilon"] == 1e-4
    # Statistics of single examples must not be shared by devices.
    assert ("axis_name" in made.settings) == (name == "BatchNorm")
    variables = init(network(f"flax.linen:{name}", norm_kwargs=kwargs))
    assert ("bias" in variables["params"]["block0"]["conv"]) == (name == "RMSNorm")


def test_full_equals_flaxs_batch_norm_in_the_network():
    images = jax.random.uniform(jax.random.key(1), (4, 12, 12, 3))
    results = []
    for norm in ("full", "flax.linen:BatchNorm"):
        model = network(norm, stats_average="variance")
        results.append(model.apply(init(model), images, train=True, mutable=["batch_stats"]))
    jax.tree.map(np.testing.assert_array_equal, *results)


def test_weights_may_be_reparameterized_and_their_mean_is_then_known():
    model = network("own_norms:StandardWeights")
    variables = init(model)
    images = jax.random.uniform(jax.random.key(1), (4, 12, 12, 3))
    _, sown = model.apply(variables, images, train=True, mutable=["intermediates"])
    kernel = variables["params"]["block0"]["conv"]["kernel"]
    centred = kernel - kernel.mean((0, 1, 2), keepdims=True)
    before = sown["intermediates"]["block0"]["before_norm"][0]
    direct = jax.lax.conv_general_dilated(
        images, centred, (1, 1), ((2, 2), (2, 2)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(before, direct, rtol=1e-4, atol=1e-6)
    expected = nn.relu(direct - direct.mean((0, 1, 2), keepdims=True))
    after = sown["intermediates"]["block0"]["output"][0]
    np.testing.assert_allclose(after, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("norm", "kwargs", "message"),
    [
        ("bat", {}, r"no 'bat'; there are: none, mean_only, full, .*package.module:ClassName"),
        ("nowhere:Norm", {}, "cannot import nowhere: ModuleNotFoundError: No module named"),
        ("broken_norms:Norm", {}, "cannot import broken_norms: .*nowhere_to_be_found"),
        ("own_norms:Thrice", {}, "own_norms has no 'Thrice' .*: Twice, Needs, OtherShape"),
        ("own_norms:NOT_CALLABLE", {}, "has no 'NOT_CALLABLE' that could be called"),
        ("own_norms:no_module", {}, "own_norms:no_module is no normalizer: it makes no linen"),
        ("own_norms:Silent", {}, "own_norms:Silent is no normalizer: it has no __call__"),
        ("own_norms:Needs", {}, "Needs is no normalizer: its __call__ needs temperature"),
        ("own_norms:Train", {}, "its __call__ takes train, .* never given; use_running_average is"),
        ("own_norms:Misspelt", {}, "its __call__ takes use_running_avg, which it is never given"),
        ("own_norms:make_badly", {}, "failed in .*own_norms.py, line .*: RuntimeError: out of"),
        ("own_norms:Twice", {"power": 2}, "own_norms:Twice takes no 'power'; it takes: factor"),
        ("none", {"power": 2}, "none takes no 'power'; it takes: nothing"),
        ("group", {"groups": 2}, "group takes no 'groups'; it takes: .*num_groups"),
        # What the configuration sets has one place.
        ("full", {"epsilon": 1e-3}, "full takes no 'epsilon'; it takes: use_scale, use_bias"),
    ],
)  # fmt: skip
def test_what_is_no_normalizer_is_refused_by_name(norm, kwargs, message):
    with pytest.raises(UserError, match=message):
        factory(norm, **kwargs)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "OtherShape",
            r"OtherShape returned shape \(2, 13, 14, 4\) and dtype float32 for an input",
        ),
        ("OtherDtype", "OtherDtype returned shape .* and dtype bfloat16 for .* dtype float32"),
        ("Nothing", "Nothing returned shape None"),
        ("Fails", r"Fails failed in .*own_norms.py, line \d+: "),
        (
            "OtherKernel",
            r"OtherKernel: its kernel\(\) returned shape \(3, 3, 3\) for",
        ),
        ("FailingKernel", r"FailingKernel failed in .*own_norms.py, line \d+: "),
    ],
)
def test_what_it_does_wrong_is_said_by_name(name, message):
    with pytest.raises(UserError, match=f"config.model.norm=own_norms:{message}"):
        init(network(f"own_norms:{name}"))


def test_a_statistic_that_changes_its_shape_is_said_by_name():
    model, optimizer = (
        network("own_norms:OtherStatistic"),
        rmsprop(**default.get_config().optimizer),
    )
    state = jit_init(model, optimizer)(jax.random.key(0), jnp.ones((1, 16, 16, 3)))
    with pytest.raises(
        UserError, match=r"batch_stats/block0/norm/mean is float32\[4\] after a tra"
    ):
        jax.jit(make_train_step(model, optimizer))(state, train_batch(), jax.random.key(0))


def test_statistics_that_devices_would_not_share_are_refused():
    factory("own_norms:NotShared")
    with pytest.raises(UserError, match=r"NotShared names no axis_name .*: with several"):
        factory("own_norms:NotShared", axis_name="batch")
    # Nobody else's statistics are asked for.
    factory("own_norms:Twice", axis_name="batch")


@pytest.mark.parametrize("norm", NORMALIZERS)
def test_every_shipped_one_keeps_float32_in_a_network(norm):
    model = network(
        norm, dtype="bfloat16", norm_kwargs={"num_groups": 2} if norm == "group" else {}
    )
    optimizer = rmsprop(**default.get_config().optimizer)
    images = jax.random.uniform(jax.random.key(1), (4, 12, 12, 3))
    state = jit_init(model, optimizer)(jax.random.key(0), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.variables)} == {np.dtype(np.float32)}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.variables))
    assert model.apply(state.variables, images, train=False).dtype == jnp.float32


def test_initializing_from_data_gives_each_channel_mean_0_and_variance_1():
    model = network("weight_norm", features=(4, 4, 6, 6))
    images = jax.random.uniform(jax.random.key(1), (8, 20, 20, 3))
    state = jit_init(model, rmsprop(**default.get_config().optimizer))(jax.random.key(0), images)
    _, sown = model.apply(
        state.variables, images, train=True, mutable=["intermediates"],
        capture_intermediates=lambda module, _: module.name == "norm",
    )  # fmt: skip
    for i in range(4):
        (y,) = sown["intermediates"][f"block{i}"]["norm"]["__call__"]
        np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-4)
        np.testing.assert_allclose(y.std((0, 1, 2)), 1, rtol=1e-3)
