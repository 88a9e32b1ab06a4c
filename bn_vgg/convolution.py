"""A 3x3 convolution whose gradient is fast on every backend.

XLA's CPU backend computes a convolution's gradients ten times slower than its forward
pass. On a CPU they are therefore computed here, as matrix products and a forward
convolution; elsewhere they are XLA's own. Which one is decided where the code is lowered.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
from jax import lax

_LAYOUT = ("NHWC", "HWIO", "NHWC")


@cache
def cpu_compiler_options() -> dict[str, str] | None:
    """Options for `jax.jit` that make these convolutions faster on a CPU, or None.

    jaxlib 0.10 fuses convolutions into YNNPACK kernels that are two to six times slower
    than its ordinary ones. The option that prevents it calls itself experimental, so it
    is asked for: where it is unknown, compiling with it is an error.
    """
    options = {"xla_cpu_experimental_ynn_fusion_type": ""}
    try:
        jax.jit(lambda x: x + 1, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return None
    return options


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

    jaxlib 0.10 hands convolutions without any padding to a path that is up to six times
    slower; one more row of zeros, cut off again, avoids it.
    """
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    if padding == 1:
        return plain_conv(grad, turned, 1)
    rows_and_columns = ((0, 1), (0, 0))
    return lax.conv_general_dilated(
        grad, turned, (1, 1), rows_and_columns, dimension_numbers=_LAYOUT
    )[:, :-1]


def _cpu_kernel_gradient(padding, x, grad):
    """The sum over a few examples at a time of matrix products.

    Each product has unrolled windows of one side as its longer operand. Measured on two
    cores: for the three channels of an image it is best to unroll the input, for more the
    gradient; and small images are best taken together, as long as the unrolled windows of
    some 4,096 pixels stay in the processor's cache.
    """
    count, height, width, in_channels = x.shape
    product = _unroll_input if in_channels < 8 else _unroll_gradient
    most = max(1, min(10, 4096 // (height * width)))
    together = max(n for n in range(1, most + 1) if count % n == 0)

    def add_examples(total, examples):
        return total + product(padding, *examples), None

    split = [array.reshape(-1, together, *array.shape[1:]) for array in (x, grad)]
    total = jnp.zeros((3, 3, in_channels, grad.shape[-1]), jnp.float32)
    total, _ = lax.scan(add_examples, total, tuple(split))
    return total.astype(x.dtype)


def _unroll_input(padding, x_NHWI, grad_NHWO):
    """(9 I, P) times (P, O): each output pixel's window of the input against its gradient."""
    _, height, width, out_channels = grad_NHWO.shape
    x = _pad(x_NHWI, padding)
    taps = [x[:, a : a + height, b : b + width] for a in range(3) for b in range(3)]
    unrolled = jnp.concatenate(taps, axis=3)
    return _product(unrolled, grad_NHWO).reshape(3, 3, -1, out_channels)


def _unroll_gradient(padding, x_NHWI, grad_NHWO):
    """(I, P) times (P, 3 O), for each row of taps: every pixel against what it reaches.

    Pixel (h, w) meets tap (a, b) in the output (h + padding - a, w + padding - b). Only
    columns are unrolled; rows are slices.
    """
    _, height, width, in_channels = x_NHWI.shape
    grad = _pad(grad_NHWO, 2 - padding)  # the rim that a 'same' convolution lacks
    columns = jnp.concatenate([grad[:, :, 2 - b : 2 - b + width] for b in range(3)], axis=3)
    rows = [_product(x_NHWI, columns[:, 2 - a : 2 - a + height]) for a in range(3)]
    return jnp.stack(rows).reshape(3, in_channels, 3, -1).transpose(0, 2, 1, 3)


def _pad(x_NHWC, rim: int):
    return jnp.pad(x_NHWC, ((0, 0), (rim, rim), (rim, rim), (0, 0)))


def _product(left_NHWA, right_NHWB):
    """The sum over all pixels of the products of their channels: (A, B), float32."""
    left, right = (array.reshape(-1, array.shape[-1]) for array in (left_NHWA, right_NHWB))
    return jnp.dot(left.T, right, preferred_element_type=jnp.float32)
