"""Looking up normalizers, user-defined ones in a network, and what is said of broken ones."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_vgg import provenance
from bn_vgg.config import check_config
from bn_vgg.errors import UserError
from bn_vgg.models import make_model
from bn_vgg.models.layers import layer_activations
from bn_vgg.models.norms import make_norm_factory
from configs import default
from tests import tiny_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

# A user's file.
OWN = """
from functools import partial

import flax.linen as nn
import jax.numpy as jnp

NUMBER = 3


class Twice(nn.Module):
    factor: float = 2.0

    def __call__(self, x):
        return x * self.factor


Half = partial(Twice, factor=0.5)


def make_twice(name=None, factor=2.0, momentum=0.0):
    return Twice(factor=factor + momentum, name=name)


class StandardWeights(nn.Module):
    replaces_bias = True

    def __call__(self, x, mean_of_x):
        return x - jnp.reshape(mean_of_x(), (1, 1, 1, -1))

    def reparametrize(self, kernel):
        return kernel - kernel.mean((0, 1, 2), keepdims=True)


class NotShared(nn.Module):
    def __call__(self, x, use_running_average):
        return x


class Silent(nn.Module):
    pass


class Needs(nn.Module):
    def __call__(self, x, temperature):
        return x


class Train(nn.Module):
    def __call__(self, x, is_train=True):
        return x


class Misspelt(nn.Module):
    def __call__(self, x, use_running_avg=False):
        return x


def number(name=None):
    return 3


def make_badly(name=None):
    raise RuntimeError("out of ideas")


def nameless():
    return Twice()


class OtherShape(nn.Module):
    def __call__(self, x):
        return x[:, :-1]


class Nothing(nn.Module):
    def __call__(self, x):
        pass


class Fails(nn.Module):
    def __call__(self, x):
        return x + jnp.ones(17)


class OtherKernel(Twice):
    def reparametrize(self, kernel):
        return kernel.sum(-1)


class OddStatistic(nn.Module):
    momentum: float
    odd: str
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, use_running_average):
        zeros = jnp.zeros(x.shape[-1:] if self.odd != "shape" else (), x.dtype)
        first = (zeros,) if self.odd == "tuple" else zeros
        mean = self.variable("batch_stats", "mean", lambda: first)
        if not use_running_average:
            mean.value = self.momentum * mean.value + jnp.zeros(x.shape[-1:], x.dtype)
        return x
