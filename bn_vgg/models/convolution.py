"""A 3x3 convolution whose gradients are fast on every kind of device.

CPU: XLA's own gradients take ten times as long as its forward pass. Here they are matrix products
and a forward convolution. NVIDIA GPU: XLA does not recognize the kernel gradient of a 'full'
convolution, and cuDNN wants channels in multiples of 8; both are arranged here. TPU: the kernel
gradient is written so that XLA moves less memory. The code is chosen when a program is lowered.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
from jax import lax

_LAYOUT = ("NHWC", "HWIO", "NHWC")
# cuDNN's tensor-core kernels take 16 bytes of channels at a time, 8 of bfloat16. It would pad other
# numbers of channels in a pass of its own before every call.
_CUDA_CHANNELS = 8


@cache
def cpu_compiler_options() -> dict[str, str] | None:
    """Returns options for `jax.jit` that make the training step faster on a CPU, or None.

    jaxlib 0.10 hands some operations to YNNPACK, whose convolutions are two to ten times slower
    than XLA's own and whose reductions five times faster. The option, which keeps the reductions
    alone, is experimental: a jaxlib that does not know it fails to compile with it.
    """
    options = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
    try:
        jax.jit(lambda x: x + 1, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return None
    return options


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv3x3(x_NHWC, kernel_33IO, padding: int, precision: lax.Precision | None):
    """Convolves (N, H, W, I) with stride 1: (N, H + 2 * padding - 2, W + 2 * padding - 2, O).

    `padding` are the zeros on each of the four sides: 1 ('same') or 2 ('full'). `precision` is
    that of products on accelerators; a CPU does not round them.
    """
    arrays = x_NHWC, kernel_33IO
    return _by_platform(
        arrays, padding, precision, cpu=_cpu_conv, cuda=_cuda_conv, default=plain_conv
    )


def mean_of_full_conv(x_NHWC, kernel_33IO):
    """Computes the mean of a 'full' convolution's result, (O,), float32, without convolving.

    With padding 2 every pixel meets every tap of the kernel exactly once, so

      mean(conv(x, W)) = (mean(x) @ W.sum(taps)) * (H * W) / ((H + 2) * (W + 2)).
    """
    _, height, width, _ = x_NHWC.shape
    mean_I = x_NHWC.astype(jnp.float32).mean(axis=(0, 1, 2))
    taps_IO = kernel_33IO.astype(jnp.float32).sum(axis=(0, 1))
    share = height * width / ((height + 2) * (width + 2))
    return jnp.dot(mean_I, taps_IO, precision=lax.Precision.HIGHEST) * share


def plain_conv(x, kernel, padding, precision):
    """The same as `conv3x3` by XLA's own operation, with XLA's own gradients."""
    pads = ((padding, padding), (padding, padding))
    return lax.conv_general_dilated(
        x, kernel, (1, 1), pads, dimension_numbers=_LAYOUT, precision=precision
    )


def _conv_forward(x, kernel, padding, precision):
    return conv3x3(x, kernel, padding, precision), (x, kernel)


def _conv_backward(padding, precision, residuals, grad):
    # Chosen one by one, so that the gradient of the images, which nobody asks for, is not computed.
    return _by_platform(
        (*residuals, grad), padding, precision,
        cpu=_cpu_input_gradient, cuda=_cuda_input_gradient, default=_xla_input_gradient,
    ), _by_platform(
        (*residuals, grad), padding, precision,
        cpu=_cpu_kernel_gradient, cuda=_cuda_kernel_gradient, tpu=_tpu_kernel_gradient,
        default=_xla_kernel_gradient,
    )  # fmt: skip


conv3x3.defvjp(_conv_forward, _conv_backward)


def _by_platform(arrays, padding, precision, **functions):
    bound = {
        platform: partial(function, padding=padding, precision=precision)
        for platform, function in functions.items()
    }
    return lax.platform_dependent(*arrays, **bound)


def _xla_input_gradient(x, kernel, grad, padding, precision):
    conv = partial(plain_conv, kernel=kernel, padding=padding, precision=precision)
    return jax.linear_transpose(conv, x)(grad)[0]


def _xla_kernel_gradient(x, kernel, grad, padding, precision):
    conv = partial(plain_conv, x, padding=padding, precision=precision)
    return jax.linear_transpose(conv, kernel)(grad)[0]


def _cuda_conv(x, kernel, padding, precision):
    """`plain_conv` as a 'same' convolution of what `_pad_for_cuda` returns."""
    channels = kernel.shape[3]
    kernel = _pad_channels(kernel, (2, 3))
    return plain_conv(_pad_for_cuda(x, padding), kernel, 1, precision)[..., :channels]


def _cuda_input_gradient(x, kernel, grad, padding, precision):
    channels = x.shape[3]
    x, kernel, grad = _pad_channels(x), _pad_channels(kernel, (2, 3)), _pad_channels(grad)
    return _xla_input_gradient(x, kernel, grad, padding, precision)[..., :channels]


def _cuda_kernel_gradient(x, kernel, grad, padding, precision):
    """The gradient of `_cuda_conv`'s 'same' convolution.

    XLA turns it into cuDNN's backward-filter call. That of a 'full' convolution it turns into a
    convolution with a filter as large as the image, which takes ten times as long.
    """
    _, _, inputs, outputs = kernel.shape
    x, kernel, grad = _pad_for_cuda(x, padding), _pad_channels(kernel, (2, 3)), _pad_channels(grad)
    return _xla_kernel_gradient(x, kernel, grad, 1, precision)[:, :, :inputs, :outputs]


def _pad_for_cuda(x, padding):
    """Pads channels, and the images by what `padding` exceeds that of a 'same' convolution."""
    margin = (padding - 1, padding - 1)
    # Without the barrier XLA would fold the padding into the convolution. The forward and the
    # backward pass have the same expression, which is computed once.
    return lax.optimization_barrier(jnp.pad(_pad_channels(x), ((0, 0), margin, margin, (0, 0))))


def _pad_channels(array, axes=(3,)):
    """Appends zeros to `axes` up to a multiple of `_CUDA_CHANNELS`."""
    widths = [(0, -size % _CUDA_CHANNELS * (i in axes)) for i, size in enumerate(array.shape)]
    return jnp.pad(array, widths)


def _tpu_kernel_gradient(x, kernel, grad, padding, precision):
    """The output's gradient convolved with the images: the flipped kernel's gradient.

    XLA prefers the smaller of the two as the filter. To swap them it would flip the whole of the
    output's gradient in memory, where this flips the 3x3 result.
    """
    # The sum is over the examples, which take the place of a convolution's channels.
    spec = lax.ConvDimensionNumbers((3, 0, 1, 2), (3, 0, 1, 2), (2, 3, 0, 1))
    pads = ((2 - padding, 2 - padding), (2 - padding, 2 - padding))
    flipped_33OI = lax.conv_general_dilated(
        grad, x, (1, 1), pads, dimension_numbers=spec, precision=precision
    )
    return flipped_33OI[::-1, ::-1].swapaxes(2, 3)


def _cpu_conv(x, kernel, padding, precision):
    """`plain_conv` on a CPU, two neighbouring columns at a time where that is faster.

    These are the output channels of one 3x4 convolution with stride 2. A quarter of its products
    are with zeros, but 20 channels fill a processor's registers badly and 40 well.
    """
    out_channels = kernel.shape[3]
    out_width = x.shape[2] + 2 * padding - 2
    if out_channels > 32 or out_width % 2:
        return plain_conv(x, kernel, padding, precision)
    left, right = (jnp.pad(kernel, ((0, 0), side, (0, 0), (0, 0))) for side in ((0, 1), (1, 0)))
    both = jnp.stack([left, right], axis=3).reshape(3, 4, -1, 2 * out_channels)
    pads = ((padding, padding), (padding, padding))
    y = lax.conv_general_dilated(x, both, (1, 2), pads, dimension_numbers=_LAYOUT)
    return y.reshape(*y.shape[:2], out_width, out_channels)


def _cpu_input_gradient(x, kernel, grad, padding, precision):
    return _cpu_conv(grad, kernel[::-1, ::-1].swapaxes(2, 3), 2 - padding, precision)


def _cpu_kernel_gradient(x, kernel, grad, padding, precision):
    """The sum, over a few examples at a time, of matrix products of unrolled windows.

    Measured on two cores: small images are best taken together while the windows of some 9,000
    pixels fit a core's cache, and two such products at once keep both cores busy.
    """
    count, height, width, in_channels = x.shape
    product = _unroll_input if in_channels < 8 else _unroll_both
    most = 2 * max(1, min(25, 9100 // (height * width)))
    fitting = [n for n in range(1, most + 1) if count % n == 0]
    together = max(fitting, key=lambda n: (n % 2 == 0, n))

    def add_examples(i, total):
        # Sliced here: `lax.scan` would copy both arrays into another layout first.
        examples = [lax.dynamic_slice_in_dim(a, i * together, together) for a in (x, grad)]
        return total + product(padding, *examples)

    total = jnp.zeros((3, 3, in_channels, grad.shape[-1]), jnp.float32)
    return lax.fori_loop(0, count // together, add_examples, total).astype(x.dtype)


def _unroll_input(padding, x_NHWI, grad_NHWO):
    """(12 I, P) times (P, 2 O): windows of 3x4 input pixels by two pixels of the gradient.

    Best for the three channels of an image. As in `_cpu_conv`, a quarter of it is not needed.
    """
    _, height, width, _ = grad_NHWO.shape
    pairs = -(-width // 2)
    right = 2 * pairs + 2 - padding - x_NHWI.shape[2]
    x = jnp.pad(x_NHWI, ((0, 0), (padding, padding), (padding, right), (0, 0)))
    grad = jnp.pad(grad_NHWO, ((0, 0), (0, 0), (0, 2 * pairs - width), (0, 0)))
    x, grad = _group_columns(x, 2), _group_columns(grad, 2)
    windows = [x[:, a : a + height, b : b + pairs] for a in range(3) for b in range(2)]
    # Tap b of the window of the gradient's pixel j is column j + b of four.
    products = _product(jnp.concatenate(windows, axis=3), grad)
    products = products.reshape(3, 4, x_NHWI.shape[3], 2, -1)
    return jnp.stack([products[:, b, :, 0] + products[:, b + 1, :, 1] for b in range(3)], axis=1)


def _unroll_both(padding, x_NHWI, grad_NHWO):
    """(3 I, P) times (P, 3 O): three rows of the input by three columns of the gradient.

    Tap (a, b) multiplies row h + a - padding of the input in output row h, and column w in output
    column w + padding - b. Where channels are few, two columns count as one of twice as many
    channels, with four columns of the gradient.
    """
    _, _, width, in_channels = x_NHWI.shape
    _, height, out_width, out_channels = grad_NHWO.shape
    size = 2 if in_channels <= 32 else 1
    groups, shifts = -(-width // size), 2 // size + 1
    x = jnp.pad(x_NHWI, ((0, 0), (padding, padding), (0, groups * size - width), (0, 0)))
    left = 2 - padding  # a column that a 'same' convolution's output lacks
    right = (groups + shifts - 1) * size - left - out_width
    grad = jnp.pad(grad_NHWO, ((0, 0), (0, 0), (left, right), (0, 0)))
    x, grad = _group_columns(x, size), _group_columns(grad, size)
    rows = jnp.concatenate([x[:, a : a + height] for a in range(3)], axis=3)
    columns = jnp.concatenate([grad[:, :, s : s + groups] for s in range(shifts)], axis=3)
    products = _product(rows, columns).reshape(3, size, in_channels, size + 2, out_channels)
    # Tap b of column j of a group is met in column j + 2 - b of the gradient's.
    return jnp.stack(
        [sum(products[:, j, :, j + 2 - b] for j in range(size)) for b in range(3)], axis=1
    )


def _group_columns(x_NHWC, size: int):
    """Turns `size` neighbouring columns into the channels of one."""
    *rest, columns, channels = x_NHWC.shape
    return x_NHWC.reshape(*rest, columns // size, size * channels)


def _product(left_NHWA, right_NHWB):
    """The sum over all pixels of the products of their channels: (A, B), float32."""
    # Each half of the examples by itself: XLA computes the two at the same time.
    halves = 2 if len(left_NHWA) % 2 == 0 else 1
    left, right = (a.reshape(halves, -1, a.shape[-1]) for a in (left_NHWA, right_NHWB))
    numbers = (((1,), (1,)), ((0,), (0,)))
    return lax.dot_general(left, right, numbers, preferred_element_type=jnp.float32).sum(axis=0)
