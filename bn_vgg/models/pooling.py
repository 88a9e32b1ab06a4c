"""2x2 max pooling that stores the index of each maximum.

Its gradient reads one byte for each window, while XLA's reads the whole input again. TPUs use XLA's
gradient, which takes one pass there instead of four.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax


@jax.custom_vjp
def max_pool_2x2(x_NHWC):
    """Returns the maximum of each 2x2 window: (N, H // 2, W // 2, C).

    An odd last row or column is dropped. The gradient goes to the first of equal values in
    row-major order, as in cuDNN, XLA and PyTorch.
    """
    a, b, c, d = _quarters(x_NHWC)
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


def _forward(x):
    a, b, c, _ = _quarters(x)
    largest = max_pool_2x2(x)
    argmax = jnp.where(a == largest, 0, jnp.where(b == largest, 1, jnp.where(c == largest, 2, 3)))
    # XLA keeps only the residuals that the platform's backward pass reads.
    return largest, (argmax.astype(jnp.int8), x)


def _backward(residuals, grad):
    return (lax.platform_dependent(*residuals, grad, tpu=_xla_gradient, default=_gradient),)


max_pool_2x2.defvjp(_forward, _backward)


def _xla_gradient(argmax, x, grad):
    return jax.vjp(lambda x: nn.max_pool(x, (2, 2), (2, 2)), x)[1](grad)[0]


def _gradient(argmax, x, grad):
    n, rows, columns, channels = grad.shape
    height, width = x.shape[1:3]

    def spread(y):
        windows = (n, rows, 2, columns, 2, channels)
        return jnp.broadcast_to(y[:, :, None, :, None], windows)

    index = jnp.arange(4, dtype=jnp.int8).reshape(1, 1, 2, 1, 2, 1)
    grad_x = jnp.where(spread(argmax) == index, spread(grad), 0)
    grad_x = grad_x.reshape(n, 2 * rows, 2 * columns, channels)
    return jnp.pad(grad_x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))


def _quarters(x):
    """Returns the upper left, upper right, lower left and lower right of every window."""
    _, height, width, _ = x.shape
    even = x[:, : height // 2 * 2, : width // 2 * 2]
    return [even[:, row::2, column::2] for row in range(2) for column in range(2)]
