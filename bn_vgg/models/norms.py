"""The plug for normalizers: their names, and anybody's own by `package.module:ClassName`.

A normalizer stands between a convolution and its ReLU. It is a linen module, or a function
that returns one, and Flax's own fit as they are. What counts is which names it uses:

  * fields (or the function's parameters) named `momentum`, `epsilon`, `axis_name`, `dtype`
    and `average` are set from the configuration, all others from `config.model.norm_kwargs`;
  * `__call__` takes `x`, (N, H, W, C), and returns the same shape in the network's dtype.
    It is also given, where its signature names them:
      `use_running_average`  False in training, True in evaluation;
      `mean_of_x`            a function that computes x's mean for each channel, (C,),
                             without a pass over x, or None where there is no such way;
  * what it carries from batch to batch it keeps in the collection `batch_stats`; of statistics
    called `mean` and `var`, (C,), the lens says how far they lag;
  * `replaces_bias = True`  makes the convolution in front drop its bias (unsaid, a field
    `use_bias` decides, as Flax's normalizers have it);
  * `has_activation = True`  leaves out the ReLU behind it;
  * `initializes_from_data = True`  has `init` called with a batch of training images;
  * a method `kernel(kernel_33IO)`  returns what the convolution uses for its weights.

`axis_name` is that of the mapped axis whose devices share a batch. It is set only where
`use_running_average` is taken: statistics of single examples must not cross devices. What takes
that one and has no `axis_name` is refused on several devices, whose statistics would be several.
"""

import contextlib
import dataclasses
import difflib
import importlib
import inspect
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax

from bn_vgg.errors import UserError, described
from bn_vgg.models.batch_norm import FullBatchNorm, GhostBatchNorm, MeanOnlyBatchNorm
from bn_vgg.models.batch_renorm import BatchRenorm
from bn_vgg.models.example_norm import FilterResponseNorm, GroupNorm, InstanceNorm, LayerNorm
from bn_vgg.models.weight_norm import WeightNorm, WeightNormMeanOnly


class NoNorm(nn.Module):
    """Leaves its input as it is: the control of every comparison."""

    def __call__(self, x_NHWC):
        """Returns `x_NHWC`."""
        return x_NHWC


NORMALIZERS: dict[str, type[nn.Module]] = {
    "none": NoNorm,
    "mean_only": MeanOnlyBatchNorm,
    "full": FullBatchNorm,
    "ghost": GhostBatchNorm,
    "batch_renorm": BatchRenorm,
    "weight_norm": WeightNorm,
    "weight_norm_mean_only": WeightNormMeanOnly,
    "group": GroupNorm,
    "layer": LayerNorm,
    "instance": InstanceNorm,
    "filter_response": FilterResponseNorm,
}
# Of `__call__`, besides x.
_GIVEN = ("use_running_average", "mean_of_x")
# What others call the first of them. With a default it would be that one in training as well.
_OTHER_MODES = ("train", "training", "is_training", "deterministic")


