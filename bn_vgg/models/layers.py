"""Layers that networks are built of, and what is reported of a network's layers.

Modules report their `output`, see `models`, and normalizers what they are given, `before_norm`. A
layer is called by its module's path, such as `block0` or `stage1.block0`, without a last `norm`.
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
    """A 3x3 convolution with Glorot uniform kernel and an optional bias from 0.

    `padding` is a key of `PADDINGS`, `dtype` that of the computation, and `precision` that of
    products of float32 numbers on accelerators.
    """

    features: int
    padding: str
    use_bias: bool
    dtype: Any
    precision: lax.Precision | None
    strides: int = 1

    @nn.compact
    def __call__(self, x_NHWC, weights_of: Callable[[jax.Array], jax.Array] | None = None):
        """Convolves (N, H, W, I) with what `weights_of` computes from the kernel (3, 3, I, O)."""
        shape = (3, 3, x_NHWC.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.glorot_uniform(), shape, jnp.float32)
        weights = weights_of(kernel) if weights_of else kernel
        y = conv3x3(
            x_NHWC.astype(self.dtype), weights.astype(self.dtype),
            PADDINGS[self.padding], self.precision,
        )  # fmt: skip
        # The gradients of `conv3x3` are of stride 1 alone.
        y = y[:, :: self.strides, :: self.strides]
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = y + bias.astype(self.dtype).reshape(1, 1, 1, -1)
        return y

    def mean_of_result(self, x_NHWC, weights_of: Callable[[jax.Array], jax.Array] | None = None):
        """Computes the result's mean for each channel, float32, from the input, if `knows_mean`."""
        kernel: jax.Array = self.get_variable("params", "kernel")
        weights = weights_of(kernel) if weights_of else kernel
        return mean_of_full_conv(x_NHWC.astype(self.dtype), weights.astype(self.dtype))

    @property
    def knows_mean(self) -> bool:
        """Whether the mean of the result is cheaper to compute from the input."""
        return (self.padding, self.strides, self.use_bias) == ("full", 1, False)


class Dropout(nn.Module):
    """Dropout whose mask depends on the key and on each example's position alone.

    A mask drawn for the batch as a whole would change with the number of devices that share it.
    Kept values are scaled by 1 / (1 - rate) in training.
    """

    rate: float

    @nn.compact
    def __call__(self, x, positions_N, train: bool):
        """Drops entries of `x` (N, ...) independently, by the rng stream `epoch`, see `streams`."""
        if not train or self.rate == 0:
            return x
        keys_N = jax.vmap(jax.random.fold_in, (None, 0))(self.make_rng("epoch"), positions_N)
        keep = jax.vmap(lambda key: _draw_kept(key, self.rate, x.shape[1:]))(keys_N)
        return jnp.where(keep, x / (1 - self.rate), 0).astype(x.dtype)


def streams(rng, positions_N) -> dict[str, jax.Array]:
    """Returns the random streams of a training pass; `rng` is the epoch's key.

    `Dropout` draws from `epoch` by examples' positions. Others, such as `nn.Dropout`, draw from
    `dropout`: its key differs in each step and on each device.
    """
    return {"epoch": rng, "dropout": jax.random.fold_in(rng, positions_N[0])}


def _draw_kept(key, rate: float, shape: tuple[int, ...]):
    # Drawing costs more than the rest of dropout. At a rate of 1/2 one random bit decides, a 32nd
    # of what `bernoulli` draws.
    if rate != 0.5:
        return jax.random.bernoulli(key, 1 - rate, shape)
    size = math.prod(shape)
    words = jax.random.bits(key, (-(-size // 32), 1), jnp.uint32)
    bits = words >> jnp.arange(32, dtype=jnp.uint32)[None, :] & 1
    return bits.reshape(-1)[:size].reshape(shape) == 1


def layer_activations(collections: Mapping[str, Any], which: str) -> dict[str, jax.Array]:
    """Returns by layer, (N, ..., C), what was reported as `which`: `output` or `before_norm`.

    `collections` are what `apply` returned, with `mutable=["intermediates"]`.
    """
    reported = flatten_dict(collections.get("intermediates", {}))
    reported = {_layer(path): xs for path, xs in reported.items() if path[-1] == which}
    for layer, xs in reported.items():
        if len(xs) > 1:
            raise UserError(f"{layer} reports its {which} {len(xs)} times: report it once")
    return {layer: x for layer, (x,) in reported.items()}


def layer_statistics(batch_stats: Mapping[str, Any]) -> dict[str, dict[str, jax.Array]]:
    """Returns the running statistics by layer and name, such as `mean`."""
    found: dict[str, dict[str, jax.Array]] = {}
    for path, x in flatten_dict(batch_stats).items():
        found.setdefault(_layer(path), {})[path[-1]] = x
    return found


def layer_channels(model: nn.Module, side: int) -> dict[str, dict[str, int]]:
    """Returns the channels by layer of `output` and `before_norm`, see `layer_activations`.

    Nothing is computed. `side` is that of the input images, in pixels.
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
