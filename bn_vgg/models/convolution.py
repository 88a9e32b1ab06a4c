"""A 3x3 convolution with fast gradients on CPUs, NVIDIA GPUs and TPUs.

CPU: XLA's gradients take ten times as long as its forward pass; here they are matrix products and
a forward convolution. GPU: XLA does not map the kernel gradient of a 'full' convolution to cuDNN,
so the input is padded first; channels are padded to multiples of 8, as cuDNN needs. TPU: the kernel
gradient is written so that XLA moves less memory. The platform is chosen at lowering.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
from jax import lax

_LAYOUT = ("NHWC", "HWIO", "NHWC")
# cuDNN's tensor-core kernels need channels in multiples of 16 bytes, which are 8 in bfloat16.
# Otherwise cuDNN pads them in a separate pass before every call.
_CUDA_CHANNELS = 8


@cache
def cpu_compiler_options() -> dict[str, str] | None:
    """Returns options for `jax.jit` that make the training step faster on a CPU, or None.

    jaxlib 0.10 uses YNNPACK for some operations. Its convolutions are two to ten times slower than
    XLA's, and its reductions five times faster, so this option selects only the reductions. It is
    experimental: a jaxlib without it fails to compile.
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

    `padding` is the number of zeros on each of the four sides: 1 ('same') or 2 ('full').
    `precision` is that of products on accelerators; a CPU does not round them.
    """
    arrays = x_NHWC, kernel_33IO
    return _by_platform(
        arrays, padding, precision, cpu=_cpu_conv, cuda=_cuda_conv, default=plain_conv
    )


def mean_of_full_conv(x_NHWC, kernel_33IO):
    """Computes the mean of a 'full' convolution's output, (O,), float32, without convolving.

    With padding 2 every pixel is multiplied by every tap of the kernel exactly once, so

      mean(conv(x, W)) = (mean(x) @ W.sum(taps)) * (H * W) / ((H + 2) * (W + 2)).
    """
    _, height, width, _ = x_NHWC.shape
    mean_I = x_NHWC.astype(jnp.float32).mean(axis=(0, 1, 2))
    kernel_sum_IO = kernel_33IO.astype(jnp.float32).sum(axis=(0, 1))
    share = height * width / ((height + 2) * (width + 2))
    return jnp.dot(mean_I, kernel_sum_IO, precision=lax.Precision.HIGHEST) * share


def plain_conv(x, kernel, padding, precision):
    """The same as `conv3x3`, with XLA's gradients."""
    pads = ((padding, padding), (padding, padding))
    return lax.conv_general_dilated(
        x, kernel, (1, 1), pads, dimension_numbers=_LAYOUT, precision=precision
    )


def _conv_forward(x, kernel, padding, precision):
    return conv3x3(x, kernel, padding, precision), (x, kernel)


def _conv_backward(padding, precision, residuals, grad):
    # Two calls, so that XLA can drop the unused gradient of the first layer's input.
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
    """`plain_conv` as a 'same' convolution of the padded input."""
    channels = kernel.shape[3]
    kernel = _pad_channels(kernel, (2, 3))
    return plain_conv(_pad_for_cuda(x, padding), kernel, 1, precision)[..., :channels]


def _cuda_input_gradient(x, kernel, grad, padding, precision):
    channels = x.shape[3]
    x, kernel, grad = _pad_channels(x), _pad_channels(kernel, (2, 3)), _pad_channels(grad)
    return _xla_input_gradient(x, kernel, grad, padding, precision)[..., :channels]


def _cuda_kernel_gradient(x, kernel, grad, padding, precision):
    """The gradient of `_cuda_conv`'s 'same' convolution.

    XLA maps it to cuDNN's backward-filter call, but turns the gradient of a 'full' convolution into
    a convolution with a filter as large as the image, which takes ten times as long.
    """
    _, _, inputs, outputs = kernel.shape
    x, kernel, grad = _pad_for_cuda(x, padding), _pad_channels(kernel, (2, 3)), _pad_channels(grad)
    return _xla_kernel_gradient(x, kernel, grad, 1, precision)[:, :, :inputs, :outputs]


def _pad_for_cuda(x, padding):
    """Pads the channels, and the images by `padding` - 1 on each side."""
    margin = (padding - 1, padding - 1)
    # Without the barrier XLA would merge the padding into the convolution. XLA computes this
    # expression once for the forward and the backward pass.
    return lax.optimization_barrier(jnp.pad(_pad_channels(x), ((0, 0), margin, margin, (0, 0))))


def _pad_channels(array, axes=(3,)):
    """Pads `axes` with zeros to a multiple of `_CUDA_CHANNELS`."""
    missing = [-size % _CUDA_CHANNELS if i in axes else 0 for i, size in enumerate(array.shape)]
    return jnp.pad(array, [(0, count) for count in missing])


def _tpu_kernel_gradient(x, kernel, grad, padding, precision):
    """Convolves the output's gradient with the images, and flips the result.

    XLA makes the smaller operand the filter. If it had to swap the operands itself, it would flip
    the output's whole gradient in memory; this flips only the 3x3 result.
    """
    # The examples, over which the gradient is summed, take the place of input channels.
    spec = lax.ConvDimensionNumbers((3, 0, 1, 2), (3, 0, 1, 2), (2, 3, 0, 1))
    pads = ((2 - padding, 2 - padding), (2 - padding, 2 - padding))
    flipped_33OI = lax.conv_general_dilated(
        grad, x, (1, 1), pads, dimension_numbers=spec, precision=precision
    )
    return flipped_33OI[::-1, ::-1].swapaxes(2, 3)


