"""Checks a configuration before any work is done."""

import json
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict

from bn_vgg.data.pipeline import PLACEMENTS
from bn_vgg.errors import UserError, wrap_errors
from bn_vgg.models import DTYPES, PRECISIONS, make_model
from bn_vgg.models.batch_norm import AVERAGES
from bn_vgg.models.layers import PADDINGS, layer_activations, rng_streams
from bn_vgg.models.lookup import wrap_plugin_errors
from bn_vgg.models.norms import STATS_PASSES
from bn_vgg.optimizer import make_optimizer
from bn_vgg.run_dir import KWARGS, flatten
from bn_vgg.steps import needs_precise_stats

# A predicate of valid values, and its description.
_Kind = tuple[Callable[[Any], bool], str]


def _integer(low: int, high: int) -> _Kind:
    # `isinstance` would accept booleans; NumPy numbers cannot be written as JSON.
    return lambda x: type(x) is int and low <= x <= high, f"an integer from {low} to {high}"


def _number(low: float, below: float) -> _Kind:
    description = f"a number from {low:.3g} to less than {below:.3g}"
    return lambda x: type(x) in (int, float) and low <= x < below, description


def _one_of(names: Collection[str]) -> _Kind:
    return lambda x: isinstance(x, str) and x in names, f"one of {', '.join(names)}"


_TEXT: _Kind = lambda x: isinstance(x, str) and len(x) <= 4096, "a string"
_BOOL: _Kind = lambda x: isinstance(x, bool), "True or False"
_DICT: _Kind = lambda x: isinstance(x, dict), "a dict"
_SIZE = _integer(1, 2**31 - 1)[0]
_SIZES: _Kind = (
    lambda x: isinstance(x, list) and 0 < len(x) <= 100 and all(map(_SIZE, x)),
    "positive integers, 100 at most",
)
_FRACTION, _NON_NEGATIVE, _COUNT = _number(0, 1), _number(0, 10**6), _integer(1, 10**6)
# The range of float32.
_POSITIVE = _number(float(jnp.finfo("float32").tiny), float(jnp.finfo("float32").max))

# All fields, by the kind of their values.
_KINDS: list[tuple[_Kind, str]] = [
    (_TEXT, "name variant data.source init.weights model.name model.norm optimizer.name "
     "schedule.name"),
    (_DICT, " ".join(KWARGS)),
    (_BOOL, "init.statistics model.per_device_stats augment.horizontal_flip eval.flips debug.nans "
     "optimizer.bias_correction"),
    (_FRACTION, "model.norm_decay model.dropout_rate augment.colour_jitter "
     "augment.label_smoothing optimizer.decay optimizer.average_decay"),
    (_NON_NEGATIVE, "augment.mixup optimizer.weight_decay optimizer.clip_norm "
     "schedule.warmup_epochs resources.CPU resources.GPU resources.TPU"),
    (_POSITIVE, "model.norm_epsilon optimizer.learning_rate optimizer.epsilon"),
    (_integer(0, 2**32 - 1), "seed"),
    (_COUNT, "num_epochs batch_size eval.batch_size"),
    (_integer(1, 4096), "data.min_side data.crop_size"),
    (_integer(0, 10**9 - 1), "augment.cutout eval.precise_examples checkpoint.every_steps"),
    (_integer(1, 10**9 - 1), "data.valid_examples data.test_examples model.hidden_units "
     "eval.compared_examples"),
    (_integer(2, 10**9 - 1), "model.num_classes"),
    (_SIZES, "model.features"),
    (_one_of(PLACEMENTS), "data.placement"),
    (_one_of(AVERAGES), "model.stats_average"),
    (_one_of(STATS_PASSES), "model.stats_pass"),
    (_one_of(PADDINGS), "model.padding"),
    (_one_of(DTYPES), "model.dtype"),
    (_one_of(PRECISIONS), "model.precision"),
    (_one_of(("running", "precise")), "eval.statistics"),
]  # fmt: skip
_FIELDS = {field: kind for kind, fields in _KINDS for field in fields.split()}
# The settings that need recomputed statistics.
_PRECISE = "config.eval.statistics=precise and config.optimizer.average_decay need"


