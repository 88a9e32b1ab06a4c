"""The steps: what they compute, and that they lower for every platform."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export

from bn_vgg.models import make_model
from bn_vgg.models.layers import layer_activations
from bn_vgg.models.norms import NORMALIZERS
from bn_vgg.optimizer import make_optimizer, rmsprop
from bn_vgg.steps import (
    init_state,
    make_eval_step,
    make_train_step,
    mean_over_devices,
    predict,
    to_intensities,
)
from configs import default
from tests.runs import difference

pytestmark = pytest.mark.usefixtures("quick_compilation")

SIDE = 16
close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
# Where the defaults are too large for these networks and batches.
NORM_KWARGS = {"ghost": {"ghost_size": 2}, "group": {"num_groups": 2}}


def build(norm="mean_only", **changes):
    """A small network of the recipe: model, optimizer, state."""
    settings = default.get_config().model.to_dict() | {
        "norm": norm, "features": (4, 6), "hidden_units": 8,
        "norm_kwargs": NORM_KWARGS.get(norm, {}), **changes,
    }  # fmt: skip
    model = make_model(**settings)
    optimizer = make_optimizer(default.get_config().to_dict(), 200)
    images = to_intensities(train_batch()["crops"][:, 0])
    init = jax.jit(partial(init_state, model, optimizer))
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
    return {"crops": crops, "label": label, "mask": mask}


def test_one_step_computes_the_numbers_that_it_always_did():
    """The recipe's step with dropout: recorded by this code on a CPU with JAX 0.10.2."""
    model, optimizer, state = build("full", dropout_rate=0.5)
    step = jax.jit(make_train_step(model, optimizer))
    state, metrics = step(state, train_batch(), jax.random.key(0))
    found = {
        "loss": metrics.compute()["loss"],
        "gradient_norm": metrics.compute()["gradient_norm"],
        "parameters": optax.tree.norm(state.params),
        "statistics": optax.tree.norm(state.batch_stats),
    }
    golden = {
        "loss": 1.072146, "gradient_norm": 11.65783, "parameters": 6.050076, "statistics": 3.142991,
    }  # fmt: skip
    assert {name: float(x) for name, x in found.items()} == pytest.approx(golden, rel=1e-4), (
        "the training step computes other numbers than before: if that is meant, put these into "
        "`golden`, raise the version and say in the README that runs differ from earlier ones"
    )


@pytest.mark.parametrize(
    ("norm", "dtype"),
    [(norm, "bfloat16" if norm in ("mean_only", "full") else "float32") for norm in NORMALIZERS],
)
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


@pytest.mark.parametrize("norm", ["full", "weight_norm_mean_only"])
def test_four_parts_of_a_batch_take_the_same_step_as_the_whole(norm):
    """With dropout: parameters, statistics and mean squares, by gradient descent.

    To 2e-5 of each array's largest value. Rounding decides which side of a ReLU a value next to 0
    is on, with one batch of some thirty; a mistake is in all of them.
    """
    optimizer = rmsprop(learning_rate=0.001, decay=0.9, epsilon=1, bias_correction=False)
    whole, _, state = build(norm, dropout_rate=0.3)
    shared, *_ = build(norm, dropout_rate=0.3, axis_name="parts")
    step = jax.jit(make_train_step(whole, optimizer))
    in_parts = jax.jit(
        jax.vmap(make_train_step(shared, optimizer, "parts"), (None, 0, None), axis_name="parts")
    )
    differences = []
    for seed in range(3):
        batch = train_batch(8, seed)
        parts = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), batch)
        expected, _ = step(state, batch, jax.random.key(seed))
        found, _ = in_parts(state, parts, jax.random.key(seed))
        differences.append(difference(expected, jax.tree.map(lambda x: x[0], found)))
    assert np.median(differences) < 2e-5, differences


def test_per_device_statistics_are_the_mean_of_the_parts_own():
    changes = {"norm_decay": 0.0}  # the statistics are those of this batch alone
    model, optimizer, state = build("full", per_device_stats=True, axis_name="parts", **changes)
    step, batch = make_train_step(model, optimizer, "parts"), train_batch(8)
    parts = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), batch)
    in_parts = jax.jit(jax.vmap(step, (None, 0, None), axis_name="parts"))
    found, _ = in_parts(state, parts, jax.random.key(0))
    alone = jax.jit(make_train_step(build("full", **changes)[0], optimizer))

    def statistics(batch):
        return alone(state, batch, jax.random.key(0))[0].batch_stats

    of_parts = [statistics({name: x[i] for name, x in parts.items()}) for i in range(4)]
    expected = jax.tree.map(lambda *each: np.mean(each, axis=0), *of_parts)
    jax.tree.map(lambda a, b: close(a[0], b), found.batch_stats, expected)
    whole = statistics(batch)["block1"]["norm"]["var"]
    assert np.abs(found.batch_stats["block1"]["norm"]["var"][0] / whole - 1).max() > 1e-3


