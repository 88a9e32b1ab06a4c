"""The steps: what they compute, and that they lower for every platform."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export, lax

from bn_vgg.models import DTYPES, make_model
from bn_vgg.models.norms import NORMALIZERS
from bn_vgg.optimizer import rmsprop
from bn_vgg.steps import (
    init_state,
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
NORM_KWARGS = {"ghost": {"ghost_size": 2}, "group": {"num_groups": 2}}


def build(norm="mean_only", **changes):
    """A small network of the recipe: model, optimizer, state."""
    settings = default.get_config().model.to_dict() | {
        "norm": norm, "features": (4, 4, 6, 6), "hidden_units": 8,
        "norm_kwargs": NORM_KWARGS.get(norm, {}), **changes,
    }  # fmt: skip
    model = make_model(**settings)
    optimizer = rmsprop(**default.get_config().optimizer)
    images = to_intensities(train_batch()["crops"][:, 0])
    init = jax.jit(functools.partial(init_state, model, optimizer))
    return model, optimizer, init(jax.random.key(0), images)


def apply(model, state, images):
    logits = jax.jit(lambda variables, x: model.apply(variables, to_intensities(x), train=False))
    return logits(state.variables, images)


def train_batch(count=6, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "crops": rng.integers(0, 256, (count, 1, SIDE, SIDE, 3), np.uint8),
        "label": rng.integers(0, 2, count, np.int32),
        "position": np.arange(count, dtype=np.int32),
    }


def eval_batch(count=6, num_crops=5, masked=0):
    rng = np.random.default_rng(1)
    mask = np.ones(count, np.float32)
    mask[count - masked :] = 0
    crops = rng.integers(0, 256, (count, num_crops, SIDE, SIDE, 3), np.uint8)
    label = rng.integers(0, 2, count, np.int32)
    return {"crops": crops, "label": label, "mask": mask, "compared": mask}


def test_one_step_computes_the_numbers_that_it_always_did():
    """The recipe's step with dropout: recorded by this code on a CPU with JAX 0.10.2."""
    model, optimizer, state = build("full", dropout_rate=0.5)
    state, metrics = jax.jit(make_train_step(model, optimizer))(
        state, train_batch(), jax.random.key(0)
    )
    found = {
        "loss": metrics.compute()["loss"],
        "gradient_norm": metrics.compute()["gradient_norm"],
        "parameters": optax.tree.norm(state.params),
        "statistics": optax.tree.norm(state.batch_stats),
    }
    golden = {"loss": 0, "gradient_norm": 0, "parameters": 0, "statistics": 0}
    assert {name: float(x) for name, x in found.items()} == pytest.approx(golden, rel=1e-4), (
        "the training step computes other numbers than before: if that is meant, put these into "
        "`golden`, raise the version and say in the README that runs differ from earlier ones"
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", NORMALIZERS)
def test_a_train_step_learns_its_batch_and_keeps_float32(norm, dtype):
    model, optimizer, state = build(norm, dtype=dtype)
    step = jax.jit(make_train_step(model, optimizer))
    losses = []
    for _ in range(40):
        state, metrics = step(state, train_batch(), jax.random.key(0))
        losses.append(float(metrics.compute()["loss"]))
    assert int(state.step) == 40
    kept = jax.tree.leaves((state.params, state.batch_stats, state.opt_state, metrics.compute()))
    assert {leaf.dtype for leaf in kept} <= {np.dtype(np.float32), np.dtype(np.int32)}
    assert np.mean(losses[-5:]) < 0.7 * losses[0]


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_the_key_matters_with_dropout_alone(rate):
    model, optimizer, state = build(dropout_rate=rate)
    step = jax.jit(make_train_step(model, optimizer))
    first, second = (
        step(state, train_batch(), jax.random.key(key))[1].compute()["loss"] for key in (0, 1)
    )
    assert (first != second) == (rate > 0)


def test_train_metrics_are_the_batchs_own():
    model, optimizer, state = build("none")
    batch = train_batch()
    _, metrics = jax.jit(make_train_step(model, optimizer))(state, batch, jax.random.key(0))
    logits = apply(model, state, batch["crops"][:, 0])
    values = metrics.compute()
    expected = np.mean(np.argmax(logits, -1) != batch["label"])
    assert float(values["error_rate"]) == pytest.approx(expected)
    log_p = jax.nn.log_softmax(logits)[np.arange(6), batch["label"]]
    assert float(values["loss"]) == pytest.approx(-float(log_p.mean()), rel=1e-5)
    assert int(values["first_non_finite"]) == -1


def test_five_crop_evaluation_against_numpy():
    """The mean of the crops' softmax outputs, for a prediction likewise; padding does not count."""
    model, _, state = build()
    batch = eval_batch(count=6, masked=2)
    found, moments = jax.jit(make_eval_step(model))(state.variables, batch)
    each = [jax.nn.softmax(apply(model, state, batch["crops"][:, k])) for k in range(5)]
    probabilities = np.mean(each, axis=0)
    predicted = jax.jit(make_predict_step(model))(state.variables, batch["crops"])
    np.testing.assert_allclose(predicted, probabilities, rtol=1e-5, atol=1e-7)
    label, values = batch["label"][:4], found.compute()
    expected = {
        "loss": -np.log(probabilities[range(4), label]).mean(),
        "error_rate": np.mean(probabilities[:4].argmax(-1) != label),
        "error_rate_running": np.mean(each[-1][:4].argmax(-1) != label),
    }
    assert {k: float(x) for k, x in values.items()} == pytest.approx(expected, rel=1e-5)
    short = {key: value[:4] for key, value in batch.items()}
    _, without = jax.jit(make_eval_step(model))(state.variables, short)
    for layer, of_layer in without.items():
        np.testing.assert_allclose(moments[layer].mean, of_layer.mean, rtol=1e-5)
        np.testing.assert_allclose(moments[layer].squares, of_layer.squares, rtol=1e-5)


def lower(model, platforms, evaluate=False):
    """The step of the published batch of 100 crops of 128x128; needs none of the devices."""

    def of(*shape, dtype):
        return jax.ShapeDtypeStruct(shape, dtype)

    optimizer = rmsprop(**default.get_config().optimizer)
    image = jnp.zeros((1, 128, 128, 3))
    state = jax.eval_shape(lambda: init_state(model, optimizer, jax.random.key(0), image))
    crops = of(100, 5 if evaluate else 1, 128, 128, 3, dtype=np.uint8)
    numbers = {"label": np.int32, "position": np.int32, "mask": np.float32, "compared": np.float32}
    batch = {"crops": crops} | {key: of(100, dtype=dtype) for key, dtype in numbers.items()}
    step = make_train_step(model, optimizer)
    if evaluate:
        lowered = export.export(jax.jit(make_eval_step(model)), platforms=platforms)
        return lowered(state.variables, batch)
    lowered = export.export(
        jax.jit(lambda state, batch, seed: step(state, batch, jax.random.key(seed))),
        platforms=platforms,
    )
    return lowered(state, batch, of(dtype=np.int32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", NORMALIZERS)
def test_steps_lower_for_cpu_cuda_and_tpu(norm, dtype):
    settings = {"norm": norm, "dtype": dtype, "dropout_rate": 0.5}
    model = make_model(**default.get_config().model.to_dict() | settings)
    platforms = ("cpu", "cuda", "tpu")
    for evaluate in (False, True):
        lowered = lower(model, platforms, evaluate)
        assert lowered.platforms == platforms
        assert "stablehlo.convolution" in lowered.mlir_module()


@pytest.mark.parametrize(
    ("changes", "told"),
    [({}, "HIGHEST"), ({"precision": "tensorfloat32"}, "HIGH"), ({"dtype": "bfloat16"}, "DEFAULT")],
)
def test_accelerators_are_told_the_precision(changes, told):
    """They round float32 factors unless they are: TPUs to bfloat16, GPUs to TF32."""
    model = make_model(**default.get_config().model.to_dict() | {"norm": "full"} | changes)
    products = [
        line for line in lower(model, ["cuda"]).mlir_module().splitlines()
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
        _, expected = passed.apply(
            state.variables, to_intensities(train_batch()["crops"][:, 0]), train=True,
            positions_N=np.arange(6), rngs={"dropout": jax.random.key(0)}, mutable=["batch_stats"],
        )  # fmt: skip
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            after.batch_stats, expected["batch_stats"],
        )  # fmt: skip

    @pytest.mark.parametrize("rate", [0.5, 0.0])
    def test_changes_statistics_alone_and_only_with_dropout(self, rate):
        (_, _, clean, loss), (_, _, noisy, other_loss) = (
            self.stats(stats_pass, rate) for stats_pass in ("clean", "dropout")
        )
        assert loss == other_loss
        jax.tree.map(np.testing.assert_array_equal, clean.params, noisy.params)
        kept, other = (s.batch_stats["block3"]["norm"]["var"] for s in (clean, noisy))
        assert ((kept != other) if rate else (kept == other)).all()
