"""The convolution against a loop in float64, and its fast gradients against XLA's own."""

from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bn_vgg.models import convolution
from bn_vgg.models.convolution import conv3x3, mean_of_full_conv

HIGHEST = jax.lax.Precision.HIGHEST


def reference(x, kernel, padding):
    """Cross-correlation by definition, float64."""
    x = np.pad(np.float64(x), ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))
    return np.einsum("nhwiab,abio->nhwo", windows, np.float64(kernel))


def reference_gradients(x, kernel, padding, grad):
    """Of sum(y * grad): it is linear in the images and in the kernel, so their basis will do."""
    of_x, of_kernel = np.zeros(x.shape), np.zeros(kernel.shape)
    for result, value in ((of_x, x), (of_kernel, kernel)):
        for index in np.ndindex(value.shape):
            one = np.zeros(value.shape)
            one[index] = 1
            y = reference(one, kernel, padding) if value is x else reference(x, one, padding)
            result[index] = np.sum(y * grad)
    return of_x, of_kernel


@settings(max_examples=12, deadline=None)
@given(
    n=st.integers(1, 3),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.sampled_from([1, 2]),
    seed=st.integers(0, 2**32 - 1),
)
def test_forward_and_gradients_equal_float64(n, height, width, channels, padding, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, height, width, channels[0])).astype(np.float32)
    kernel = rng.normal(size=(3, 3, *channels)).astype(np.float32)
    y, pullback = jax.vjp(lambda x, kernel: conv3x3(x, kernel, padding, HIGHEST), x, kernel)
    expected = reference(x, kernel, padding)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    grad = rng.normal(size=expected.shape).astype(np.float32)
    grad_x, grad_kernel = pullback(jnp.asarray(grad))
    expected_x, expected_kernel = reference_gradients(x, kernel, padding, grad)
    np.testing.assert_allclose(grad_x, expected_x, rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(grad_kernel, expected_kernel, rtol=1e-5, atol=2e-5)


SHAPES = [
    (6, 13, 3),  # an image's channels: the input alone is unrolled
    (6, 13, 20),  # few channels: columns in pairs; all six together
    (6, 13, 40),  # many: columns by themselves
    (7, 40, 20),  # all seven together, which have no halves
    (3, 80, 40),  # one by one
]


@pytest.mark.parametrize(
    ("count", "side", "channels", "padding", "dtype"),
    [(*shape, padding, jnp.float32) for shape in SHAPES for padding in (1, 2)]
    + [(*shape, 2, jnp.bfloat16) for shape in SHAPES[1:3]],
)
def test_cpu_gradients_equal_xlas(count, side, channels, padding, dtype):
    arguments = (*random_layer(count, side, channels, padding, dtype), padding, HIGHEST)
    for of in ("input", "kernel"):
        check_close(
            *(getattr(convolution, f"_{by}_{of}_gradient")(*arguments) for by in ("cpu", "xla"))
        )


@pytest.mark.parametrize(
    ("padding", "dtype"), [(1, jnp.float32), (2, jnp.float32), (2, jnp.bfloat16)]
)
@pytest.mark.parametrize(("side", "channels"), [(13, 3), (13, 20), (12, 50), (9, 8)])
def test_the_accelerators_formulas_equal_the_plain_ones(side, channels, padding, dtype):
    """On a CPU: they pad channels and images, which changes no sum."""
    x, kernel, grad = random_layer(3, side, channels, padding, dtype)
    check_close(
        convolution._cuda_conv(x, kernel, padding, HIGHEST),
        convolution.plain_conv(x, kernel, padding, HIGHEST),
    )
    arguments = (x, kernel, grad, padding, HIGHEST)
    check_close(
        convolution._cuda_input_gradient(*arguments), convolution._xla_input_gradient(*arguments)
    )
    expected = convolution._xla_kernel_gradient(*arguments)
    check_close(convolution._cuda_kernel_gradient(*arguments), expected)
    check_close(convolution._tpu_kernel_gradient(*arguments), expected)


def random_layer(count, side, channels, padding, dtype):
    """Images, a kernel and a gradient of the convolution's result."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(count, side, side - 2, channels)), dtype)
    kernel = jnp.asarray(rng.normal(size=(3, 3, channels, 50)), dtype)
    grad_shape = (count, side + 2 * padding - 2, side + 2 * padding - 4, 50)
    return x, kernel, jnp.asarray(rng.normal(size=grad_shape), dtype)


def check_close(ours, xlas):
    tolerance = 1e-5 if xlas.dtype == jnp.float32 else 2e-2  # bfloat16 keeps 8 bits
    assert ours.dtype == xlas.dtype
    assert ours.shape == xlas.shape
    ours, xlas = ours.astype(jnp.float32), xlas.astype(jnp.float32)
    assert jnp.abs(ours - xlas).max() <= tolerance * jnp.abs(xlas).max()


def test_the_compiler_option_is_known_or_left_out(monkeypatch):
    """With this jaxlib or any other, what comes back can be compiled with."""
    convolution.cpu_compiler_options.cache_clear()
    options = convolution.cpu_compiler_options()
    assert jax.jit(lambda x: x * 2, compiler_options=options)(3) == 6
    unknown = jax.errors.JaxRuntimeError("INVALID_ARGUMENT: No such compile option")
    monkeypatch.setattr(jax, "jit", Mock(side_effect=unknown))
    convolution.cpu_compiler_options.cache_clear()
    assert convolution.cpu_compiler_options() is None
    convolution.cpu_compiler_options.cache_clear()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (9, 4), (12, 12)])
def test_the_mean_known_beforehand_is_the_means_of_the_result(height, width):
    rng = np.random.default_rng(0)
    x = rng.normal(0.5, 1, size=(3, height, width, 4)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 4, 6)).astype(np.float32)
    weights = rng.normal(size=6).astype(np.float32)

    def gradients(mean):
        return jax.grad(lambda x, kernel: jnp.dot(mean(x, kernel), weights), argnums=(0, 1))(
            x, kernel
        )

    expected = reference(x, kernel, 2).mean((0, 1, 2))
    np.testing.assert_allclose(mean_of_full_conv(x, kernel), expected, rtol=1e-5, atol=1e-6)
    known = gradients(mean_of_full_conv)
    taken = gradients(lambda x, kernel: conv3x3(x, kernel, 2, HIGHEST).mean((0, 1, 2)))
    for a, b in zip(known, taken, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
