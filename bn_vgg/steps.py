"""The training, evaluation and prediction steps.

They are pure functions of (state, batch, rng), written for one device. With `axis_name` they run
mapped over several, each with its share of the batch, and agree on gradients, statistics and
metrics.
"""

from collections.abc import Mapping
from functools import partial, reduce
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from bn_vgg.augment import OFF, flip, of_labels, to_intensities, training_images, training_losses
from bn_vgg.metrics import EvalMetrics, Moments, TrainMetrics, measured
from bn_vgg.models.layers import layer_activations, streams
from bn_vgg.optimizer import averaged_weights


class TrainState(flax.struct.PyTreeNode):
    """The whole of a run's state: it resumes from this, bit for bit."""

    step: jax.Array  # updates done so far, int32
    params: Any  # float32
    batch_stats: Any  # running statistics, float32; empty where no normalizer keeps any
    opt_state: Any
    # The statistics that were evaluated last, where these are not the running ones.
    precise_stats: Any = flax.struct.field(default_factory=dict)

    @property
    def variables(self):
        """The collections that the model's `apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def reported(self):
        """The variables whose error is reported, and which `predict` and `export` use."""
        average = averaged_weights(self.opt_state)
        params = self.params if average is None else average
        return {"params": params, "batch_stats": self.precise_stats or self.batch_stats}

    def for_evaluation(self, config: Mapping[str, Any], model: Any) -> "TrainState":
        """Returns the first state with `precise_stats`, if `config`, nested, needs them."""
        wanted = needs_precise_stats(config) and model.norm.averages
        return self.replace(precise_stats=self.batch_stats) if wanted else self


def needs_precise_stats(config: Mapping[str, Any]) -> bool:
    """Whether the reported errors are those of other statistics than the running ones."""
    averages_weights = config["optimizer"]["average_decay"] > 0
    return averages_weights or config["eval"]["statistics"] == "precise"


def init_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    rng: jax.Array,
    images_NHWC,
) -> TrainState:
    """Initializes everything from `rng`, for intensities of the size of `images_NHWC`.

    Their content matters only to normalizers that initialize from data.
    """
    initial = model.init(rng, images_NHWC, train=False)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=initial["params"],
        batch_stats=initial.get("batch_stats", {}),
        opt_state=optimizer.init(initial["params"]),
    )


def make_loss(model: Any, augment: Mapping[str, Any] = OFF):
    """Returns `loss(params, batch_stats, batch, rng) -> (loss, (logits_NC, batch_stats))`.

    The training step's: cross-entropy, mean over the batch, with dropout and `config.augment`.
    """

    def loss(params, batch_stats, batch, rng):
        logits_NC, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            training_images(batch, rng, augment),
            train=True,
            positions_N=batch["position"],
            rngs=streams(rng, batch["position"]),
            mutable=["batch_stats"],
        )
        losses_N = training_losses(logits_NC, batch, rng, augment)
        return losses_N.mean(), (logits_NC, updated.get("batch_stats", {}))

    return loss


def make_train_step(
    model: Any,
    optimizer: optax.GradientTransformation,
    axis_name: str | None = None,
    augment: Mapping[str, Any] = OFF,
):
    """Returns `train_step(state, batch, rng) -> (state, TrainMetrics)`.

    `batch` holds `crops` (N, 1, H, W, C), uint8, `label` (N,) and `position` (N,), int32: the
    example's position in the epoch; with mixup `crops` (N, 2, H, W, C), those of the example and of
    its partner, and `partner_label`. `rng` is the epoch's key; what an example draws depends on it
    and on the example's position alone.

    With `model.norm.stats_pass` `clean` the running statistics come from a second pass over the
    batch, with the same weights but no dropout. Without dropout there is no second pass.
    """
    passes_twice = model.norm.stats_pass == "clean" and model.dropout_rate > 0
    loss_of = make_loss(model, augment)
    optimizer = optax.with_extra_args_support(optimizer)  # some take the loss, as `value`

    def train_step(state: TrainState, batch, rng):
        (loss, (logits_NC, batch_stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            state.params, state.batch_stats, batch, rng
        )
        error_rate = of_labels(partial(is_wrong, logits_NC), batch, rng, augment).mean()
        if passes_twice:
            _, updated = model.clone(dropout_rate=0.0).apply(
                state.variables, training_images(batch, rng, augment), train=True,
                positions_N=batch["position"], rngs=streams(rng, batch["position"]),
                mutable=["batch_stats"],
            )  # fmt: skip
            batch_stats = updated.get("batch_stats", {})
        model.norm.check_statistics(state.batch_stats, batch_stats)
        if axis_name is not None:
            # The statistics are equal already, unless each device takes its own
            # (`per_device_stats`): then their mean is kept.
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
            step=new_state.step,
            # A gradient that is not finite leaves a mean square that is not.
            finite=jnp.isfinite(loss) & all_finite(new_state),
        )
        return new_state, metrics

    return train_step


def mean_over_devices(tree, axis_name: str):
    """Returns each array's mean in its own dtype: a count of updates stays an integer."""
    return jax.tree.map(lambda mean, x: mean.astype(x.dtype), lax.pmean(tree, axis_name), tree)


