"""The training and evaluation steps: pure functions of (state, batch, rng).

They are written for one device. With `axis_name` they run mapped over several, each
with its share of the batch, and agree on gradients, statistics and metrics.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from bn_vgg.metrics import EvalMetrics, TrainMetrics
from bn_vgg.state import TrainState


def make_train_step(
    model: nn.Module, optimizer: optax.GradientTransformation, axis_name: str | None = None
):
    """Returns `train_step(state, batch, rng) -> (state, TrainMetrics)`.

    `batch` holds `windows_NWHWC` (uint8, one window of each example: W = 1), `labels_N` and
    `positions_N` (int32: the example's position in the epoch). `rng` is the epoch's dropout
    key; what an example draws depends on it and on the example's position alone.
    """

    def train_step(state: TrainState, batch, rng):
        def loss_fn(params):
            logits_NC, updated = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                to_intensities(batch["windows_NWHWC"][:, 0]),
                train=True,
                positions_N=batch["positions_N"],
                rngs={"dropout": rng},
                mutable=["batch_stats"],
            )
            losses_N = optax.softmax_cross_entropy_with_integer_labels(logits_NC, batch["labels_N"])
            return losses_N.mean(), (logits_NC, updated)

        (loss, (logits_NC, updated)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params
        )
        error_rate = jnp.mean(logits_NC.argmax(-1) != batch["labels_N"])
        batch_stats = updated.get("batch_stats", {})
        if axis_name is not None:
            # The statistics are equal already, unless each device takes its own
            # (`per_device_stats`): then what is kept is their mean.
            gradients, batch_stats, loss, error_rate = lax.pmean(
                (gradients, batch_stats, loss, error_rate), axis_name
            )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        new_state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        metrics = TrainMetrics.single_from_model_output(
            loss=loss,
            error_rate=error_rate,
            gradient_norm=optax.tree.norm(gradients),
            step=new_state.step,
        )
        return new_state, metrics

    return train_step


def make_eval_step(model: nn.Module, axis_name: str | None = None):
    """Returns `eval_step(state, batch) -> EvalMetrics`.

    `batch` holds `windows_NWHWC` (uint8, the W windows of each example), `labels_N`
    (int32) and `mask_N` (1 for an example, 0 for padding).
    """
    predict_step = make_predict_step(model)

    def eval_step(state: TrainState, batch):
        probabilities_NC = predict_step(state, batch["windows_NWHWC"])
        labels_N = batch["labels_N"]
        of_label_N = jnp.take_along_axis(probabilities_NC, labels_N[:, None], axis=1)[:, 0]
        outputs = {
            # A probability can round to 0; its logarithm must stay finite.
            "loss": -jnp.log(jnp.maximum(of_label_N, jnp.finfo(jnp.float32).tiny)),
            "error_rate": (probabilities_NC.argmax(-1) != labels_N).astype(jnp.float32),
            "mask": batch["mask_N"],
        }
        if axis_name is not None:
            return EvalMetrics.gather_from_model_output(axis_name=axis_name, **outputs)
        return EvalMetrics.single_from_model_output(**outputs)

    return eval_step


def make_predict_step(model: nn.Module):
    """Returns `predict_step(state, windows_NWHWC) -> probabilities_NC`.

    The mean over an example's windows of the softmax outputs, with running statistics.
    """

    def predict_step(state: TrainState, windows_NWHWC):
        num_examples, num_windows = windows_NWHWC.shape[:2]
        images = windows_NWHWC.reshape(-1, *windows_NWHWC.shape[2:])
        logits: Any = model.apply(state.variables, to_intensities(images), train=False)
        probabilities = jax.nn.softmax(logits)
        return probabilities.reshape(num_examples, num_windows, -1).mean(axis=1)

    return predict_step


def to_intensities(images_uint8):
    """Scales 0..255 to 0..1. No mean is subtracted."""
    return images_uint8.astype(jnp.float32) / 255
