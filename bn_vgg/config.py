"""Checks a configuration before any work is done."""

import itertools
import json
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict

from bn_vgg.data.pipeline import PLACEMENTS
from bn_vgg.errors import UserError, wrap_errors
from bn_vgg.evaluation import PreciseStats, make_precise_step
from bn_vgg.models import DTYPES, PRECISIONS, make_model
from bn_vgg.models.batch_norm import AVERAGES
from bn_vgg.models.layers import PADDINGS, layer_activations
from bn_vgg.models.lookup import wrap_plugin_errors
from bn_vgg.models.norms import STATS_PASSES
from bn_vgg.optimizer import make_optimizer
from bn_vgg.run_dir import KWARGS, flatten
from bn_vgg.steps import init_state, make_train_step, needs_precise_stats

# Numbers: low <= value < high. ml_collections checks the types of the fields of configs/default.py.
_RANGES = [
    (0, 1, "model.norm_decay model.dropout_rate augment.colour_jitter augment.label_smoothing "
     "optimizer.decay optimizer.average_decay"),
    (0, 10**9, "augment.mixup augment.cutout optimizer.weight_decay optimizer.clip_norm "
     "schedule.warmup_epochs eval.precise_examples checkpoint.every_steps resources.CPU "
     "resources.GPU resources.TPU"),
    # The range of float32.
    (float(jnp.finfo("float32").tiny), float(jnp.finfo("float32").max), "model.norm_epsilon "
     "optimizer.learning_rate optimizer.epsilon"),
    (0, 2**32, "seed"),
    (1, 10**9, "num_epochs batch_size eval.batch_size data.min_side data.crop_size "
     "data.valid_examples data.test_examples model.hidden_units eval.compared_examples"),
    (2, 10**9, "model.num_classes"),
]  # fmt: skip
_CHOICES = {
    "data.placement": PLACEMENTS, "eval.statistics": ("running", "precise"),
    "model.stats_average": AVERAGES, "model.stats_pass": STATS_PASSES, "model.padding": PADDINGS,
    "model.dtype": DTYPES, "model.precision": PRECISIONS,
}  # fmt: skip
_NUMBERS = {field: (low, high) for low, high, fields in _RANGES for field in fields.split()}
_FIELDS = {
    "name", "variant", "data.source", "init.weights", "init.statistics", "model.name", "model.norm",
    "model.features", "model.per_device_stats", "optimizer.name", "optimizer.bias_correction",
    "schedule.name", "eval.flips", "augment.horizontal_flip", "debug.nans",
    *_NUMBERS, *_CHOICES, *KWARGS,
}  # fmt: skip


def check_config(config: dict[str, Any]) -> None:
    """Checks a nested configuration: its fields, their ranges, and the network they describe."""
    flat = flatten(config, fields=KWARGS)
    if unset := [field for field, value in flat.items() if value is None]:
        raise UserError(f"config.{unset[0]} is None: give it a value")
    if unknown := flat.keys() - _FIELDS:
        raise UserError(f"config.{min(unknown)} has no check: remove it, or add it to {__file__}")
    if missing := _FIELDS - flat.keys():
        raise UserError(f"config.{min(missing)} is missing")
    for field, (low, high) in _NUMBERS.items():
        if not low <= flat[field] < high:
            raise UserError(
                f"config.{field} is {flat[field]!r}; it takes a number from {low:.3g} to less than "
                f"{high:.3g}"
            )
    for field, names in _CHOICES.items():
        if flat[field] not in names:
            wanted = ", ".join(names)
            raise UserError(f"config.{field} is {flat[field]!r}; it takes one of {wanted}")
    if not all(isinstance(x, int) and x > 0 for x in flat["model.features"] or [0]):
        raise UserError("config.model.features: it takes positive integers")
    name, side, min_side = (flat[x] for x in ("name", "data.crop_size", "data.min_side"))
    if name in ("", ".", "..") or "/" in name or not name.isprintable() or len(name.encode()) > 200:
        raise UserError(f"config.name is {name!r}; it takes the name of a folder")
    if side > min_side:
        raise UserError(
            f"config.data.crop_size is {side}, which is more than config.data.min_side, {min_side}"
        )
    if (flat["model.precision"], flat["model.dtype"]) == ("tensorfloat32", "bfloat16"):
        raise UserError(
            "config.model.precision: tensorfloat32 is for float32, not config.model.dtype bfloat16"
        )
    for field, value in flat.items():
        with wrap_errors(f"config.{field} cannot be written to config.json"):
            json.dumps(value, allow_nan=False)
            paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(value)]
            keys = [x.key for x in itertools.chain(*paths) if isinstance(x, jax.tree_util.DictKey)]
        if other := [key for key in keys if not isinstance(key, str)]:
            raise UserError(f"config.{field}: the key {other[0]!r} must be a string, as in JSON")
    optimizer, model = make_optimizer(config, steps_per_epoch=1000), make_model(**config["model"])
    precise = needs_precise_stats(config) and model.norm.has_averages
    if precise and not flat["eval.precise_examples"]:
        raise UserError(
            "config.eval.precise_examples is 0, but config.eval.statistics=precise and "
            "config.optimizer.average_decay need some"
        )
    # It takes a second, which the recipe need not spend.
    plugins = ":" in flat["model.norm"] + flat["optimizer.name"] or flat["model.norm_kwargs"]
    if plugins or flat["model.name"] != "vgg8":
        names = ("model.name", "model.norm", "optimizer.name")
        what = ", ".join(f"config.{x}={flat[x]}" for x in names)
        with wrap_errors(f"no training step can be made with {what}"):
            jax.eval_shape(lambda: _trace_steps(config, model, optimizer))


