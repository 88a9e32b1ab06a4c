"""PreciseBN, the compared errors and the moments, against independent computations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_vgg import evaluation
from bn_vgg.evaluation import PreciseStats, make_compare_step, make_precise_step
from bn_vgg.metrics import ComparedMetrics
from bn_vgg.models.layers import layer_activations, layer_channels
from bn_vgg.steps import to_intensities
from tests.test_steps import SIDE, build, eval_batch, train_batch

pytestmark = pytest.mark.usefixtures("quick_compilation")

BATCHES = [train_batch(seed=seed) for seed in range(3)]


def precise_of(norm, **changes):
    """Precise statistics of a state whose running ones are those of no batch."""
    model, _, state = build(norm, dropout_rate=0.5, **changes)
    state = state.replace(batch_stats=jax.tree.map(lambda x: x + 3.0, state.batch_stats))
    channels = layer_channels(model, SIDE)["before_norm"]
    moments = {layer: (jnp.zeros(count), jnp.zeros(count)) for layer, count in channels.items()}
    precise = PreciseStats(jnp.zeros(()), state.batch_stats, moments)
    step = jax.jit(make_precise_step(model))
    for batch in BATCHES:
        precise = step(precise, state, batch, jax.random.key(0))
    return model, state, jax.device_get(precise)


def passed(model, state, batch):
    """A training pass without dropout: own statistics and activations."""
    alone = model.clone(dropout_rate=0.0, norm=model.norm.with_momentum(0.0))
    images = to_intensities(batch["crops"][:, 0])
    collections = ["batch_stats", "intermediates"]
    return jax.jit(lambda v, x: alone.apply(v, x, train=True, mutable=collections))(
        state.variables, images
    )


@pytest.mark.parametrize(
    ("norm", "average"),
    [("weight_norm_mean_only", "variance"), ("full", "variance"), ("ghost", "stdev")],
)
def test_precise_statistics_are_the_plain_mean_of_the_batches_own(norm, average):
    """In the domain of the running average; whatever the running statistics are."""
    model, state, precise = precise_of(norm, stats_average=average)
    each = [passed(model, state, batch)[1]["batch_stats"] for batch in BATCHES]
    there, back = (np.sqrt, np.square) if average == "stdev" else (np.asarray, np.asarray)
    for layer, kept in precise.batch_stats.items():
        own = [stats[layer]["norm"] for stats in each]
        np.testing.assert_allclose(
            kept["norm"]["mean"], np.mean([s["mean"] for s in own], 0), rtol=1e-4, atol=1e-5
        )
        # The same numbers: their distance is told in its standard deviations.
        normalized, _ = precise.before_norm[layer]
        np.testing.assert_allclose(kept["norm"]["mean"], normalized, rtol=1e-4, atol=1e-5)
        if "var" in kept["norm"]:
            expected = back(np.mean([there(s["var"]) for s in own], axis=0))
            np.testing.assert_allclose(kept["norm"]["var"], expected, rtol=1e-4)
    assert float(precise.num_batches) == 3


def test_what_is_normalized_is_measured_and_errors_are_compared():
    model, state, precise = precise_of("full")
    found = [layer_activations(passed(model, state, b)[1], "before_norm") for b in BATCHES]
    assert list(precise.before_norm) == ["block0", "block1"]
    for layer, (mean, square) in precise.before_norm.items():
        x = np.concatenate([np.asarray(of_layer[layer], np.float64) for of_layer in found])
        np.testing.assert_allclose(mean, x.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(square, (x**2).mean((0, 1, 2)), rtol=1e-4)
        np.testing.assert_allclose(square - mean**2, x.var((0, 1, 2)), rtol=1e-3)

    batch = eval_batch(count=8, num_crops=1, masked=3)
    found = jax.jit(make_compare_step(model))(state, precise.batch_stats, batch).compute()
    logits = {"batch": passed(model, state, batch)[0]}
    for name, stats in (("running", state.batch_stats), ("precise", precise.batch_stats)):
        variables, images = {"params": state.params, "batch_stats": stats}, batch["crops"][:, 0]
        logits[name] = model.apply(variables, to_intensities(images), train=False)
    for name, by_these in logits.items():
        wrong = np.argmax(by_these, -1) != batch["label"]
        assert float(found[f"error_rate_{name}"]) == pytest.approx(wrong[:5].mean())
    assert set(found) == set(ComparedMetrics.empty().compute())


def of_channels(mean, variance):
    mean, variance = np.asarray(mean, np.float64), np.asarray(variance, np.float64)
    return mean, variance + mean**2


def test_distances_are_in_standard_deviations_of_what_is_normalized():
    moments = {"block0": of_channels([0, 0], [4, 9]), "block1": of_channels([0], [1])}
    stats = {
        "block0": {"norm": {"mean": np.array([1.0, 2.0]), "var": np.array([4.0, 9.0])}},
        "block1": {"norm": {"mean": np.array([0.5])}},
    }
    running = {
        "block0": {"norm": {"mean": np.array([2.0, 8.0]), "var": np.array([16.0, 9.0])}},
        "block1": {"norm": {"mean": np.array([0.0])}},
    }
    found = evaluation.running_lag(running, PreciseStats(np.float64(1), stats, moments), 0.0)
    assert set(found) == {"mean_distance/block0", "std_ratio/block0", "mean_distance/block1"}
    np.testing.assert_allclose(found["mean_distance/block0"], [0.5, 2.0])
    np.testing.assert_allclose(found["std_ratio/block0"], [2.0, 1.0])
    summary = evaluation.summarize(found)
    assert summary["mean_distance/block0"] == pytest.approx(np.sqrt((0.25 + 4) / 2))
    assert summary["std_ratio/block0"] == pytest.approx(1.5)
    assert summary["mean_distance/block1"] == pytest.approx(0.5)


def test_a_users_statistics_of_another_name_or_shape_have_no_distance():
    moments = {"block0": of_channels([0, 0], [1, 1])}
    for stats, found in (
        ({"square": np.ones(2)}, []),
        ({"mean": np.ones(1), "var": np.ones(2)}, ["std_ratio/block0"]),
    ):
        kept = {"block0": {"norm": stats}}
        precise = PreciseStats(np.float64(1), kept, moments)
        assert [*evaluation.running_lag(kept, precise, 0.0)] == found


def test_a_dead_relu_is_one_that_no_image_wakes():
    found = evaluation.never_active({"block0": np.array([0.0, 2.0, 1e-9, -1.0])})
    np.testing.assert_array_equal(found["never_active/block0"], [1, 0, 0, 1])
    assert evaluation.summarize(found) == {"never_active/block0": 0.5}