@dataclasses.dataclass(frozen=True)
class NormFactory:
    """Makes one normalizer per layer, so that blocks never see a name or a setting.

    Attributes:
      name: as the configuration has it.
      build: the class or function.
      settings: what it is called with, besides a module's `name`.
      replaces_bias: whether the convolution in front drops its bias.
      has_activation: whether it takes the place of the ReLU.
      initializes_from_data: whether `init` needs a real batch.
      given: which of `use_running_average` and `mean_of_x` it is called with.
    """

    name: str
    build: Callable[..., nn.Module]
    settings: Mapping[str, Any]
    replaces_bias: bool
    has_activation: bool
    initializes_from_data: bool
    given: tuple[str, ...]

    def make(self) -> nn.Module:
        """Makes one; within a module's `__call__` it becomes its submodule `norm`."""
        return self.build(**self.settings, name="norm")

    @property
    def averages(self) -> bool:
        """Whether it keeps running averages, of weight `momentum`."""
        return "momentum" in self.settings

    def with_momentum(self, momentum) -> "NormFactory":
        """Returns one of the same normalizers with another weight of the old value."""
        return dataclasses.replace(self, settings={**self.settings, "momentum": momentum})

    def normalize(self, module: nn.Module, x_NHWC, **offered):
        """Calls `module`, made here, with what it takes of `offered`.

        Raises:
          UserError: it fails, or returns another shape or dtype than `x_NHWC` has.
        """
        given = {name: offered[name] for name in self.given}
        if self.name in NORMALIZERS:
            return module(x_NHWC, **given)
        with _naming(self.name, self.build):
            y = module(x_NHWC, **given)
        found, wanted = (
            (getattr(a, "shape", None), getattr(a, "dtype", None)) for a in (y, x_NHWC)
        )
        if found != wanted:
            raise UserError(
                f"config.model.norm={self.name} returned shape {found[0]} and dtype {found[1]} "
                f"for an input of shape {wanted[0]} and dtype {wanted[1]}; they must be the same"
            )
        return y

    def kernel_of(self, module: nn.Module) -> Callable[[jax.Array], jax.Array] | None:
        """Returns `module.kernel`, which makes a convolution's weights; None where there is none.

        It raises a UserError where it fails, or returns another shape than it was given.
        """
        own = getattr(module, "kernel", None)
        if own is None or self.name in NORMALIZERS:
            return own

        def kernel(kernel_33IO):
            with _naming(self.name, self.build):
                weights = own(kernel_33IO)
            shape = getattr(weights, "shape", None)
            if shape != kernel_33IO.shape:
                raise UserError(
                    f"config.model.norm={self.name}: its kernel() returned shape {shape} for "
                    f"weights of shape {kernel_33IO.shape}; they must be the same"
                )
            return weights

        return kernel

    def check_statistics(self, before, after) -> None:
        """Raises a UserError where a training step makes other arrays of the statistics.

        Args:
          before: the collection `batch_stats`.
          after: the same, after the step.
        """
        if self.name in NORMALIZERS:
            return
        old, new = (
            {jax.tree_util.keystr(path, simple=True, separator="/"): (x.shape, x.dtype)
             for path, x in jax.tree_util.tree_leaves_with_path(tree)}
            for tree in (before, after)
        )  # fmt: skip
        for path in sorted(old.keys() | new.keys()):
            if old.get(path) != new.get(path):
                was, became = (
                    "missing" if path not in of else f"{of[path][1]}{list(of[path][0])}"
                    for of in (old, new)
                )
                raise UserError(
                    f"config.model.norm={self.name}: batch_stats/{path} is {became} after a "
                    f"training step and was {was} before; they must be the same"
                )


def make_norm_factory(
    norm: str,
    *,
    norm_kwargs: Mapping[str, Any],
    decay: float,
    epsilon: float,
    average: str,
    axis_name: str | None,
    dtype: Any,
) -> NormFactory:
    """Looks up `norm` and binds the settings that it has fields for.

    Args:
      norm: a name in `NORMALIZERS`, or `package.module:ClassName`.
      norm_kwargs: the normalizer's own settings.
      decay: weight of the old value in running statistics (Flax's `momentum`).
      epsilon: added to a variance before its square root.
      average: of what second running statistics are averages, `variance` or `stdev`.
      axis_name: mapped axis over which statistics are shared, or None.
      dtype: of the normalizer's result.

    Raises:
      UserError: there is no such normalizer, it cannot be imported, it is none, or it does
        not take `norm_kwargs`.
    """
    build = _find(norm)
    with _naming(norm, build):
        takes = _parameters(build)
    settings = {"momentum": decay, "epsilon": epsilon, "dtype": dtype, "average": average}
    own = [name for name in takes if name not in (*settings, "axis_name", "name", "parent")]
    unknown = sorted(set(norm_kwargs) - set(own), key=str)
    if unknown:
        raise UserError(
            f"config.model.norm_kwargs: {norm} takes no {unknown[0]!r}; "
            f"it takes: {', '.join(own) or 'nothing'}"
        )
    bound = {name: value for name, value in settings.items() if name in takes} | {**norm_kwargs}
    with _naming(norm, build):
        example = build(**bound)
    if not isinstance(example, nn.Module):
        raise UserError(f"config.model.norm={norm} is no normalizer: it makes no linen module")
    given = _given(norm, example)
    if "use_running_average" in given:
        if "axis_name" in takes:
            bound["axis_name"] = axis_name
        elif axis_name is not None:
            raise UserError(
                f"config.model.norm={norm} names no axis_name (a field, or a function's "
                "parameter): with several devices each would take statistics of its own share of "
                "the batch; give it one, for jax.lax.pmean, or set "
                "config.model.per_device_stats=true"
            )
    return NormFactory(
        name=norm,
        build=build,
        settings=bound,
        replaces_bias=getattr(example, "replaces_bias", getattr(example, "use_bias", False)),
        has_activation=getattr(example, "has_activation", False),
        initializes_from_data=getattr(example, "initializes_from_data", False),
        given=given,
    )


