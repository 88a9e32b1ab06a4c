"""The steps: masks, windows and metrics; and that they lower for every platform."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from bn_vgg.models import DTYPES, make_model
from bn_vgg.models.norms import NORMALIZERS
from bn_vgg.optimizer import rmsprop
from bn_vgg.state import init_state, jit_init
from bn_vgg.steps import (
    make_eval_step,
    make_loss,
    make_predict_step,
    make_train_step,
    to_intensities,
)
from configs import default

pytestmark = pytest.mark.usefixtures("quick_compilation")

SIDE = 16
# Where the defaults are too large for these networks and batches.
NORM_KWARGS = {"ghost": {"ghost_size": 3}, "group": {"num_groups": 2}}


def build(norm="mean_only", dtype="float32", dropout_rate=0.0, features=(4, 4, 6, 6), **changes):
    settings = default.get_config().model.to_dict() | {
        "norm": norm, "dtype": dtype, "dropout_rate": dropout_rate, "features": features,
        "hidden_units": 8, "norm_kwargs": NORM_KWARGS.get(norm, {}), **changes,
    }  # fmt: skip
    model = make_model(**settings)
    optimizer = rmsprop(**default.get_config().optimizer)
    images = to_intensities(train_batch()["windows_NWHWC"][:, 0])
    state = jit_init(model, optimizer)(jax.random.key(0), images)
    return model, optimizer, state


def apply(model, state, images):
    logits = jax.jit(lambda variables, x: model.apply(variables, x / jnp.float32(255), train=False))
    return logits(state.variables, images)


def train_batch(count=6):
    rng = np.random.default_rng(0)
    return {
        "windows_NWHWC": rng.integers(0, 256, (count, 1, SIDE, SIDE, 3), np.uint8),
        "labels_N": rng.integers(0, 2, count, np.int32),
        "positions_N": np.arange(count, dtype=np.int32),
    }


def eval_batch(count=6, num_windows=5, masked=0):
    rng = np.random.default_rng(1)
    mask = np.ones(count, np.float32)
    mask[count - masked :] = 0
    return {
        "windows_NWHWC": rng.integers(0, 256, (count, num_windows, SIDE, SIDE, 3), np.uint8),
        "labels_N": rng.integers(0, 2, count, np.int32),
        "mask_N": mask,
        "compared_N": mask,
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", NORMALIZERS)
def test_a_train_step_learns_its_batch_and_keeps_float32(norm, dtype):
    model, optimizer, state = build(norm, dtype)
    step = jax.jit(make_train_step(model, optimizer))
    losses = []
    for _ in range(40):
        state, metrics = step(state, train_batch(), jax.random.key(0))
        losses.append(float(metrics.compute()["loss"]))
    assert int(state.step) == 40
    kept = jax.tree.leaves((state.params, state.batch_stats, state.opt_state, metrics.compute()))
    assert {leaf.dtype for leaf in kept} <= {np.dtype(np.float32), np.dtype(np.int32)}
    assert np.mean(losses[-5:]) < 0.7 * losses[0]


def test_dropout_rng_matters_only_with_dropout():
    for rate, expected in ((0.0, False), (0.5, True)):
        model, optimizer, state = build(dropout_rate=rate)
        step = jax.jit(make_train_step(model, optimizer))
        first, second = (
            step(state, train_batch(), jax.random.key(key))[1].compute()["loss"] for key in (0, 1)
        )
        assert (first != second) == expected


def test_train_metrics_are_the_batchs_own():
    model, optimizer, state = build("none")
    batch = train_batch()
    _, metrics = jax.jit(make_train_step(model, optimizer))(state, batch, jax.random.key(0))
    logits = apply(model, state, batch["windows_NWHWC"][:, 0])
    expected = np.mean(np.argmax(logits, -1) != batch["labels_N"])
    values = metrics.compute()
    assert float(values["error_rate"]) == pytest.approx(expected)
    log_p = jax.nn.log_softmax(logits)[np.arange(6), batch["labels_N"]]
    assert float(values["loss"]) == pytest.approx(-float(log_p.mean()), rel=1e-5)
    assert int(values["first_non_finite"][0]) == -1


def test_prediction_is_the_mean_of_the_windows_softmax():
    model, _, state = build()
    windows = eval_batch()["windows_NWHWC"]
    found = jax.jit(make_predict_step(model))(state, windows)
    each = [jax.nn.softmax(apply(model, state, windows[:, w])) for w in range(5)]
    np.testing.assert_allclose(found, np.mean(each, axis=0), rtol=1e-5, atol=1e-7)


def test_padding_does_not_count():
    model, _, state = build()
    step = jax.jit(make_eval_step(model))
    full = eval_batch(count=6, masked=2)
    short = {key: value[:4] for key, value in full.items()}
    (with_padding, padded_moments), (without, moments) = (step(state, b) for b in (full, short))
    for name, value in without.compute().items():
        assert float(with_padding.compute()[name]) == pytest.approx(float(value), rel=1e-6)
    for layer, of_layer in moments.items():
        np.testing.assert_allclose(padded_moments[layer].mean, of_layer.mean, rtol=1e-5)
        np.testing.assert_allclose(padded_moments[layer].squares, of_layer.squares, rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", NORMALIZERS)
def test_steps_lower_for_cpu_cuda_and_tpu(norm, dtype):
    """The published network and batch; lowering needs none of these devices."""
    settings = default.get_config().model.to_dict() | {
        "norm": norm, "dtype": dtype, "dropout_rate": 0.5,
    }  # fmt: skip
    model = make_model(**settings)
    optimizer = rmsprop(**default.get_config().optimizer)
    image = jnp.zeros((1, 128, 128, 3))
    state = jax.eval_shape(lambda: init_state(model, optimizer, jax.random.key(0), image))

    def of(*shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype)

    batch = {
        "windows_NWHWC": of(100, 1, 128, 128, 3, dtype=np.uint8),
        "labels_N": of(100, dtype=np.int32),
        "positions_N": of(100, dtype=np.int32),
    }
    evaluated = {
        "windows_NWHWC": of(100, 5, 128, 128, 3, dtype=np.uint8),
        "labels_N": of(100, dtype=np.int32),
        "mask_N": of(100, dtype=np.float32),
        "compared_N": of(100, dtype=np.float32),
    }
    train_step = make_train_step(model, optimizer)
    platforms = ("cpu", "cuda", "tpu")
    trained = export.export(
        jax.jit(lambda state, batch, seed: train_step(state, batch, jax.random.key(seed))),
        platforms=platforms,
    )(state, batch, of(dtype=np.int32))
    assert trained.platforms == platforms
    assert "stablehlo.convolution" in trained.mlir_module()
    lowered = export.export(jax.jit(make_eval_step(model)), platforms=platforms)(state, evaluated)
    assert lowered.platforms == platforms


@pytest.mark.parametrize(
    ("changes", "told"),
    [({}, "HIGHEST"), ({"precision": "tensorfloat32"}, "HIGH"), ({"dtype": "bfloat16"}, "DEFAULT")],
)
def test_accelerators_are_told_the_precision(changes, told):
    """They round float32 factors unless they are: TPUs to bfloat16, GPUs to TF32."""
    settings = default.get_config().model.to_dict() | {"norm": "full"} | changes
    model, optimizer = make_model(**settings), rmsprop(**default.get_config().optimizer)
    image = jnp.zeros((1, 128, 128, 3))
    state = jax.eval_shape(lambda: init_state(model, optimizer, jax.random.key(0), image))
    batch = {
        "windows_NWHWC": jax.ShapeDtypeStruct((100, 1, 128, 128, 3), np.uint8),
        "labels_N": jax.ShapeDtypeStruct((100,), np.int32),
        "positions_N": jax.ShapeDtypeStruct((100,), np.int32),
    }
    step = make_train_step(model, optimizer)
    lowered = export.export(
        jax.jit(lambda state, batch, seed: step(state, batch, jax.random.key(seed))),
        platforms=["cuda"],
    )(state, batch, jax.ShapeDtypeStruct((), np.int32))
    products = [
        line for line in lowered.mlir_module().splitlines()
        if "stablehlo.convolution" in line or "stablehlo.dot_general" in line
    ]  # fmt: skip
    # Of eight convolutions and two dense layers, and gradients by input and by kernel, without
    # the one by the images.
    assert len(products) >= 3 * 10 - 1
    found = {re.search(r"precision.*?(HIGHEST|HIGH|DEFAULT)", line) for line in products}
    assert {match[1] if match else "DEFAULT" for match in found} == {told}


@pytest.mark.parametrize("norm", ["none", "mean_only", "full"])
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_a_step_by_an_accelerators_formulas_equals_a_plain_one(platform, norm, monkeypatch):
    """Gradients and statistics, on a CPU; a GPU's with 24 and 56 channels for 20 and 50."""
    model, _, state = build(norm, features=(20, 20, 50, 50), norm_decay=0.0)

    def step_by(branch):
        def choose(*args, default, **by):
            return by.get(branch, default)(*args)

        monkeypatch.setattr(lax, "platform_dependent", choose)
        loss = jax.value_and_grad(make_loss(model), has_aux=True)
        (_, (_, updated)), gradients = jax.jit(loss)(
            state.params, state.batch_stats, train_batch(), jax.random.key(0)
        )
        return {"gradients": gradients, **updated}

    ours, plain = (jax.device_get(step_by(branch)) for branch in (platform, "plain"))
    for path, expected in jax.tree_util.tree_leaves_with_path(plain):
        found = functools.reduce(lambda tree, key: tree[key.key], path, ours)
        assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected), path


