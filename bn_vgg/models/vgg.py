"""The 8-layer VGG: convolution, normalization, ReLU, dropout, pooling; two dense layers."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from bn_vgg.errors import UserError
from bn_vgg.models.convolution import conv3x3, mean_of_full_conv
from bn_vgg.models.norms import NormFactory, make_norm_factory
from bn_vgg.models.pooling import max_pool_2x2

# Zeros on each side of a 3x3 convolution's input.
PADDINGS = {"full": 2, "same": 1}
Reparameterize = Callable[[jax.Array], jax.Array]
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# Of products of float32 numbers. Unless `HIGHEST` is asked for, TPUs round the factors to
# bfloat16 and NVIDIA's GPUs to TensorFloat-32, whose significands have 11 bits instead of 24.
PRECISIONS = {"highest": lax.Precision.HIGHEST, "tensorfloat32": lax.Precision.HIGH}
# Where running statistics come from: the pass that the loss uses, or one without dropout.
PASSES = ("dropout", "clean")


class Dropout(nn.Module):
    """Dropout whose mask is a function of the key and of each example's position.

    A mask drawn for the batch as a whole would change with the number of devices that
    share it. Kept values are scaled by 1 / (1 - rate) in training.
    """

    rate: float

    @nn.compact
    def __call__(self, x, positions_N, train: bool):
        """Drops entries of `x` (N, ...) independently, by the rng stream `dropout`."""
        if not train or self.rate == 0:
            return x
        keys_N = jax.vmap(jax.random.fold_in, (None, 0))(self.make_rng("dropout"), positions_N)
        keep = jax.vmap(lambda key: _draw_kept(key, self.rate, x.shape[1:]))(keys_N)
        return jnp.where(keep, x / (1 - self.rate), 0).astype(x.dtype)


def _draw_kept(key, rate: float, shape: tuple[int, ...]):
    """Draws a mask of `shape`, True with probability 1 - rate.

    Drawing costs more than everything else in dropout. At the usual rate of a half one
    random bit decides, so a 32nd of what `bernoulli` draws is enough.
    """
    if rate != 0.5:
        return jax.random.bernoulli(key, 1 - rate, shape)
    size = math.prod(shape)
    words = jax.random.bits(key, (-(-size // 32), 1), jnp.uint32)
    bits = words >> jnp.arange(32, dtype=jnp.uint32)[None, :] & 1
    return bits.reshape(-1)[:size].reshape(shape) == 1


class Conv(nn.Module):
    """A 3x3 convolution with stride 1, Glorot uniform kernel and an optional bias from 0."""

    features: int
    padding: str
    use_bias: bool
    dtype: Any
    precision: lax.Precision | None

    @nn.compact
    def __call__(self, x_NHWC, reparameterize: Reparameterize | None = None):
        """Convolves (N, H, W, I) to (N, H', W', features), H' as `PADDINGS` says.

        Args:
          x_NHWC: images.
          reparameterize: computes from the kernel, (3, 3, I, features), the weights.
        """
        shape = (3, 3, x_NHWC.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.glorot_uniform(), shape, jnp.float32)
        if reparameterize is not None:
            kernel = reparameterize(kernel)
        y = conv3x3(
            x_NHWC.astype(self.dtype), kernel.astype(self.dtype),
            PADDINGS[self.padding], self.precision,
        )  # fmt: skip
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            y = y + bias.astype(self.dtype).reshape(1, 1, 1, -1)
        return y

    def mean_of_result(self, x_NHWC, reparameterize: Reparameterize | None = None):
        """Computes the mean of the result for each channel, (features,), from the input.

        Only where `knows_mean`. Float32; differentiable like the result's own mean.
        """
        kernel: jax.Array = self.get_variable("params", "kernel")
        if reparameterize is not None:
            kernel = reparameterize(kernel)
        return mean_of_full_conv(x_NHWC.astype(self.dtype), kernel.astype(self.dtype))

    @property
    def knows_mean(self) -> bool:
        """Whether the mean of the result is cheaper to have from the input."""
        return self.padding == "full" and not self.use_bias


class Block(nn.Module):
    """Convolution, normalization, ReLU, dropout and, with `pool`, 2x2 max pooling.

    ReLU is applied last, to a quarter of the values. It commutes with the others: the
    result is the same, bit for bit. A normalizer with an activation of its own needs none.

    Into the collection `intermediates`, where it is mutable, go what is normalized
    (`before_norm`) and the result (`output`).
    """

    features: int
    norm: NormFactory
    padding: str
    dropout_rate: float
    pool: bool
    dtype: Any
    precision: lax.Precision | None

    @nn.compact
    def __call__(self, x_NHWC, positions_N, train: bool):
        """Maps (N, H, W, I) to (N, H', W', features), pooled or not."""
        use_bias = not self.norm.replaces_bias
        norm = self.norm.make()
        conv = Conv(self.features, self.padding, use_bias, self.dtype, self.precision, name="conv")
        reparameterize = self.norm.kernel_of(norm)
        x = conv(x_NHWC, reparameterize)
        mean_of_x = None
        if conv.knows_mean:
            mean_of_x = partial(conv.mean_of_result, x_NHWC, reparameterize)
        self.sow("intermediates", "before_norm", x)
        x = self.norm.normalize(norm, x, use_running_average=not train, mean_of_x=mean_of_x)
        x = Dropout(self.dropout_rate)(x, positions_N, train)
        x = max_pool_2x2(x) if self.pool else x
        x = x if self.norm.has_activation else nn.relu(x)
        self.sow("intermediates", "output", x)
        return x


class VGG(nn.Module):
    """Blocks with 2x2 max pooling after every second one, a hidden layer, the output.

    Modules are named so that their paths sort in the network's order.

    Attributes:
      features: feature maps of each convolution.
      hidden_units: of the dense hidden layer.
      num_classes: outputs.
      norm: makes the normalizer between each convolution and its ReLU.
      padding: a key of `PADDINGS`.
      dropout_rate: on every ReLU's output, before the pooling.
      dtype: of the computation; parameters and logits are float32.
      stats_pass: one of `PASSES`, for the training step.
    """

    features: tuple[int, ...]
    hidden_units: int
    num_classes: int
    norm: NormFactory
    padding: str
    dropout_rate: float
    dtype: Any
    precision: lax.Precision | None
    stats_pass: str = "dropout"

    @nn.compact
    def __call__(self, images_NHWC, *, train: bool, positions_N=None):
        """Computes logits.

        Args:
          images_NHWC: intensities from 0 to 1, (N, H, W, C).
          train: batch statistics and dropout, instead of running statistics.
          positions_N: each example's position in the epoch, int; the dropout masks
            depend on it. Needed only in training with dropout.

        Returns:
          (N, num_classes), float32.
        """
        x = images_NHWC.astype(self.dtype)
        for i, features in enumerate(self.features):
            block = Block(
                features, self.norm, self.padding, self.dropout_rate,
                pool=i % 2 == 1, dtype=self.dtype, precision=self.precision, name=f"block{i}",
            )  # fmt: skip
            x = block(x, positions_N, train)
        x = x.reshape(x.shape[0], -1)
        dense = partial(
            nn.Dense, dtype=self.dtype, precision=self.precision,
            kernel_init=nn.initializers.glorot_uniform(),
        )  # fmt: skip
        x = dense(self.hidden_units, name="hidden")(x)
        x = nn.relu(x)
        self.sow("intermediates", "output_of_hidden", x)
        x = Dropout(self.dropout_rate)(x, positions_N, train)
        x = dense(self.num_classes, name="output")(x)
        return x.astype(jnp.float32)


def layer_activations(collections: Mapping[str, Any], which: str) -> dict[str, jax.Array]:
    """Picks from the collection `intermediates` what each layer put there as `which`.

    Args:
      collections: that `apply` returned, `intermediates` being mutable.
      which: `before_norm`, of the blocks, or `output`, of the blocks and the hidden layer.

    Returns:
      Arrays (N, H, W, C), of the hidden layer (N, C), by the layer's name.
    """
    sown = dict(collections["intermediates"])
    hidden = sown.pop("output_of_hidden")
    found = {layer: of_layer[which] for layer, of_layer in sown.items()}
    if which == "output":
        found["hidden"] = hidden
    return {layer: array for layer, (array,) in found.items()}


def count_values(
    crop_size: int, features: Sequence[int], hidden_units: int, num_classes: int, padding: str
) -> tuple[int, int]:
    """Counts without building anything, so that it can be told what is too large to build.

    Returns:
      The weights, and the values that the convolutions compute for one example; the weights
      are 0 where the poolings leave nothing of a window.
    """
    side, channels, weights, computed = crop_size, 3, 0, 0
    for i, more in enumerate(features):
        weights += 9 * channels * more
        side, channels = side + 2 * PADDINGS[padding] - 2, more
        computed += side * side * channels
        side //= 1 + i % 2
    if side == 0:
        return 0, computed
    return weights + side * side * channels * hidden_units + hidden_units * num_classes, computed


def make_model(
    *,
    norm: str,
    norm_kwargs: Mapping[str, Any],
    norm_decay: float,
    norm_epsilon: float,
    stats_average: str,
    stats_pass: str,
    per_device_stats: bool,
    features: tuple[int, ...],
    hidden_units: int,
    num_classes: int,
    padding: str,
    dropout_rate: float,
    dtype: str,
    precision: str,
    axis_name: str | None = None,
) -> VGG:
    """Builds the network from the fields of `config.model`, which configs/default.py explains.

    `axis_name` is that of the mapped axis whose devices share a batch, None under plain `jit`.

    Raises:
      UserError: `norm`, `padding`, `dtype`, `precision` or `stats_pass` names nothing there is,
        or as `make_norm_factory` says.
    """
    for field, value, known in (
        ("padding", padding, PADDINGS), ("dtype", dtype, DTYPES),
        ("precision", precision, PRECISIONS), ("stats_pass", stats_pass, PASSES),
    ):  # fmt: skip
        if value not in known:
            raise UserError(f"config.model.{field}: no {value!r}; there are: {', '.join(known)}")
    factory = make_norm_factory(
        norm,
        norm_kwargs=norm_kwargs,
        decay=norm_decay,
        epsilon=norm_epsilon,
        average=stats_average,
        axis_name=None if per_device_stats else axis_name,
        dtype=DTYPES[dtype],
    )
    return VGG(
        features=tuple(features),
        hidden_units=hidden_units,
        num_classes=num_classes,
        norm=factory,
        padding=padding,
        dropout_rate=dropout_rate,
        dtype=DTYPES[dtype],
        precision=PRECISIONS[precision] if dtype == "float32" else None,
        stats_pass=stats_pass,
    )
