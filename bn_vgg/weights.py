"""A network's weights by name: what `export` writes, and what another run can start from."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath
from flax import traverse_util

from bn_vgg.data.files import natural_key
from bn_vgg.errors import UserError, differences, first_line
from bn_vgg.steps import TrainState


def named_arrays(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns `params/…` and `batch_stats/…`, each in the network's order."""
    flat = {}
    for collection in ("params", "batch_stats"):
        named = traverse_util.flatten_dict(variables[collection], sep="/")
        for name in sorted(named, key=natural_key):
            flat[f"{collection}/{name}"] = np.asarray(named[name])
    return flat


def start_from(state: TrainState, path: str, *, statistics: bool) -> TrainState:
    """Replaces a new run's weights, and its running statistics if so wanted, by those of a file.

    `path` is an .npz file of `python -m bn_vgg.export`.

    Raises:
      UserError: it cannot be read, or its arrays are not the network's; they are named.
    """
    collections = ("params", "batch_stats") if statistics else ("params",)
    try:
        with epath.Path(path).expanduser().open("rb") as file, np.load(file) as arrays:
            found = {x: arrays[x] for x in arrays.files if x.startswith(collections)}
    except Exception as error:  # np.load raises half a dozen types
        raise UserError(f"config.init.weights: cannot read {path}: {first_line(error)}") from error
    wanted = {x: a for x, a in named_arrays(state.variables).items() if x.startswith(collections)}
    shapes, needed = ({x: str(a.shape) for x, a in of.items()} for of in (found, wanted))
    if differing := differences(shapes, needed):
        raise UserError(f"config.init.weights: in {path} {differing}")
    taken = traverse_util.unflatten_dict(
        {x: found[x].astype(a.dtype) for x, a in wanted.items()}, "/"
    )
    return state.replace(**taken)
