"""Weights as named arrays, for `export` and for `config.init.weights`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from flax import traverse_util

from bn_vgg.data.files import natural_key
from bn_vgg.errors import UserError, describe_differences, wrap_errors
from bn_vgg.steps import TrainState


def named_arrays(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns arrays named `params/…` and `batch_stats/…`, in the order of the layers."""
    flat = {}
    for collection in ("params", "batch_stats"):
        named = traverse_util.flatten_dict(variables[collection], sep="/")
        for name in sorted(named, key=natural_key):
            flat[f"{collection}/{name}"] = np.asarray(named[name])
    return flat


# PyTorch's names of parameters and running statistics; other names are kept.
_TORCH_NAMES = {
    "kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var",
}  # fmt: skip


def torch_state_dict(
    arrays: Mapping[str, np.ndarray], model: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Returns `named_arrays` as the state_dict of a PyTorch module: `block0.conv.weight`.

    Convolutions become (out, in, height, width), dense layers (out, in). The inputs of `vgg8`'s
    hidden layer, which are flattened feature maps, become (channels, height, width), as PyTorch
    flattens them. In other networks flattened inputs of dense layers keep (height, width,
    channels). `model` is `config.model`.
    """
    converted = {}
    for path, x in arrays.items():
        *modules, name = path.split("/")[1:]
        if name == "kernel" and x.ndim == 4:
            x = x.transpose(3, 2, 0, 1)
        elif name == "kernel" and x.ndim == 2:
            if modules == ["hidden"] and model["name"] == "vgg8":
                by_position = x.reshape(-1, model["features"][-1], x.shape[-1])
                x = by_position.swapaxes(0, 1).reshape(x.shape)
            x = x.T
        converted[".".join([*modules, _TORCH_NAMES.get(name, name)])] = np.ascontiguousarray(x)
    return converted


def load_weights(state: TrainState, path: str, *, statistics: bool) -> TrainState:
    """Replaces the weights of an initial state, and with `statistics` the running statistics.

    `path` is an .npz file of `python -m bn_vgg.export`.

    Raises:
      UserError: it cannot be read, or its arrays are not those of the network.
    """
    if not path.endswith(".npz"):
        raise UserError(f"config.init.weights: {path} is not an .npz file; export to .npz")
    collections = ("params", "batch_stats") if statistics else ("params",)
    with (
        wrap_errors(f"config.init.weights: cannot read {path}"),
        epath.Path(path).expanduser().open("rb") as file,
        np.load(file) as arrays,
    ):
        found = {x: arrays[x] for x in arrays.files if x.startswith(collections)}
    wanted = {x: a for x, a in named_arrays(state.variables).items() if x.startswith(collections)}
    shapes, needed = ({x: str(a.shape) for x, a in of.items()} for of in (found, wanted))
    if not found:
        raise UserError(
            f"config.init.weights: {path} has no array params/…: it takes a file of "
            "python -m bn_vgg.export --layout=flax"
        )
    if differing := describe_differences(shapes, needed):
        raise UserError(f"config.init.weights: in {path} {differing}")
    taken = traverse_util.unflatten_dict(
        {x: found[x].astype(a.dtype) for x, a in wanted.items()}, "/"
    )
    return state.replace(**taken)
