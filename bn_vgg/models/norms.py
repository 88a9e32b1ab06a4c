"""Registry of normalizers, and the interface for user-defined ones.

A normalizer is a Flax module between a convolution and its ReLU. `config.model.norm` names one of
`NORMALIZERS`, or your own as `package.module:Class` (or a function that takes `name` and returns a
module). Flax's own, such as `flax.linen:RMSNorm`, work unchanged. `__call__` takes `x` (N, H, W, C)
and returns the same shape and dtype. Everything else is optional and recognized by its name:

  fields      (or parameters of the function) `momentum` is set from `config.model.norm_decay`,
              `epsilon` from `norm_epsilon`, `average` from `stats_average`, `dtype` from `dtype`,
              `axis_name` by the program; these replace what a partial binds. All others are set
              from `config.model.norm_kwargs`.
              For batch k of precise statistics `momentum` is a traced scalar, 1 - 1/k: call a field
              `momentum` only if each statistic becomes momentum * old + (1 - momentum) * new,
              without bias correction.
  arguments   of `__call__`:
              `use_running_average`   False in training, True in evaluation and `init`;
              `mean_of_x`             a function that returns the per-channel mean of x, (C,),
                                      without a pass over x; None if that is not possible.
  statistics  that persist between batches are float32 arrays in the collection `batch_stats`
              (counts may be integers). The module's own `mean` and `var`, (C,), are compared
              with PreciseBN's at every evaluation.
  randomness  comes from the stream `dropout`, see `layers.rng_streams`.
  attributes  `replaces_bias`         True: the convolution in front has no bias (default: as the
                                      field `use_bias` of Flax's normalizers says);
              `has_activation`        True: no ReLU follows;
              `initializes_from_data` True: `init` is called with a batch of training images.
  methods     `reparametrize(kernel_33IO)`  computes the convolution's weights from its kernel.

`axis_name` is the mapped axis over which devices share a batch, for `jax.lax.pmean`. It is set only
for normalizers that take `use_running_average`: others have statistics of single examples, which
must not be averaged over devices.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bn_vgg.errors import UserError, describe_differences
from bn_vgg.models.batch_norm import BatchRenorm, FullBatchNorm, GhostBatchNorm, MeanOnlyBatchNorm
from bn_vgg.models.filter_response import FilterResponseNorm
from bn_vgg.models.layers import Conv
from bn_vgg.models.lookup import find_callable, wrap_plugin_errors
from bn_vgg.models.weight_norm import WeightNorm, WeightNormMeanOnly


class NoNorm(nn.Module):
    """y = x: the control of every comparison."""

    def __call__(self, x):
        """Returns `x`."""
        return x


NORMALIZERS: dict[str, Callable[..., nn.Module]] = {
    "none": NoNorm,
    "mean_only": MeanOnlyBatchNorm,
    "full": FullBatchNorm,
    "ghost": GhostBatchNorm,
    "batch_renorm": BatchRenorm,
    "weight_norm": WeightNorm,
    "weight_norm_mean_only": WeightNormMeanOnly,
    # Wu and He 2018. 10 groups divide the recipe's 20 and 50 channels; the paper's 32 do not.
    "group": partial(nn.GroupNorm, num_groups=10),
    # Ba, Kiros and Hinton 2016: `group` with a single group.
    "layer": partial(nn.LayerNorm, reduction_axes=(1, 2, 3)),
    # Ulyanov, Vedaldi and Lempitsky 2016: `group` with a group for each channel.
    "instance": nn.InstanceNorm,
    "filter_response": FilterResponseNorm,
}
# With dropout, running statistics come from the loss's own pass, or from a second one without
# dropout.
STATS_PASSES = ("dropout", "clean")

_FIELD = "config.model.norm"
_ARGUMENTS = ("use_running_average", "mean_of_x")
# Common names of some of `NORMALIZERS`.
_NORM_ALIASES = {"batch": "full", "bn": "full", "identity": "none"}


@dataclasses.dataclass(frozen=True)
class NormFactory:
    """Makes a network's normalizers, so that networks depend on no particular normalizer."""

    name: str  # `config.model.norm`
    build: Callable[..., nn.Module]  # the module's class, or the function that returns one
    settings: Mapping[str, Any]  # keyword arguments of `build`
    call_arguments: tuple[str, ...]  # the optional arguments that `__call__` takes
    # See the docstring of this file.
    replaces_bias: bool
    has_activation: bool
    initializes_from_data: bool
    stats_pass: str  # one of `STATS_PASSES`

    @property
    def has_averages(self) -> bool:
        """Whether the normalizers keep running averages, with weight `momentum`."""
        return "momentum" in self.settings

    def with_momentum(self, momentum) -> "NormFactory":
        """Returns a factory of the same normalizers with another `momentum`."""
        return dataclasses.replace(self, settings={**self.settings, "momentum": momentum})

    def relu(self, y):
        """Applies a ReLU, unless the normalizer has an activation of its own."""
        return y if self.has_activation else nn.relu(y)

    def normalize(self, x, *, train: bool, conv: Conv | None = None, name: str = "norm"):
        """Normalizes `x`, or the result of `conv(x)`; reports what it normalizes as `before_norm`.

        Call it in a module's `__call__`; the normalizer becomes the submodule `name`. `conv` should
        have a bias unless `replaces_bias`.

        Raises:
          UserError: the normalizer fails, needs `conv`, or returns another shape or dtype.
        """
        norm, mean_of_x = self.build(**self.settings, name=name), None
        if conv is not None:
            reparametrize = partial(self._weights, norm) if hasattr(norm, "reparametrize") else None
            if conv.has_cheap_mean:
                mean_of_x = partial(conv.mean_of_output, x, reparametrize)
            x = conv(x, reparametrize)
        elif hasattr(norm, "reparametrize"):
            raise UserError(f"{_FIELD}={self.name} must follow a convolution")
        norm.sow("intermediates", "before_norm", x)
        offered = {"use_running_average": not train, "mean_of_x": mean_of_x}
        with wrap_plugin_errors(_FIELD, self.name, self.build):
            y = norm(x, **{name: offered[name] for name in self.call_arguments})
        self._check_same("its result", y, x)
        return y

    def _weights(self, norm: Any, kernel_33IO) -> jax.Array:
        with wrap_plugin_errors(_FIELD, self.name, self.build):
            weights = norm.reparametrize(kernel_33IO)
        self._check_same("the result of its reparametrize()", weights, kernel_33IO)
        return weights

    def check_statistics(self, before, after) -> None:
        """Raises a UserError if a step has changed shapes or dtypes in `batch_stats`."""
        self._check_same("after a step batch_stats/", after, before)

    def _check_same(self, what: str, found, wanted) -> None:
        if differing := describe_differences(_types_of(found, what), _types_of(wanted, what)):
            raise UserError(f"{_FIELD}={self.name}: {differing}")