def test_five_crop_evaluation_against_numpy():
    """The mean of the crops' softmax outputs, for a prediction likewise; padding does not count."""
    model, _, state = build()
    batch = eval_batch(count=6, masked=2)
    metrics, maxima = jax.jit(make_eval_step(model))(state.variables, batch)
    each = [jax.nn.softmax(apply(model, state, batch["crops"][:, k])) for k in range(5)]
    probabilities = np.mean(each, axis=0)
    predicted = predict(model, state.variables, batch["crops"], False)[0].mean(axis=1)
    np.testing.assert_allclose(predicted, probabilities, rtol=1e-5, atol=1e-7)
    label = batch["label"][:4]
    expected = {
        "loss": -np.log(probabilities[range(4), label]).mean(),
        "error_rate": np.mean(probabilities[:4].argmax(-1) != label),
    }
    found = {name: float(x) for name, x in metrics.compute().items()}
    assert found == pytest.approx(jax.tree.map(float, expected), rel=1e-5)
    images = to_intensities(batch["crops"].reshape(-1, SIDE, SIDE, 3))
    _, seen = model.apply(state.variables, images, train=False, mutable=["intermediates"])
    for layer, x in layer_activations(seen, "output").items():
        np.testing.assert_allclose(maxima[layer], np.max(x, tuple(range(x.ndim - 1))), rtol=1e-5)


def lower(model, platforms, evaluate=False):
    """The step of the published batch of 100 crops of 128x128; needs none of the devices."""
    shape = jax.ShapeDtypeStruct
    optimizer = make_optimizer(default.get_config().to_dict(), 200)
    image = jnp.zeros((1, 128, 128, 3))
    state = jax.eval_shape(lambda: init_state(model, optimizer, jax.random.key(0), image))
    crops = shape((100, 5 if evaluate else 1, 128, 128, 3), np.uint8)
    numbers = {"label": np.int32, "position": np.int32, "mask": np.float32}
    batch = {"crops": crops} | {key: shape((100,), dtype) for key, dtype in numbers.items()}
    step = make_train_step(model, optimizer)
    if evaluate:
        lowered = export.export(jax.jit(make_eval_step(model)), platforms=platforms)
        return lowered(state.variables, batch)
    lowered = export.export(
        jax.jit(lambda state, batch, seed: step(state, batch, jax.random.key(seed))),
        platforms=platforms,
    )
    return lowered(state, batch, shape((), np.int32))


def test_a_count_of_updates_stays_an_integer_over_devices():
    mean = jax.vmap(lambda x: mean_over_devices(x, "d"), axis_name="d")(np.array([3, 3]))
    assert (mean.dtype, mean.tolist()) == (np.int32, [3, 3])


def test_steps_lower_for_cpu_cuda_and_tpu():
    settings = {"norm": "ghost", "dtype": "bfloat16", "dropout_rate": 0.5}
    model = make_model(**default.get_config().model.to_dict() | settings)
    platforms = ("cpu", "cuda", "tpu")
    for evaluate in (False, True):
        lowered = lower(model, platforms, evaluate)
        assert lowered.platforms == platforms
        assert "stablehlo.convolution" in lowered.mlir_module()


@pytest.mark.parametrize(
    ("changes", "told"), [({}, "HIGHEST"), ({"precision": "tensorfloat32"}, "HIGH")]
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
    found = {re.search(r"precision.*?(HIGHEST|HIGH|DEFAULT)", line)[1] for line in products}
    assert found == {told}


@pytest.mark.parametrize("norm", ["mean_only", "full"])
def test_running_statistics_come_from_the_pass_that_the_configuration_says(norm):
    """With decay 0 they are one pass's own. Nothing else depends on it."""
    images, found = to_intensities(train_batch()["crops"][:, 0]), []
    for stats_pass in ("clean", "dropout"):
        model, optimizer, state = build(
            norm, dropout_rate=0.5, stats_pass=stats_pass, norm_decay=0.0
        )
        step = jax.jit(make_train_step(model, optimizer))
        after, metrics = step(state, train_batch(), jax.random.key(0))
        passed = model.clone(dropout_rate=0.0) if stats_pass == "clean" else model
        _, expected = passed.apply(
            state.variables, images, train=True, positions_N=np.arange(6),
            rngs={"epoch": jax.random.key(0)}, mutable=["batch_stats"],
        )  # fmt: skip
        jax.tree.map(close, after.batch_stats, expected["batch_stats"])
        found.append((after.params, metrics.compute()["loss"], after.batch_stats))
    clean, dropout = found
    jax.tree.map(np.testing.assert_array_equal, clean[:2], dropout[:2])
    means = [stats["block1"]["norm"]["mean"] for stats in (clean[2], dropout[2])]
    assert (means[0] != means[1]).all()
