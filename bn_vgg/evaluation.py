"""PreciseBN, the comparison of three kinds of statistics, and summaries of layers.

*Precise* statistics are the plain means of the batch statistics over several training batches, with
the current weights and without dropout (Wu and Johnson 2021, "Rethinking 'Batch' in BatchNorm",
section 3.2, but without the variance between batches). They work for any normalizer with a field
`momentum`: batch k is averaged with momentum 1 - 1/k.
"""

from collections.abc import Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from bn_vgg.augment import NO_AUGMENTATION, to_intensities
from bn_vgg.metrics import ComparedMetrics, gather_metrics
from bn_vgg.models.layers import layer_activations, layer_statistics, rng_streams
from bn_vgg.steps import TrainState, apply_in_training, is_wrong, mean_over_devices


class PreciseStats(flax.struct.PyTreeNode):
    """Precise statistics, accumulated over batches."""

    num_batches: jax.Array  # number of batches so far, float32
    batch_stats: Any  # their mean, structured as `TrainState.batch_stats`
    # Mean and mean square of the normalizers' inputs by layer, (C,) each.
    before_norm: dict[str, tuple[Any, Any]]


def make_precise_step(
    model: Any, axis_name: str | None = None, augment: Mapping[str, Any] = NO_AUGMENTATION
):
    """Returns `precise_step(precise, state, batch, rng) -> PreciseStats`; see `make_train_step`."""

    def precise_step(precise: PreciseStats, state: TrainState, batch, rng):
        num_batches = precise.num_batches + 1
        norm = model.norm.with_momentum(1 - 1 / num_batches)
        averaging_model = model.clone(dropout_rate=0.0, norm=norm)
        _, updated = apply_in_training(
            averaging_model, state.params, precise.batch_stats, batch, rng, augment,
            mutable=("batch_stats", "intermediates"),
        )  # fmt: skip
        batch_stats = updated["batch_stats"]
        model.norm.check_statistics(precise.batch_stats, batch_stats)
        inputs = layer_activations(updated, "before_norm")
        moments = {layer: _mean_and_square(inputs[layer]) for layer in precise.before_norm}
        if axis_name is not None:  # see `make_train_step`
            batch_stats, moments = mean_over_devices((batch_stats, moments), axis_name)
        moments = optax.incremental_update(moments, precise.before_norm, 1 / num_batches)
        return PreciseStats(num_batches, batch_stats, moments)

    return precise_step


def _mean_and_square(x):
    x, axes = x.astype(jnp.float32), tuple(range(x.ndim - 1))
    return x.mean(axes), jnp.square(x).mean(axes)


def make_compare_step(model: Any, axis_name: str | None = None):
    """Returns `compare_step(state, precise_batch_stats, batch) -> ComparedMetrics`.

    `batch` is as in `make_eval_step`, with K = 1. Padding, which repeats other examples, is left
    out of the error rates, but not of the batch statistics.
    """
    model = model.clone(dropout_rate=0.0)

    def compare_step(state: TrainState, precise_batch_stats, batch):
        images, label_N = to_intensities(batch["crops"][:, 0]), batch["label"]
        by_running = model.apply(state.variables, images, train=False)
        precise = {"params": state.params, "batch_stats": precise_batch_stats}
        by_precise = model.apply(precise, images, train=False)
        positions_N = jnp.arange(len(label_N))
        by_batch, _ = model.apply(
            state.variables, images, train=True, positions_N=positions_N,
            rngs=rng_streams(jax.random.key(0), positions_N), mutable=["batch_stats"],
        )  # fmt: skip
        return gather_metrics(
            ComparedMetrics,
            axis_name,
            error_rate_running=is_wrong(by_running, label_N),
            error_rate_precise=is_wrong(by_precise, label_N),
            error_rate_batch=is_wrong(by_batch, label_N),
            mask=batch["mask"],
        )

    return compare_step


def running_lag(batch_stats, precise: PreciseStats, epsilon: float) -> dict[str, np.ndarray]:
    """Compares running with precise statistics, NumPy arrays, for each channel.

    Returns arrays (C,): `mean_distance/LAYER` is the running minus the precise mean, in standard
    deviations of the normalizer's input; `std_ratio/LAYER`, for normalizers with a variance, the
    running divided by the precise standard deviation. `epsilon` is added to variances.
    """
    found = {}
    running, averaged = layer_statistics(batch_stats), layer_statistics(precise.batch_stats)
    for layer, (mean, square) in precise.before_norm.items():
        variance = np.maximum(square - mean**2, 0)  # rounding can make the difference negative
        running_stats, precise_stats = running.get(layer, {}), averaged.get(layer, {})
        # A user-defined normalizer may use the name `mean` for something else.
        if "mean" in running_stats and running_stats["mean"].shape == mean.shape:
            distance = running_stats["mean"] - precise_stats["mean"]
            found[f"mean_distance/{layer}"] = distance / np.sqrt(variance + epsilon)
        if "var" in running_stats and running_stats["var"].shape == mean.shape:
            ratio = (running_stats["var"] + epsilon) / (precise_stats["var"] + epsilon)
            found[f"std_ratio/{layer}"] = np.sqrt(ratio)
    return found


def never_active(maxima: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns `never_active/LAYER`, (C,): 1 for channels whose maximum is not above 0."""
    return {f"never_active/{layer}": (x <= 0).astype(np.float32) for layer, x in maxima.items()}


def summarize(channels: dict[str, np.ndarray]) -> dict[str, float]:
    """Averages over channels: the root mean square of distances, the mean of all others."""
    return {
        name: float(np.sqrt(np.mean(x**2)) if name.startswith("mean_distance/") else np.mean(x))
        for name, x in channels.items()
    }
