"""Residual networks in the CIFAR style, with pluggable normalizers."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from bn_vgg.errors import UserError
from bn_vgg.models.layers import Conv, Dropout
from bn_vgg.models.norms import NormFactory


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters; dropout between the two.

    The shortcut takes every `strides`-th row and column and appends channels of zeros.
    """

    features: int
    strides: int
    norm: NormFactory
    pre_activation: bool
    dropout_rate: float
    dtype: Any
    precision: lax.Precision | None

    @nn.compact
    def __call__(self, x_NHWC, positions_N, train: bool):
        """Maps (N, H, W, I) to (N, H / strides, W / strides, features)."""
        conv = partial(
            Conv, self.features, "same", not self.norm.replaces_bias, self.dtype, self.precision
        )
        first, second = conv(self.strides, name="conv1"), conv(name="conv2")
        dropout, norm = Dropout(self.dropout_rate), partial(self.norm.normalize, train=train)
        shortcut = x_NHWC[:, :: self.strides, :: self.strides]
        added = self.features - shortcut.shape[-1]
        shortcut = jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), (0, added)))
        if self.pre_activation:
            x = first(self.norm.relu(norm(x_NHWC, name="norm1")))
            x = dropout(self.norm.relu(norm(x, name="norm2")), positions_N, train)
            x = shortcut + second(x)
        else:
            x = self.norm.relu(norm(x_NHWC, conv=first, name="norm1"))
            x = dropout(x, positions_N, train)
            x = nn.relu(shortcut + norm(x, conv=second, name="norm2"))
        self.sow("intermediates", "output", x)
        return x


class ResNet(nn.Module):
    """A convolution, three stages of residual blocks, global average pooling, an output layer.

    He et al. 2016, "Deep Residual Learning for Image Recognition", section 4.2, with shortcuts of
    option A; with `pre_activation` He et al. 2016, "Identity Mappings in Deep Residual Networks".
    Kernels are initialized Glorot uniform, as in the recipe.

    Attributes:
      depth: 6 n + 2 layers, for n blocks in each stage.
      width: channels of the first stage; the second and third have twice and four times as many.
      pre_activation: whether normalizer and ReLU come before each convolution. If not, a
        normalizer with its own activation also applies it before the shortcut is added.
      num_classes, norm, dropout_rate, dtype, precision: as in `VGG`.
    """

    num_classes: int
    norm: NormFactory
    dropout_rate: float
    dtype: Any
    precision: lax.Precision | None
    depth: int = 20
    width: int = 16
    pre_activation: bool = False

    @nn.compact
    def __call__(self, images_NHWC, *, train: bool, positions_N=None):
        """Computes logits (N, num_classes), float32; the arguments are those of `VGG`."""
        if self.depth < 8 or self.depth % 6 != 2:
            raise UserError(f"config.model.kwargs: depth is {self.depth}; it must be 8, 14, 20, …")
        use_bias = not self.norm.replaces_bias
        stem = Conv(self.width, "same", use_bias, self.dtype, self.precision, name="stem")
        x = images_NHWC.astype(self.dtype)
        if self.pre_activation:
            x = stem(x)
        else:
            x = self.norm.relu(self.norm.normalize(x, train=train, conv=stem, name="stem_norm"))
        blocks = self.depth // 6
        for i in range(3 * blocks):
            stage = i // blocks
            block = ResidualBlock(
                self.width * 2**stage, 2 if stage and i % blocks == 0 else 1, self.norm,
                self.pre_activation, self.dropout_rate, self.dtype, self.precision,
                name=f"block{i}",
            )  # fmt: skip
            x = block(x, positions_N, train)
        if self.pre_activation:
            x = self.norm.relu(self.norm.normalize(x, train=train, name="last_norm"))
        x = x.mean(axis=(1, 2), dtype=jnp.float32).astype(self.dtype)
        dense = nn.Dense(
            self.num_classes, dtype=self.dtype, precision=self.precision,
            kernel_init=nn.initializers.glorot_uniform(), name="output",
        )  # fmt: skip
        return dense(x).astype(jnp.float32)
