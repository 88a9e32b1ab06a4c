"""The training and evaluation steps, and prediction.

They are pure functions of (state, batch, rng), written for one device. With `axis_name` they are
mapped over several devices, each with its share of the batch, and average gradients, statistics
and metrics over that axis.
"""

from collections.abc import Mapping, Sequence
from functools import partial, reduce
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from bn_vgg.augment import (
    NO_AUGMENTATION,
    flip,
    mix_over_labels,
    to_intensities,
    training_images,
    training_losses,
)
from bn_vgg.metrics import EvalMetrics, TrainMetrics, gather_metrics
from bn_vgg.models.layers import layer_activations, rng_streams
from bn_vgg.optimizer import find_params_ema


class TrainState(flax.struct.PyTreeNode):
    """A run's whole state, from which it resumes bit for bit."""

    step: jax.Array  # updates done so far, int32
    params: Any  # float32
    batch_stats: Any  # running statistics, float32; empty where no normalizer keeps any
    opt_state: Any
    # The precise statistics of the last evaluation; empty if running ones are reported.
    precise_stats: Any = flax.struct.field(default_factory=dict)

    @property
    def variables(self):
        """The variables that `model.apply` takes in training."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def eval_variables(self):
        """The variables for the reported error, `predict` and `export`."""
        average = find_params_ema(self.opt_state)
        params = self.params if average is None else average
        return {"params": params, "batch_stats": self.precise_stats or self.batch_stats}

    def with_precise_stats(self, config: Mapping[str, Any], model: Any) -> "TrainState":
        """Returns an initial state with `precise_stats` if the nested `config` needs them."""
        wanted = needs_precise_stats(config) and model.norm.has_averages
        return self.replace(precise_stats=self.batch_stats) if wanted else self


def needs_precise_stats(config: Mapping[str, Any]) -> bool:
    """Whether reported errors are by precise statistics instead of running ones."""
    averages_weights = config["optimizer"]["average_decay"] > 0
    return averages_weights or config["eval"]["statistics"] == "precise"


def init_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    rng: jax.Array,
    images_NHWC,
) -> TrainState:
    """Initializes a state from `rng`, for intensities with the shape of `images_NHWC`.

    Their values matter only to normalizers that initialize from data.
    """
    initial = model.init(rng, images_NHWC, train=False)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=initial["params"],
        batch_stats=initial.get("batch_stats", {}),
        opt_state=optimizer.init(initial["params"]),
    )


def apply_in_training(
    model: Any, params, batch_stats, batch, rng, augment, mutable=("batch_stats",)
):
    """Applies a network to a training batch; returns the logits and the collections `mutable`."""
    return model.apply(
        {"params": params, "batch_stats": batch_stats},
        training_images(batch, rng, augment),
        train=True,
        positions_N=batch["position"],
        rngs=rng_streams(rng, batch["position"]),
        mutable=list(mutable),
    )


def make_loss_fn(model: Any, augment: Mapping[str, Any] = NO_AUGMENTATION):
    """Returns `loss(params, batch_stats, batch, rng) -> (loss, (logits_NC, batch_stats))`.

    The loss of the training step: mean cross-entropy, with dropout and `config.augment`.
    """

    def loss(params, batch_stats, batch, rng):
        logits_NC, updated = apply_in_training(model, params, batch_stats, batch, rng, augment)
        losses_N = training_losses(logits_NC, batch, rng, augment)
        return losses_N.mean(), (logits_NC, updated.get("batch_stats", {}))

    return loss


def make_train_step(
    model: Any,
    optimizer: optax.GradientTransformation,
    axis_name: str | None = None,
    augment: Mapping[str, Any] = NO_AUGMENTATION,
):
    """Returns `train_step(state, batch, rng) -> (state, TrainMetrics)`.

    `batch` holds `crops` (N, 1, H, W, C), uint8; `label` (N,) and `position` (N,), int32, the
    example's position in the epoch. With mixup `crops` are (N, 2, H, W, C), the example's and its
    partner's, and there is `partner_label`. `rng` is the epoch's key; an example's random numbers
    depend only on it and on the position.

    If `model.norm.stats_pass` is `clean` and there is dropout, the running statistics come from a
    second pass over the batch, with the same weights but no dropout.
    """
    needs_clean_pass = model.norm.stats_pass == "clean" and model.dropout_rate > 0
    loss_fn = make_loss_fn(model, augment)
    optimizer = optax.with_extra_args_support(optimizer)  # some take the loss as `value`

    def train_step(state: TrainState, batch, rng):
        (loss, (logits_NC, batch_stats)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, state.batch_stats, batch, rng
        )
        error_rate = mix_over_labels(partial(is_wrong, logits_NC), batch, rng, augment).mean()
        if needs_clean_pass:
            clean, statistics = model.clone(dropout_rate=0.0), state.batch_stats
            _, updated = apply_in_training(clean, state.params, statistics, batch, rng, augment)
            batch_stats = updated.get("batch_stats", {})
        model.norm.check_statistics(state.batch_stats, batch_stats)
        if axis_name is not None:
            # The statistics are equal already, except with `per_device_stats`: then keep the mean.
            gradients, batch_stats, loss, error_rate = mean_over_devices(
                (gradients, batch_stats, loss, error_rate), axis_name
            )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params, value=loss)
        new_state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        metrics = TrainMetrics.single_from_model_output(
            loss=loss,
            error_rate=error_rate,
            gradient_norm=optax.tree.norm(gradients),
            # A gradient that is not finite makes parameters or optimizer state not finite.
            finite=(jnp.isfinite(loss) & all_finite(new_state)).astype(jnp.float32),
        )
        return new_state, metrics

    return train_step


def mean_over_devices(tree, axis_name: str):
    """Averages over devices; keeps each dtype, so that a count of updates stays an integer."""
    return jax.tree.map(lambda mean, x: mean.astype(x.dtype), lax.pmean(tree, axis_name), tree)


def all_finite(tree):
    """Whether all numbers in a tree of arrays are finite."""
    # A maximum propagates NaN, and is cheaper than testing each number. Most of the cost would be
    # to start a hundred reductions, so arrays of the same shape share one.
    by_shape: dict[tuple[int, ...], list] = {}
    for leaf in jax.tree.leaves(tree):
        by_shape.setdefault(leaf.shape, []).append(jnp.abs(leaf).astype(jnp.float32))
    largest = [jnp.max(reduce(jnp.maximum, arrays), initial=0) for arrays in by_shape.values()]
    return (jnp.stack(largest) < jnp.inf).all()


def make_eval_step(model: Any, axis_name: str | None = None, flips: bool = False):
    """Returns `eval_step(variables, batch) -> (EvalMetrics, maxima)`.

    `batch` holds `crops` (N, K, H, W, C), K crops of each example; `label` (N,); and `mask` (N,), 1
    for an example and 0 for padding. `maxima` are those of each channel of each layer's output.
    With `flips` the mirror image of each crop is evaluated, too.
    """

    def eval_step(variables, batch):
        label_N, mask_N = batch["label"], batch["mask"]
        probabilities_NKC, updated = predict(
            model, variables, batch["crops"], flips, ["intermediates"]
        )
        probabilities_NC = probabilities_NKC.mean(axis=1)
        label_probability_N = jnp.take_along_axis(probabilities_NC, label_N[:, None], axis=1)[:, 0]
        metrics = gather_metrics(
            EvalMetrics,
            axis_name,
            # A probability may underflow to 0; keep its logarithm finite.
            loss=-jnp.log(jnp.maximum(label_probability_N, jnp.finfo(jnp.float32).tiny)),
            error_rate=is_wrong(probabilities_NC, label_N),
            mask=mask_N,
        )
        # Padding repeats other examples, so it does not change a maximum.
        maxima = {
            layer: x.max(axis=tuple(range(x.ndim - 1))).astype(jnp.float32)
            for layer, x in layer_activations(updated, "output").items()
        }
        return metrics, maxima if axis_name is None else lax.pmax(maxima, axis_name)

    return eval_step


def predict(model: Any, variables, crops_NKHWC, flips: bool, mutable: Sequence[str] = ()):
    """Returns softmax outputs (N, K or with `flips` 2 K, classes) and the collections `mutable`."""
    if flips:
        crops_NKHWC = jnp.concatenate([flip(crops_NKHWC), crops_NKHWC], axis=1)
    images = crops_NKHWC.reshape(-1, *crops_NKHWC.shape[2:])
    logits, updated = model.apply(
        variables, to_intensities(images), train=False, mutable=list(mutable)
    )
    return jax.nn.softmax(logits).reshape(*crops_NKHWC.shape[:2], -1), updated


def is_wrong(scores_NC, label_N):
    """Returns 1 for each misclassified example, otherwise 0: (N,), float32."""
    return (scores_NC.argmax(-1) != label_N).astype(jnp.float32)
