"""Layers for networks, and access to their sown activations and running statistics.

Networks sow layer outputs as `output`, see `models`; `NormFactory` sows the inputs of normalizers
as `before_norm`. A layer's name is its module's path, such as `block0` or `block0.norm1`, without a
final `norm`.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jax import lax

from bn_vgg.errors import UserError
from bn_vgg.models.convolution import conv3x3, mean_of_full_conv

# Zeros on each side of a 3x3 convolution's input.
PADDINGS = {"full": 2, "same": 1}


class Conv(nn.Module):
    """A 3x3 convolution with a Glorot uniform kernel and an optional bias, initialized to 0.

    `padding` is a key of `PADDINGS`, `dtype` that of the computation, and `precision` that of
    float32 products on accelerators.
    """

    features: int
    padding: str
    use_bias: bool
    dtype: Any
    precision: lax.Precision | None
    strides: int = 1

    @nn.compact
    def __call__(self, x_NHWC, reparametrize: Callable[[jax.Array], jax.Array] | None = None):
        """Convolves (N, H, W, I) with the kernel (3, 3, I, O) or with `reparametrize(kernel)`."""
        shape = (3, 3, x_NHWC.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.glorot_uniform(), shape, jnp.float32)
        weights = reparametrize(kernel) if reparametrize else kernel
        y = conv3x3(
            x_NHWC.astype(self.dtype), weights.astype(self.dtype),
            PADDINGS[self.padding], self.precision,
        )  # fmt: skip
        # `conv3x3` always has stride 1, so subsample its output.
        y = y[:, :: self.strides, :: self.strides]
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = y + bias.astype(self.dtype).reshape(1, 1, 1, -1)
        return y

    def mean_of_output(self, x_NHWC, reparametrize: Callable[[jax.Array], jax.Array] | None = None):
        """Computes the output's per-channel mean, (O,), float32; requires `has_cheap_mean`."""
        kernel: jax.Array = self.get_variable("params", "kernel")
        weights = reparametrize(kernel) if reparametrize else kernel
        return mean_of_full_conv(x_NHWC.astype(self.dtype), weights.astype(self.dtype))

    @property
    def has_cheap_mean(self) -> bool:
        """Whether the output's mean can be computed from the input, without convolving."""
        return (self.padding, self.strides, self.use_bias) == ("full", 1, False)


class Dropout(nn.Module):
    """Dropout whose masks depend only on the epoch's key and each example's position.

    A mask drawn for the whole batch would depend on the number of devices that share it. In
    training the remaining values are scaled by 1 / (1 - rate).
    """

    rate: float

    @nn.compact
    def __call__(self, x, positions_N, train: bool):
        """Drops entries of `x` (N, ...) independently, by the stream `epoch` of `rng_streams`."""
        if not train or self.rate == 0:
            return x
        keys_N = jax.vmap(jax.random.fold_in, (None, 0))(self.make_rng("epoch"), positions_N)
        keep = jax.vmap(lambda key: _keep_mask(key, self.rate, x.shape[1:]))(keys_N)
        return jnp.where(keep, x / (1 - self.rate), 0).astype(x.dtype)


def rng_streams(rng, positions_N) -> dict[str, jax.Array]:
    """Returns the random number streams of a training pass; `rng` is the epoch's key.

    `Dropout` draws from `epoch` and folds in the examples' positions. Other modules, such as
    `nn.Dropout`, draw from `dropout`, whose key differs in each step and on each device.
    """
    return {"epoch": rng, "dropout": jax.random.fold_in(rng, positions_N[0])}


def _keep_mask(key, rate: float, shape: tuple[int, ...]):
    # Random numbers cost more than the rest of dropout. At rate 1/2 one bit for each value is
    # enough, a 32nd of what `bernoulli` draws.
    if rate != 0.5:
        return jax.random.bernoulli(key, 1 - rate, shape)
    size = math.prod(shape)
    words = jax.random.bits(key, (-(-size // 32), 1), jnp.uint32)
    bits = (words >> jnp.arange(32, dtype=jnp.uint32)[None, :]) & 1
    return bits.reshape(-1)[:size].reshape(shape) == 1


def layer_activations(collections: Mapping[str, Any], which: str) -> dict[str, jax.Array]:
    """Returns the activations sown as `which`, `output` or `before_norm`: (N, ..., C) by layer.

    `collections` is the second result of `apply(..., mutable=["intermediates"])`.
    """
    found: dict[str, jax.Array] = {}
    for path, sown in flatten_dict(collections.get("intermediates", {})).items():
        if path[-1] == which:
            layer = _layer(path)
            if len(sown) > 1 or layer in found:
                raise UserError(f"{layer} sows {which} more than once: use a module for each")
            (found[layer],) = sown
    return found


def layer_statistics(batch_stats: Mapping[str, Any]) -> dict[str, dict[str, jax.Array]]:
    """Returns the running statistics by layer and name, such as `mean`."""
    found: dict[str, dict[str, jax.Array]] = {}
    for path, x in flatten_dict(batch_stats).items():
        found.setdefault(_layer(path), {})[path[-1]] = x
    return found


def layer_channels(model: nn.Module, side: int) -> dict[str, dict[str, int]]:
    """Returns the number of channels of each layer's `output` and `before_norm`.

    The network is only traced. `side` is the height and width of the input images, in pixels.
    """
    images = jnp.zeros((1, side, side, 3), jnp.float32)
    _, collections = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), images, train=False, mutable=True)
    )
    return {
        which: {layer: x.shape[-1] for layer, x in layer_activations(collections, which).items()}
        for which in ("output", "before_norm")
    }


def _layer(path: tuple[str, ...]) -> str:
    modules = path[:-1]
    return ".".join(modules[:-1] if modules[-1:] == ("norm",) else modules) or "network"