def all_finite(tree):
    """Whether all numbers of a tree of arrays are finite."""
    # A maximum with a NaN is a NaN, and cheaper than testing each number. Starting a hundred
    # reductions would cost most, so arrays of one shape share one.
    of_shape: dict[tuple[int, ...], list] = {}
    for leaf in jax.tree.leaves(tree):
        of_shape.setdefault(leaf.shape, []).append(jnp.abs(leaf).astype(jnp.float32))
    largest = [jnp.max(reduce(jnp.maximum, arrays), initial=0) for arrays in of_shape.values()]
    return (jnp.stack(largest) < jnp.inf).all()


def make_eval_step(model: Any, axis_name: str | None = None, flips: bool = False):
    """Returns `eval_step(variables, batch) -> (EvalMetrics, moments)`.

    `batch` holds `crops` (N, K, H, W, C), the K crops of each example, `label` and `mask` (1 for an
    example, 0 for padding), (N,) each. `moments` are those of each layer's output, by layer. With
    `flips` the mirror image of each crop is evaluated, too.
    """

    def eval_step(variables, batch):
        label_N, mask_N = batch["label"], batch["mask"]
        crops = batch["crops"]
        crops = jnp.concatenate([flip(crops), crops], axis=1) if flips else crops
        probabilities_NKC, updated = _predict(model, variables, crops, ["intermediates"])
        probabilities_NC = probabilities_NKC.mean(axis=1)
        of_label_N = jnp.take_along_axis(probabilities_NC, label_N[:, None], axis=1)[:, 0]
        metrics = measured(
            EvalMetrics,
            axis_name,
            # A probability can round to 0; its logarithm must stay finite.
            loss=-jnp.log(jnp.maximum(of_label_N, jnp.finfo(jnp.float32).tiny)),
            error_rate=is_wrong(probabilities_NC, label_N),
            mask=mask_N,
        )
        weights = jnp.repeat(mask_N, crops.shape[1])
        outputs = layer_activations(updated, "output")
        return metrics, {layer: Moments.of(x, weights, axis_name) for layer, x in outputs.items()}

    return eval_step


def make_predict_step(model: Any, flips: bool = False):
    """Returns `predict_step(variables, crops_NKHWC) -> probabilities_NC`.

    The mean over an example's crops of the softmax outputs, by `variables`; with `flips` over their
    mirror images, too.
    """

    def predict_step(variables, crops_NKHWC):
        if flips:
            crops_NKHWC = jnp.concatenate([flip(crops_NKHWC), crops_NKHWC], axis=1)
        probabilities_NKC, _ = _predict(model, variables, crops_NKHWC, [])
        return probabilities_NKC.mean(axis=1)

    return predict_step


def _predict(model: Any, variables, crops_NKHWC, mutable: list[str]):
    """Returns the softmax outputs (N, K, classes) and the collections `mutable`."""
    images = crops_NKHWC.reshape(-1, *crops_NKHWC.shape[2:])
    logits, updated = model.apply(variables, to_intensities(images), train=False, mutable=mutable)
    return jax.nn.softmax(logits).reshape(*crops_NKHWC.shape[:2], -1), updated


def is_wrong(scores_NC, label_N):
    """1 for each example whose highest score is not its label's, otherwise 0; float32."""
    return (scores_NC.argmax(-1) != label_N).astype(jnp.float32)