class TestStatsPass:
    """Where running statistics come from. With decay 0 they are one pass's own."""

    def stats(self, stats_pass, dropout_rate, norm="full"):
        model, optimizer, state = build(
            norm, dropout_rate=dropout_rate, stats_pass=stats_pass, norm_decay=0.0
        )
        step = jax.jit(make_train_step(model, optimizer))
        after, metrics = step(state, train_batch(), jax.random.key(0))
        return model, state, after, float(metrics.compute()["loss"])

    @pytest.mark.parametrize("norm", ["mean_only", "full", "weight_norm_mean_only"])
    @pytest.mark.parametrize("stats_pass", ["clean", "dropout"])
    def test_is_the_pass_it_says(self, stats_pass, norm):
        model, state, after, _ = self.stats(stats_pass, 0.5, norm)
        passed = model.clone(dropout_rate=0.0) if stats_pass == "clean" else model
        images = train_batch()["windows_NWHWC"][:, 0] / np.float32(255)
        _, expected = passed.apply(
            state.variables, images, train=True, positions_N=np.arange(6),
            rngs={"dropout": jax.random.key(0)}, mutable=["batch_stats"],
        )  # fmt: skip
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            after.batch_stats, expected["batch_stats"],
        )  # fmt: skip

    def test_changes_statistics_alone_and_only_with_dropout(self):
        for rate in (0.5, 0.0):
            (_, _, clean, loss), (_, _, noisy, other_loss) = (
                self.stats(stats_pass, rate) for stats_pass in ("clean", "dropout")
            )
            assert loss == other_loss
            jax.tree.map(np.testing.assert_array_equal, clean.params, noisy.params)
            kept, other = (s.batch_stats["block3"]["norm"]["var"] for s in (clean, noisy))
            assert (kept != other).all() == (rate > 0)
            assert (kept == other).all() == (rate == 0)

    def test_without_dropout_there_is_no_second_pass(self):
        texts = []
        for stats_pass in ("clean", "dropout"):
            model, optimizer, state = build("full", stats_pass=stats_pass)
            step = make_train_step(model, optimizer)
            jaxpr = jax.make_jaxpr(step)(state, train_batch(), jax.random.key(0))
            texts.append(len(jaxpr.eqns))
        assert texts[0] == texts[1]
