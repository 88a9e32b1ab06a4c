"""Registry of networks, and the interface for user-defined ones.

A network is a Flax module. `config.model.name` names one of `MODELS`, or your own as
`package.module:Class`. `__call__(images_NHWC, *, train, positions_N=None)` returns logits
(N, num_classes), float32; `vgg.py` explains the arguments. Its fields are recognized by name:

  norm              a `NormFactory`: `norm.normalize(x, train=train)` normalizes `x`, or with
                    `conv=layers.Conv(…)` its convolution. Give each a `name` if a module has
                    several;
  dropout_rate      for `layers.Dropout`; it is set to 0 to compute statistics without dropout;
  num_classes       number of outputs;
  dtype, precision  of the computation, for `layers.Conv` and `flax.linen.Dense`;
  axis_name         (optional) for `jax.lax.pmean`, if the network has batch statistics of its own;
                    without it they are those of a device's share of the batch.

All other fields are set from `config.model.kwargs`. A convolution before a normalizer should have
`use_bias=not norm.replaces_bias`, and after `normalize` comes `norm.relu(x)`, because some
normalizers have an activation of their own. A module may call once
`self.sow("intermediates", "output", x)`: every evaluation records the share of its channels that
are never above 0.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from bn_vgg.errors import UserError
from bn_vgg.models.lookup import find_callable, wrap_plugin_errors
from bn_vgg.models.norms import make_norm_factory
from bn_vgg.models.resnet import ResNet
from bn_vgg.models.vgg import VGG

MODELS: dict[str, type[nn.Module]] = {"vgg8": VGG, "resnet": ResNet}
# Fields of `config.model` that only `vgg8`, or a subclass of `VGG`, has.
VGG_FIELDS = ("features", "hidden_units", "padding")
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# Of float32 products and convolutions. By default TPUs round the operands to bfloat16, and NVIDIA
# GPUs to TensorFloat-32 (11 bits of significand instead of 24).
PRECISIONS = {"highest": lax.Precision.HIGHEST, "tensorfloat32": lax.Precision.HIGH}


def is_vgg(build: Any) -> bool:
    """Whether a network is `VGG` or a subclass, which has `VGG_FIELDS`."""
    return isinstance(build, type) and issubclass(build, VGG)


def make_model(
    *,
    norm: str,
    norm_kwargs: Mapping[str, Any],
    norm_decay: float,
    norm_epsilon: float,
    stats_average: str,
    stats_pass: str,
    per_device_stats: bool,
    dtype: str,
    precision: str,
    name: str,
    kwargs: Mapping[str, Any],
    axis_name: str | None = None,
    **common: Any,
) -> Any:
    """Builds the network from the fields of `config.model`, which configs/default.py explains.

    `axis_name` is the mapped axis over which devices share a batch, None under plain `jit`.
    `common` are fields that are passed to the network unchanged.

    Raises:
      UserError: as `make_norm_factory`; or the network does not exist or accept `kwargs`.
    """
    axis_name = None if per_device_stats else axis_name
    factory = make_norm_factory(
        norm, norm_kwargs, momentum=norm_decay, epsilon=norm_epsilon, average=stats_average,
        stats_pass=stats_pass, axis_name=axis_name, dtype=DTYPES[dtype],
    )  # fmt: skip
    build = find_callable("config.model.name", name, MODELS)
    if not is_vgg(build):
        common = {field: value for field, value in common.items() if field not in VGG_FIELDS}
    common |= {
        "norm": factory, "dtype": DTYPES[dtype], "axis_name": axis_name,
        "precision": PRECISIONS[precision] if dtype == "float32" else None,
    }  # fmt: skip
    with wrap_plugin_errors("config.model.name", name, build):
        takes = list(inspect.signature(build).parameters)
    if missing := set(common) - set(takes) - {"axis_name"}:
        raise UserError(f"config.model.name: {name} has no field {min(missing)}")
    own = [x for x in takes if x not in (*common, "parent", "name")]
    if unknown := sorted(set(kwargs) - set(own), key=str):
        raise UserError(
            f"config.model.kwargs: {name} takes no {unknown[0]!r}; "
            f"it takes: {', '.join(own) or 'nothing'}"
        )
    with wrap_plugin_errors("config.model.name", name, build):
        return build(**{x: common[x] for x in takes if x in common}, **kwargs)
