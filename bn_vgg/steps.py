"""The training and evaluation steps: pure functions of (state, batch, rng).

They are written for one device. With `axis_name` they run mapped over several, each
with its share of the batch, and agree on gradients, statistics and metrics.
"""

from functools import reduce

import jax
import jax.numpy as jnp
import optax
from jax import lax

from bn_vgg.metrics import EvalMetrics, Moments, TrainMetrics
from bn_vgg.models.layers import layer_activations
from bn_vgg.models.vgg import VGG
from bn_vgg.state import TrainState


def make_train_step(
    model: VGG, optimizer: optax.GradientTransformation, axis_name: str | None = None
):
    """Returns `train_step(state, batch, rng) -> (state, TrainMetrics)`.

    `batch` holds `windows_NWHWC` (uint8, one window of each example: W = 1), `labels_N` and
    `positions_N` (int32: the example's position in the epoch). `rng` is the epoch's dropout
    key; what an example draws depends on it and on the example's position alone.

    With `model.norm.stats_pass` `clean` the running statistics come from a second pass over the
    batch, with the same weights but no dropout. Without dropout there is no second pass.
    """
    passes_twice = model.norm.stats_pass == "clean" and model.dropout_rate > 0

    loss_of = make_loss(model)

    def train_step(state: TrainState, batch, rng):
        (loss, (logits_NC, updated)), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            state.params, state.batch_stats, batch, rng
        )
        error_rate = jnp.mean(logits_NC.argmax(-1) != batch["labels_N"])
        if passes_twice:
            _, updated = model.clone(dropout_rate=0.0).apply(
                state.variables,
                to_intensities(batch["windows_NWHWC"][:, 0]),
                train=True,
                mutable=["batch_stats"],
            )
        batch_stats = updated.get("batch_stats", {})
        model.norm.check_statistics(state.batch_stats, batch_stats)
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
            # A gradient that is not finite leaves a mean square that is not.
            finite=jnp.isfinite(loss) & all_finite(new_state),
        )
        return new_state, metrics

    return train_step


def make_loss(model: VGG):
    """Returns `loss(params, batch_stats, batch, rng) -> (loss, (logits_NC, updated))`.

    It is the training step's: the mean over the batch, with dropout. `updated` holds the
    collection `batch_stats`.
    """

    def loss(params, batch_stats, batch, rng):
        logits_NC, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            to_intensities(batch["windows_NWHWC"][:, 0]),
            train=True,
            positions_N=batch["positions_N"],
            rngs={"dropout": rng},
            mutable=["batch_stats"],
        )
        losses_N = optax.softmax_cross_entropy_with_integer_labels(logits_NC, batch["labels_N"])
        return losses_N.mean(), (logits_NC, updated)

    return loss


def all_finite(tree):
    """Whether all numbers of a tree of arrays are finite."""
    # A maximum with a NaN is a NaN. It is cheaper to have than a test of each number, and most
    # of the cost is that of starting a hundred reductions: one for all arrays of a shape.
    of_shape: dict[tuple[int, ...], list] = {}
    for leaf in jax.tree.leaves(tree):
        of_shape.setdefault(leaf.shape, []).append(jnp.abs(leaf).astype(jnp.float32))
    largest = [jnp.max(reduce(jnp.maximum, arrays), initial=0) for arrays in of_shape.values()]
    return (jnp.stack(largest) < jnp.inf).all()


def make_eval_step(model: VGG, axis_name: str | None = None):
    """Returns `eval_step(state, batch) -> (EvalMetrics, moments)`.

    `batch` holds `windows_NWHWC` (uint8, the W windows of each example, the centre last),
    `labels_N` (int32), `mask_N` (1 for an example, 0 for padding) and `compared_N` (1 for
    the examples of `error_rate_running`). `moments` are those of each layer's output.
    """

    def eval_step(state: TrainState, batch):
        labels_N, mask_N, num_windows = (
            batch["labels_N"], batch["mask_N"], batch["windows_NWHWC"].shape[1]
        )  # fmt: skip
        probabilities_NWC, updated = _predict(
            model, state, batch["windows_NWHWC"], mutable=["intermediates"]
        )
        probabilities_NC = probabilities_NWC.mean(axis=1)
        of_label_N = jnp.take_along_axis(probabilities_NC, labels_N[:, None], axis=1)[:, 0]
        metrics = EvalMetrics.of(
            axis_name,
            # A probability can round to 0; its logarithm must stay finite.
            loss=-jnp.log(jnp.maximum(of_label_N, jnp.finfo(jnp.float32).tiny)),
            error_rate=errors(probabilities_NC, labels_N),
            error_rate_running=errors(probabilities_NWC[:, -1], labels_N),
            mask=mask_N,
            compared=batch["compared_N"],
        )
        of_images = jnp.repeat(mask_N, num_windows)
        outputs = layer_activations(updated, "output")
        moments = {layer: Moments.of(x, of_images, axis_name) for layer, x in outputs.items()}
        return metrics, moments

    return eval_step


def empty_evaluation(model: VGG) -> tuple[EvalMetrics, dict[str, Moments]]:
    """What the results of evaluation steps are merged into."""
    moments = {f"block{i}": Moments.empty(c) for i, c in enumerate(model.features)}
    return EvalMetrics.empty(), moments | {"hidden": Moments.empty(model.hidden_units)}


def make_predict_step(model: VGG):
    """Returns `predict_step(state, windows_NWHWC) -> probabilities_NC`.

    The mean over an example's windows of the softmax outputs, with running statistics.
    """

    def predict_step(state: TrainState, windows_NWHWC):
        probabilities_NWC, _ = _predict(model, state, windows_NWHWC, mutable=[])
        return probabilities_NWC.mean(axis=1)

    return predict_step


def _predict(model: VGG, state: TrainState, windows_NWHWC, mutable: list[str]):
    """Returns the softmax outputs (N, W, classes) and the collections `mutable`."""
    images = windows_NWHWC.reshape(-1, *windows_NWHWC.shape[2:])
    logits, updated = model.apply(
        state.variables, to_intensities(images), train=False, mutable=mutable
    )
    return jax.nn.softmax(logits).reshape(*windows_NWHWC.shape[:2], -1), updated


def errors(scores_NC, labels_N):
    """1 for each example whose highest score is not its label's, otherwise 0; float32."""
    return (scores_NC.argmax(-1) != labels_N).astype(jnp.float32)


def to_intensities(images_uint8):
    """Scales 0..255 to 0..1. No mean is subtracted."""
    return images_uint8.astype(jnp.float32) / 255