def _trace_steps(config: dict[str, Any], model: Any, optimizer: Any) -> None:
    """Takes a step of training and one of PreciseBN, to find errors of user-defined code early."""
    side, count = config["data"]["crop_size"], config["batch_size"]
    key, zeros = jax.random.key(0), jnp.zeros(count, jnp.int32)
    batch = {"label": zeros, "partner_label": zeros, "position": zeros}
    batch["crops"] = jnp.zeros((count, 2, side, side, 3), jnp.uint8)
    images = jnp.zeros((count, side, side, 3))
    with wrap_plugin_errors("config.model.name", config["model"]["name"], type(model)):
        variables = model.init(key, images, train=False)
        logits, seen = model.apply(variables, images, train=False, mutable=["intermediates"])
    state = init_state(model, optimizer, key, images)
    name = f"config.model.name={config['model']['name']}"
    wanted = f"float32{(count, config['model']['num_classes'])}"
    if (found := f"{logits.dtype}{logits.shape}") != wanted:
        raise UserError(f"{name} returns {found}, not {wanted}")
    layer_activations(seen, "output")
    sown = flatten_dict(seen.get("intermediates", {}))
    norms = [path[:-1] for path in sown if path[-1] == "before_norm"]
    if not norms and model.norm.name != "none":
        raise UserError(f"{name} does not use its `norm`: set config.model.norm=none")
    _check_statistics(config, model, flatten_dict(state.batch_stats), norms)

    def is_free(x):
        return isinstance(x, optax.contrib.ScheduleFreeState)

    field = f"config.optimizer.name={config['optimizer']['name']}"
    if any(map(is_free, jax.tree.leaves(state.opt_state, is_leaf=is_free))):
        raise UserError(f"{field}: schedule-free optimizers are not supported")
    if any(jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) for x in jax.tree.leaves(state)):
        raise UserError(f"{field}: checkpoints cannot store its state, which has a JAX PRNG key")
    make_train_step(model, optimizer, augment=config["augment"])(state, batch, key)
    if model.norm.has_averages and config["eval"]["precise_examples"]:  # with a traced momentum
        precise = PreciseStats(jnp.zeros(()), state.batch_stats, {})
        make_precise_step(model, augment=config["augment"])(precise, state, batch, key)


def _check_statistics(config: dict[str, Any], model: Any, batch_stats, norms) -> None:
    """Checks running statistics, by path; `norms` are the paths of the network's normalizers."""
    name, norm = (f"config.model.{x}={config['model'][x]}" for x in ("name", "norm"))
    for path, x in batch_stats.items():
        if not hasattr(x, "dtype"):
            raise UserError(
                f"{name} with {norm}: batch_stats/{'/'.join(path)} is of type {type(x).__name__}, "
                "not an array"
            )
    own = [path for path in batch_stats if not any(path[: len(each)] == each for each in norms)]
    if model.norm.has_averages:
        imprecise = config["eval"]["precise_examples"] and own
    else:
        imprecise = needs_precise_stats(config) and batch_stats
    if imprecise:
        raise UserError(
            f"{name} with {norm} has running statistics that cannot be recomputed precisely, "
            "because no normalizer with a momentum keeps them: set config.eval.precise_examples=0, "
            "config.eval.statistics=running and config.optimizer.average_decay=0"
        )