def check_config(config: dict[str, Any]) -> None:
    """Checks a nested configuration: its fields, their values, and the network they describe."""
    flat = flatten(config, fields=_FIELDS)
    for field, (fits, wanted) in _FIELDS.items():
        if field not in flat:
            raise UserError(f"config.{field} is missing; it takes {wanted}")
        if not fits(flat[field]):
            raise UserError(f"config.{field} is {_shown(flat[field])}; it takes {wanted}")
    for field in flat:
        if field not in _FIELDS:
            raise UserError(f"config.{field} has no check: remove it, or add it to {__file__}")
    name, side, min_side = (flat[x] for x in ("name", "data.crop_size", "data.min_side"))
    if name in ("", ".", "..") or "/" in name or not name.isprintable() or len(name.encode()) > 200:
        raise UserError(f"config.name is {_shown(name)}; it takes the name of a folder")
    if side > min_side:
        raise UserError(
            f"config.data.crop_size is {side}, which is more than config.data.min_side, {min_side}"
        )
    if (flat["model.precision"], flat["model.dtype"]) == ("tensorfloat32", "bfloat16"):
        raise UserError(
            "config.model.precision: tensorfloat32 is for float32, not config.model.dtype bfloat16"
        )
    for field, value in flat.items():
        try:
            json.dumps(value, allow_nan=False)  # for config.json
        except (TypeError, ValueError, RecursionError) as error:
            shown = f"config.{field} is {_shown(value)}"
            raise UserError(f"{shown}: JSON cannot hold that: {error}") from error
    make_optimizer(config, steps_per_epoch=1000)
    model = make_model(**config["model"])
    precise = needs_precise_stats(config) and model.norm.has_averages
    if precise and not flat["eval.precise_examples"]:
        raise UserError(f"config.eval.precise_examples is 0, but {_PRECISE} some")
    if flat["model.norm_kwargs"] or flat["model.name"] != "vgg8" or ":" in flat["model.norm"]:
        _try_network(config, model)
    if ":" in flat["optimizer.name"]:
        _try_optimizer(config, model)


def _try_network(config: dict[str, Any], model: Any) -> None:
    """Traces training passes, to find errors of user-defined normalizers and networks early."""
    side, count = config["data"]["crop_size"], config["batch_size"]
    norm, wanted = model.norm, ("float32", (count, config["model"]["num_classes"]))

    def apply(images_NHWC):
        # Created while tracing: outside, it would initialize the backend before hosts connect.
        positions_N = jnp.arange(count)
        rngs = {"params": jax.random.key(0), **rng_streams(jax.random.key(0), positions_N)}
        variables = model.init(rngs, images_NHWC, train=False)
        kept = {name: variables[name] for name in ("params", "batch_stats") if name in variables}
        factories = [norm]
        if norm.has_averages and config["eval"]["precise_examples"]:  # a traced momentum
            factories.append(norm.with_momentum(images_NHWC.mean()))
        for factory in factories:
            logits, seen = model.clone(norm=factory).apply(
                kept, images_NHWC, train=True, positions_N=positions_N, rngs=rngs,
                mutable=["batch_stats", "intermediates"],
            )  # fmt: skip
            layer_activations(seen, "output")
        return jnp.asarray(logits), kept.get("batch_stats", {}), seen.get("intermediates", {})

    name, field = (f"config.model.{x}={config['model'][x]}" for x in ("name", "norm"))
    settings = (f"{x}={_shown(config['model'][x])}" for x in ("norm_kwargs", "kwargs"))
    with (
        wrap_errors(f"{field} in {name} fails with {' and '.join(settings)}"),
        wrap_plugin_errors("config.model.name", config["model"]["name"], type(model)),
    ):
        logits, statistics, seen = jax.eval_shape(
            apply, jax.ShapeDtypeStruct((count, side, side, 3), jnp.float32)
        )
    if (found := (str(logits.dtype), logits.shape)) != wanted:
        raise UserError(f"{name} returns {found[0]}{found[1]}, not {wanted[0]}{wanted[1]}")
    norms = [path[:-1] for path in flatten_dict(seen) if path[-1] == "before_norm"]
    if not norms and norm.name != "none":
        raise UserError(f"{name} uses no method of its `norm`: set config.model.norm=none")
    paths = flatten_dict(statistics)
    own = [path for path in paths if not any(path[: len(each)] == each for each in norms)]
    if needs_precise_stats(config) and statistics and (own or not norm.has_averages):
        raise UserError(
            f"{_PRECISE} all running statistics to be those of normalizers with a momentum; "
            f"{name} with {field} has others"
        )


def _try_optimizer(config: dict[str, Any], model: Any) -> None:
    """Traces an update, to find errors of user-defined optimizers early."""
    optimizer = optax.with_extra_args_support(make_optimizer(config, steps_per_epoch=1000))
    side = config["data"]["crop_size"]

    def update():
        images_NHWC = jnp.zeros((1, side, side, 3))
        params = model.init(jax.random.key(0), images_NHWC, train=False)["params"]
        value = images_NHWC.mean()
        return optimizer.update(params, optimizer.init(params), params, value=value)[1]

    field = f"config.optimizer.name={config['optimizer']['name']}"
    with wrap_errors(f"{field} fails with kwargs={_shown(config['optimizer']['kwargs'])}"):
        state = jax.eval_shape(update)

    def is_free(x):
        return isinstance(x, optax.contrib.ScheduleFreeState)

    if any(map(is_free, jax.tree.leaves(state, is_leaf=is_free))):
        raise UserError(f"{field}: schedule-free optimizers are not supported")
    if any(jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) for x in jax.tree.leaves(state)):
        raise UserError(f"{field}: checkpoints cannot store its state, which has a JAX PRNG key")


def _shown(value) -> str:
    try:
        text = repr(value)
    except Exception as error:  # a huge integer, or a user-defined object
        text = f"<{type(value).__name__}: {error}>"
    return text if len(text) <= 200 else f"{text[:200]}…"