"""


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    """Puts the user's files where Python finds them."""
    (tmp_path / "own_norms.py").write_text(OWN)
    (tmp_path / "broken_norms.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.syspath_prepend(tmp_path)


def network(norm, **changes):
    settings = default.get_config().model.to_dict() | {"features": (4, 4), "hidden_units": 8}
    return make_model(**(settings | {"norm": norm} | changes))


def init(model, side=12):
    return model.init(jax.random.key(0), jnp.ones((2, side, side, 3)), train=False)


def factory(norm, axis_name=None, **kwargs):
    return make_norm_factory(
        norm, kwargs, momentum=0.9, epsilon=1e-4, average="stdev", dtype=jnp.float32,
        stats_pass="clean", axis_name=axis_name,
    )  # fmt: skip


def test_only_the_users_own_code_is_digested():
    config = default.get_config().to_dict()
    config["optimizer"]["name"] = "optax:lion"
    for name in ("own_norms:Twice", "own_norms:Half"):  # a partial's __module__ is functools
        config["model"]["norm"] = name
        expected = hashlib.blake2b(OWN.encode(), digest_size=16).hexdigest()
        assert provenance.user_code(config) == {name: expected}


@pytest.mark.parametrize("norm", ["own_norms:Twice", "own_norms:make_twice"])
def test_a_user_defined_one_stands_between_convolution_and_relu(norm):
    model = network(norm, norm_kwargs={"factor": 3.0}, norm_decay=0.0)
    variables = init(model)
    assert jax.tree.structure(variables) == jax.tree.structure(init(network("none")))
    images = jnp.linspace(0, 1, 2 * 12 * 12 * 3).reshape(2, 12, 12, 3)
    tripled, once = (
        layer_activations(
            m.apply(variables, images, train=False, mutable=["intermediates"])[1], "output"
        )["block0"]
        for m in (model, network("none"))
    )
    assert np.abs(once).max() > 0
    np.testing.assert_allclose(tripled, 3 * once, rtol=1e-6)


@pytest.mark.parametrize("name", ["GroupNorm", "LayerNorm", "BatchNorm", "RMSNorm"])
def test_flaxs_own_fit_as_they_are(name):
    kwargs = {"num_groups": 2} if name == "GroupNorm" else {}
    made = factory(f"flax.linen:{name}", axis_name="batch", **kwargs)
    assert made.replaces_bias == (name != "RMSNorm")
    assert made.has_averages == (name == "BatchNorm")
    assert made.settings["epsilon"] == 1e-4
    # Statistics of single examples must not cross devices.
    assert ("axis_name" in made.settings) == (name == "BatchNorm")
    variables = init(network(f"flax.linen:{name}", norm_kwargs=kwargs))
    assert ("bias" in variables["params"]["block0"]["conv"]) == (name == "RMSNorm")


def test_weights_may_be_reparameterized_and_their_mean_is_then_known():
    model = network("own_norms:StandardWeights")
    variables = init(model)
    images = jax.random.uniform(jax.random.key(1), (4, 12, 12, 3))
    _, reported = model.apply(variables, images, train=True, mutable=["intermediates"])
    kernel = variables["params"]["block0"]["conv"]["kernel"]
    expected = jax.lax.conv_general_dilated(
        images, kernel - kernel.mean((0, 1, 2), keepdims=True), (1, 1), ((2, 2), (2, 2)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip
    before = layer_activations(reported, "before_norm")["block0"]
    np.testing.assert_allclose(before, expected, rtol=1e-4, atol=1e-6)
    after = layer_activations(reported, "output")["block0"]
    centred = expected - expected.mean((0, 1, 2), keepdims=True)
    np.testing.assert_allclose(after, jnp.maximum(centred, 0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("norm", "kwargs", "message"),
    [
        ("bat", {}, r"name 'bat'; choose one of none, mean_only, full, .*package.module:NAME"),
        ("batch_norm", {}, "name 'batch_norm'; did you mean full[?] choose one of none, "),
        ("nowhere:Norm", {}, "cannot import nowhere:Norm: ModuleNotFoundError: No module named"),
        ("broken_norms:Norm", {}, "cannot import broken_norms:Norm: .*nowhere_to_be_found"),
        ("own_norms:Thrice", {}, "cannot import own_norms:Thrice: .*no attribute 'Thrice'"),
        ("own_norms:NUMBER", {}, "own_norms:NUMBER is not a class or function"),
        ("own_norms:number", {}, "own_norms:number does not create a flax.linen module"),
        ("own_norms:Silent", {}, "Silent does not create .* with __call__"),
        ("own_norms:Needs", {}, "Needs: its __call__ takes temperature, which is never passed"),
        ("own_norms:Train", {}, "its __call__ takes is_train, .* it may take use_running_average"),
        ("own_norms:Misspelt", {}, "its __call__ takes use_running_avg, which is never passed"),
        ("own_norms:make_badly", {}, "failed in .*own_norms.py, line .*: RuntimeError: out of"),
        ("own_norms:nameless", {}, "nameless failed: TypeError: .*unexpected .* 'name'"),
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
        ("OtherShape", r" its result is float32\(2, 13, 14, 4\), not float32\(2, 14, 14, 4\)"),
        ("Nothing", r" its result is missing, not float32"),
        ("OtherKernel", r" the result of its reparametrize\(\) is float32\(3, 3, 3\), not float32"),
        ("Fails", ""),
    ],
)
def test_what_it_does_wrong_is_said_by_name(name, message):
    message = f":{message}" if message else r" failed in .*own_norms.py, line \d+: "
    with pytest.raises(UserError, match=f"config.model.norm=own_norms:{name}{message}"):
        init(network(f"own_norms:{name}"))


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        ("tuple", "batch_stats/block0/norm/mean is of type tuple, not an array"),
        ("dtype", r"after a step batch_stats/.*mean is float32\(\d+,\), not bfloat16"),
        ("shape", r"after a step .*mean is bfloat16\(\d+,\), not bfloat16\(\)"),
    ],
)
def test_statistics_that_are_not_float32_arrays_are_refused(odd, message):
    config = tiny_config.get_config()
    config.model.update(norm="own_norms:OddStatistic", norm_kwargs={"odd": odd})
    config.model.dtype = "bfloat16"
    with pytest.raises(UserError, match=message):
        check_config(config.to_dict())


def test_statistics_that_devices_would_not_share_are_refused():
    factory("own_norms:NotShared")
    with pytest.raises(UserError, match=r"NotShared has no field axis_name .*: its statistics"):
        factory("own_norms:NotShared", axis_name="batch")
    factory("own_norms:Twice", axis_name="batch")  # has no statistics of the batch