def _find(norm: str) -> Callable[..., nn.Module]:
    if norm in NORMALIZERS:
        return NORMALIZERS[norm]
    module_name, colon, attribute = norm.partition(":")
    if not colon:
        raise UserError(
            f"config.model.norm: no {norm!r}; {_guess(norm)}there are: {', '.join(NORMALIZERS)}, "
            "and your own as package.module:ClassName"
        )
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever the module's own code raises
        raise UserError(
            f"config.model.norm={norm}: cannot import {module_name}: {described(error)}"
        ) from error
    build = getattr(module, attribute, None)
    if not callable(build):
        there = [name for name, value in vars(module).items() if _is_module_class(value)]
        raise UserError(
            f"config.model.norm={norm}: {module_name} has no {attribute!r} that could be called; "
            f"its linen modules are: {', '.join(there) or 'none'}"
        )
    return build


def _guess(norm: str) -> str:
    """Suggests what a name stands for that is not quite one of ours."""
    known = {name.replace("_", ""): name for name in NORMALIZERS}
    known |= {"batch": "full", "bn": "full", "identity": "none"}
    plain = norm.lower().replace("_", "").replace("-", "")
    for name in (plain.removesuffix("alization").removesuffix("norm"), plain):
        if close := difflib.get_close_matches(name, known, n=1, cutoff=0.8):
            return f"did you mean {known[close[0]]}? "
    return ""


def _is_module_class(value) -> bool:
    return inspect.isclass(value) and issubclass(value, nn.Module)


def _parameters(build: Callable) -> list[str]:
    """The names that may be passed to `build`."""
    if dataclasses.is_dataclass(build):
        return [field.name for field in dataclasses.fields(build) if field.init]
    return list(inspect.signature(build).parameters)


def _given(norm: str, example: nn.Module) -> tuple[str, ...]:
    """Which of `_GIVEN` the module's `__call__` takes."""
    if not callable(example):
        raise UserError(f"config.model.norm={norm} is no normalizer: it has no __call__")
    parameters = inspect.signature(example.__call__).parameters.values()
    for p in parameters:
        close = difflib.get_close_matches(p.name, _GIVEN[:1], cutoff=0.8)
        if p.name not in _GIVEN and (p.name in _OTHER_MODES or close):
            raise UserError(
                f"config.model.norm={norm}: its __call__ takes {p.name}, which it is never given; "
                "use_running_average is: False in training, True in evaluation"
            )
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in optional]
    others = [name for name in needed[1:] if name not in _GIVEN]
    if not parameters or others:
        wants = f"needs {', '.join(others)}" if others else "takes no x"
        raise UserError(f"config.model.norm={norm} is no normalizer: its __call__ {wants}")
    return tuple(p.name for p in parameters if p.name in _GIVEN)


@contextlib.contextmanager
def _naming(norm: str, build: Callable) -> Iterator[None]:
    """Turns what somebody's own normalizer raises into a UserError that names it."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        try:
            file = inspect.getsourcefile(build)
        except TypeError:  # it is built into Python
            file = None
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
        where = f" in {file}, line {lines[-1]}" if lines else ""
        raise UserError(f"config.model.norm={norm} failed{where}: {described(error)}") from error
