"""The 8-layer VGG: convolution, normalization, ReLU, dropout, pooling; two dense layers."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from bn_vgg.models.layers import Conv, Dropout
from bn_vgg.models.norms import NormFactory
from bn_vgg.models.pooling import max_pool_2x2


class Block(nn.Module):
    """Convolution, normalization, ReLU, dropout and, with `pool`, 2x2 max pooling.

    ReLU is computed last: with `pool`, on a quarter of the values. The result is the same, because
    ReLU commutes with dropout and max pooling.
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
        """Maps (N, H, W, I) to (N, H', W', features)."""
        use_bias = not self.norm.replaces_bias
        conv = Conv(self.features, self.padding, use_bias, self.dtype, self.precision, name="conv")
        x = self.norm.normalize(x_NHWC, train=train, conv=conv)
        x = Dropout(self.dropout_rate)(x, positions_N, train)
        x = max_pool_2x2(x) if self.pool else x
        x = self.norm.relu(x)
        self.sow("intermediates", "output", x)
        return x


class VGG(nn.Module):
    """Blocks, with 2x2 max pooling after every second one, a hidden layer, and an output layer.

    Attributes:
      features: feature maps of each convolution.
      norm: makes the normalizer between each convolution and its ReLU.
      dropout_rate: probability of dropping a ReLU's output, before pooling.
      dtype: of the computation; parameters and logits are float32.
      padding, precision: as in `Conv`.
    """

    features: tuple[int, ...]
    hidden_units: int
    num_classes: int
    norm: NormFactory
    padding: str
    dropout_rate: float
    dtype: Any
    precision: lax.Precision | None

    @nn.compact
    def __call__(self, images_NHWC, *, train: bool, positions_N=None):
        """Computes logits (N, num_classes), float32.

        Args:
          images_NHWC: intensities from 0 to 1, (N, H, W, C).
          train: whether to use batch statistics and dropout, instead of running statistics.
          positions_N: each example's position in the epoch, int, for dropout masks. Needed only in
            training with dropout.
        """
        x = images_NHWC.astype(self.dtype)
        for i, features in enumerate(self.features):
            block = Block(
                features, self.norm, self.padding, self.dropout_rate,
                pool=i % 2 == 1, dtype=self.dtype, precision=self.precision, name=f"block{i}",
            )  # fmt: skip
            x = block(x, positions_N, train)
        if 0 in x.shape:
            raise ValueError("pooling leaves no pixels")
        x = x.reshape(x.shape[0], -1)
        dense = partial(
            nn.Dense, dtype=self.dtype, precision=self.precision,
            kernel_init=nn.initializers.glorot_uniform(),
        )  # fmt: skip
        hidden = dense(self.hidden_units, name="hidden")
        x = nn.relu(hidden(x))
        hidden.sow("intermediates", "output", x)
        x = Dropout(self.dropout_rate)(x, positions_N, train)
        x = dense(self.num_classes, name="output")(x)
        return x.astype(jnp.float32)
