"""A 3x3 convolution whose gradient is fast on every backend.

XLA's CPU backend computes a convolution's gradients ten times slower than its forward
pass. On a CPU they are therefore computed here, as matrix products and a forward
convolution; elsewhere they are XLA's own. Which one is decided where the code is lowered.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

_LAYOUT = ("NHWC", "HWIO", "NHWC")


def conv3x3(x_NHWC, kernel_33IO, padding: int):
    """Convolves with stride 1 and `padding` zeros (1 or 2) on each of the four sides.

    Args:
      x_NHWC: images, (N, H, W, I).
      kernel_33IO: (3, 3, I, O), of the same dtype.
      padding: rows and columns of zeros on each side: 1 ('same') or 2 ('full').

    Returns:
      (N, H + 2 * padding - 2, W + 2 * padding - 2, O).
    """
    return _conv(x_NHWC, kernel_33IO, padding)


def mean_of_full_conv(x_NHWC, kernel_33IO):
    """Computes the mean over batch and positions of a 'full' convolution, without doing it.

    With padding 2 every pixel meets every tap of the kernel exactly once, so

      mean(conv(x, W)) = (mean(x) @ W.sum(taps)) * (H * W) / ((H + 2) * (W + 2)).

    Args:
      x_NHWC: images, (N, H, W, I).
      kernel_33IO: (3, 3, I, O).

    Returns:
      (O,), float32.
    """
    _, height, width, _ = x_NHWC.shape
    mean_I = x_NHWC.astype(jnp.float32).mean(axis=(0, 1, 2))
    taps_IO = kernel_33IO.astype(jnp.float32).sum(axis=(0, 1))
    share = height * width / ((height + 2) * (width + 2))
    return jnp.dot(mean_I, taps_IO, precision=lax.Precision.HIGHEST) * share


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x, kernel, padding):
    return plain_conv(x, kernel, padding)


def plain_conv(x, kernel, padding):
    """Is `conv3x3` with XLA's own gradients on every backend."""
    pads = ((padding, padding), (padding, padding))
    return lax.conv_general_dilated(x, kernel, (1, 1), pads, dimension_numbers=_LAYOUT)


def _conv_forward(x, kernel, padding):
    return plain_conv(x, kernel, padding), (x, kernel)


def _conv_backward(padding, residuals, grad):
    x, kernel = residuals
    # One choice for each gradient, so that the one nobody asks for (of the images) is
    # not computed.
    grad_x = lax.platform_dependent(
        x,
        kernel,
        grad,
        cpu=lambda x, kernel, grad: _cpu_input_gradient(padding, kernel, grad),
        default=lambda x, kernel, grad: _xla_gradients(padding, x, kernel, grad)[0],
    )
    grad_kernel = lax.platform_dependent(
        x,
        kernel,
        grad,
        cpu=lambda x, kernel, grad: _cpu_kernel_gradient(padding, x, grad),
        default=lambda x, kernel, grad: _xla_gradients(padding, x, kernel, grad)[1],
    )
    return grad_x, grad_kernel


_conv.defvjp(_conv_forward, _conv_backward)


def _xla_gradients(padding, x, kernel, grad):
    _, pullback = jax.vjp(partial(plain_conv, padding=padding), x, kernel)
    return pullback(grad)


def _cpu_input_gradient(padding, kernel, grad):
    """A forward convolution of the output's gradient with the turned kernel.

    Convolutions without padding meet a slow path of jaxlib 0.10; padding by one and
    cutting the rim off again avoids it.
    """
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    if padding == 1:
        return plain_conv(grad, turned, 1)
    return plain_conv(grad, turned, 1)[:, 1:-1, 1:-1, :]


def _cpu_kernel_gradient(padding, x, grad):
    """Sum over examples of x^T (I, HW) times the unrolled gradient (HW, 9 O).

    Every input pixel meets the tap (a, b) in the output pixel that lies (padding - a,
    padding - b) further on, so each tap is a shifted slice of the gradient.
    """
    _, height, width, in_channels = x.shape
    out_channels = grad.shape[-1]
    if padding == 1:  # the shifts then reach one pixel over the rim
        grad = jnp.pad(grad, ((0, 0), (1, 1), (1, 1), (0, 0)))

    def add_example(total, example):
        x_HWI, grad_HWO = example
        taps = [
            grad_HWO[2 - a : 2 - a + height, 2 - b : 2 - b + width]
            for a in range(3)
            for b in range(3)
        ]
        unrolled = jnp.stack(taps, axis=2).reshape(height * width, 9 * out_channels)
        product = jnp.dot(
            x_HWI.reshape(height * width, in_channels).T,
            unrolled,
            preferred_element_type=jnp.float32,
        )
        return total + product, None

    total = jnp.zeros((in_channels, 9 * out_channels), jnp.float32)
    total, _ = lax.scan(add_example, total, (x, grad))
    kernel = total.reshape(in_channels, 3, 3, out_channels).transpose(1, 2, 0, 3)
    return kernel.astype(x.dtype)
