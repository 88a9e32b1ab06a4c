"""Registry of networks.

A network is a Flax module with a field `norm`, a `NormFactory`, and a field `dropout_rate`, which
is set to 0 where statistics are taken without dropout; `bn_vgg.models.vgg` has an example.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from bn_vgg.models.norms import make_norm_factory
from bn_vgg.models.vgg import VGG

MODELS: dict[str, type[nn.Module]] = {"vgg8": VGG}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
# Of products of float32 numbers. Unless `HIGHEST` is asked for, TPUs round the factors to bfloat16
# and NVIDIA's GPUs to TensorFloat-32, whose significands have 11 bits instead of 24.
PRECISIONS = {"highest": lax.Precision.HIGHEST, "tensorfloat32": lax.Precision.HIGH}


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
    axis_name: str | None = None,
    name: str = "vgg8",
    **network: Any,
) -> Any:
    """Builds the network from the fields of `config.model`, which configs/default.py explains.

    `axis_name` is the mapped axis over which devices share a batch, None under plain `jit`.
    `network` are the fields of the class in `MODELS`.

    Raises:
      UserError: as `make_norm_factory`.
    """
    factory = make_norm_factory(
        norm, norm_kwargs, momentum=norm_decay, epsilon=norm_epsilon, average=stats_average,
        stats_pass=stats_pass, axis_name=None if per_device_stats else axis_name,
        dtype=DTYPES[dtype],
    )  # fmt: skip
    precision_used = PRECISIONS[precision] if dtype == "float32" else None
    return MODELS[name](norm=factory, dtype=DTYPES[dtype], precision=precision_used, **network)