def _types_of(tree, name: str) -> dict[str, str]:
    def path_of(path) -> str:
        return name + jax.tree_util.keystr(path, simple=True, separator="/")

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_of(path): f"{jnp.result_type(x)}{jnp.shape(x)}" for path, x in leaves}


def make_norm_factory(
    norm: str, norm_kwargs: Mapping[str, Any], *, axis_name: str | None, stats_pass: str, **common
) -> NormFactory:
    """Looks up `config.model.norm` and binds the settings for which it has fields.

    `common` are `momentum`, `epsilon`, `average` and `dtype`, which batch_norm.py explains.

    Raises:
      UserError: there is no such normalizer, it cannot be imported, does not fit the interface, or
        does not accept `norm_kwargs`.
    """
    build = find_callable(_FIELD, norm, NORMALIZERS, _NORM_ALIASES)
    with wrap_plugin_errors(_FIELD, norm, build):
        takes = list(inspect.signature(build).parameters)
    own = [name for name in takes if name not in (*common, "axis_name", "name", "parent")]
    unknown = sorted(set(norm_kwargs) - set(own), key=str)
    if unknown:
        raise UserError(
            f"config.model.norm_kwargs: {norm} takes no {unknown[0]!r}; "
            f"it takes: {', '.join(own) or 'nothing'}; config.model sets its other fields"
        )
    settings = {name: value for name, value in common.items() if name in takes} | {**norm_kwargs}
    with wrap_plugin_errors(_FIELD, norm, build):
        example = build(**settings, name="norm")
    call_arguments = _arguments_of(norm, example)
    if "use_running_average" in call_arguments:
        if axis_name is not None and "axis_name" not in takes:
            raise UserError(
                f"{_FIELD}={norm} has no field axis_name for jax.lax.pmean: its statistics would "
                "differ between devices; add one, or set config.model.per_device_stats=true"
            )
        settings |= {"axis_name": axis_name} if "axis_name" in takes else {}
    return NormFactory(
        name=norm,
        build=build,
        settings=settings,
        call_arguments=call_arguments,
        replaces_bias=getattr(example, "replaces_bias", getattr(example, "use_bias", False)),
        has_activation=getattr(example, "has_activation", False),
        initializes_from_data=getattr(example, "initializes_from_data", False),
        stats_pass=stats_pass,
    )


def _arguments_of(norm: str, module) -> tuple[str, ...]:
    """Returns those of `_ARGUMENTS` that the module's `__call__` takes."""
    if not isinstance(module, nn.Module) or not callable(module):
        raise UserError(f"{_FIELD}={norm} does not create a flax.linen module with __call__")
    parameters = list(inspect.signature(module.__call__).parameters.values())
    for p in parameters[1:]:
        needed = p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        # A mode argument with another name and a default would silently never change.
        if p.name not in _ARGUMENTS and (needed or isinstance(p.default, bool)):
            raise UserError(
                f"{_FIELD}={norm}: its __call__ takes {p.name}, which is never passed; it may take "
                "use_running_average (False in training, True in evaluation) and mean_of_x"
            )
    return tuple(p.name for p in parameters if p.name in _ARGUMENTS)