def _cpu_conv(x, kernel, padding, precision):
    """`plain_conv` on a CPU. If that is faster, it computes two neighbouring columns at a time.

    Both are output channels of one 3x4 convolution with stride 2. A quarter of its products are
    with zeros, but 40 channels use the CPU's vector registers better than 20.
    """
    out_channels = kernel.shape[3]
    out_width = x.shape[2] + 2 * padding - 2
    if out_channels > 32 or out_width % 2:
        return plain_conv(x, kernel, padding, precision)
    left, right = (jnp.pad(kernel, ((0, 0), side, (0, 0), (0, 0))) for side in ((0, 1), (1, 0)))
    pair_kernel = jnp.stack([left, right], axis=3).reshape(3, 4, -1, 2 * out_channels)
    pads = ((padding, padding), (padding, padding))
    y = lax.conv_general_dilated(x, pair_kernel, (1, 2), pads, dimension_numbers=_LAYOUT)
    return y.reshape(*y.shape[:2], out_width, out_channels)


def _cpu_input_gradient(x, kernel, grad, padding, precision):
    return _cpu_conv(grad, kernel[::-1, ::-1].swapaxes(2, 3), 2 - padding, precision)


def _cpu_kernel_gradient(x, kernel, grad, padding, precision):
    """Sums matrix products of unrolled windows, over a few examples at a time.

    On two cores it was fastest to take two groups of examples at a time, one for each core, with
    about 9,000 pixels each, whose windows fit into a core's cache.
    """
    count, height, width, in_channels = x.shape
    product = _unroll_input if in_channels < 8 else _unroll_both
    max_group = 2 * max(1, min(25, 9100 // (height * width)))
    divisors = [n for n in range(1, max_group + 1) if count % n == 0]
    group_size = max(divisors, key=lambda n: (n % 2 == 0, n))

    def add_examples(i, total):
        # Sliced here: `lax.scan` would copy both arrays into another layout first.
        examples = [lax.dynamic_slice_in_dim(a, i * group_size, group_size) for a in (x, grad)]
        return total + product(padding, *examples)

    total = jnp.zeros((3, 3, in_channels, grad.shape[-1]), jnp.float32)
    return lax.fori_loop(0, count // group_size, add_examples, total).astype(x.dtype)


def _unroll_input(padding, x_NHWI, grad_NHWO):
    """Multiplies (12 I, P) by (P, 2 O): windows of 3x4 input pixels, and two gradient pixels.

    It is the fastest for the three channels of an image. As in `_cpu_conv`, a quarter of the
    products is not needed.
    """
    _, height, width, _ = grad_NHWO.shape
    pairs = -(-width // 2)
    right = 2 * pairs + 2 - padding - x_NHWI.shape[2]
    x = jnp.pad(x_NHWI, ((0, 0), (padding, padding), (padding, right), (0, 0)))
    grad = jnp.pad(grad_NHWO, ((0, 0), (0, 0), (0, 2 * pairs - width), (0, 0)))
    x, grad = _group_columns(x, 2), _group_columns(grad, 2)
    windows = [x[:, a : a + height, b : b + pairs] for a in range(3) for b in range(2)]
    # For gradient pixel j of a pair, tap b is column j + b of the window's four.
    products = _product(jnp.concatenate(windows, axis=3), grad)
    products = products.reshape(3, 4, x_NHWI.shape[3], 2, -1)
    return jnp.stack([products[:, b, :, 0] + products[:, b + 1, :, 1] for b in range(3)], axis=1)


def _unroll_both(padding, x_NHWI, grad_NHWO):
    """Multiplies (3 I, P) by (P, 3 O): three rows of the input, three columns of the gradient.

    Tap (a, b) multiplies row h + a - padding of the input for output row h, and column w for output
    column w + padding - b. With few channels, two columns are merged to one with twice as many
    channels; then there are four columns of the gradient.
    """
    _, _, width, in_channels = x_NHWI.shape
    _, height, out_width, out_channels = grad_NHWO.shape
    size = 2 if in_channels <= 32 else 1
    groups, shifts = -(-width // size), 2 // size + 1
    x = jnp.pad(x_NHWI, ((0, 0), (padding, padding), (0, groups * size - width), (0, 0)))
    left = 2 - padding  # a 'same' convolution's output has one column less on each side
    right = (groups + shifts - 1) * size - left - out_width
    grad = jnp.pad(grad_NHWO, ((0, 0), (0, 0), (left, right), (0, 0)))
    x, grad = _group_columns(x, size), _group_columns(grad, size)
    rows = jnp.concatenate([x[:, a : a + height] for a in range(3)], axis=3)
    columns = jnp.concatenate([grad[:, :, s : s + groups] for s in range(shifts)], axis=3)
    products = _product(rows, columns).reshape(3, size, in_channels, size + 2, out_channels)
    # Tap b of column j of a group is in the gradient's column j + 2 - b.
    return jnp.stack(
        [sum(products[:, j, :, j + 2 - b] for j in range(size)) for b in range(3)], axis=1
    )


def _group_columns(x_NHWC, size: int):
    """Merges `size` neighbouring columns into one with `size` times the channels."""
    *rest, columns, channels = x_NHWC.shape
    return x_NHWC.reshape(*rest, columns // size, size * channels)


def _product(left_NHWA, right_NHWB):
    """The sum over all pixels of the products of their channels: (A, B), float32."""
    # Split into two halves, which XLA computes in parallel.
    halves = 2 if len(left_NHWA) % 2 == 0 else 1
    left, right = (a.reshape(halves, -1, a.shape[-1]) for a in (left_NHWA, right_NHWB))
    dimension_numbers = (((1,), (1,)), ((0,), (0,)))
    products = lax.dot_general(left, right, dimension_numbers, preferred_element_type=jnp.float32)
    return products.sum(axis=0)
