"""Writes a run's weights as plain arrays.

python -m bn_vgg.export --workdir=DIR --output=weights.npz
"""

import json
from pathlib import Path

import numpy as np
from absl import flags
from flax import traverse_util

from bn_vgg import api, cli
from bn_vgg.data.files import natural_key
from bn_vgg.errors import UserError

_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "The .npz file to write.", required=True)
_WHICH = flags.DEFINE_enum("which", "best", ["best", "latest"], "Which checkpoint.")


def main() -> None:
    """Runs the command."""
    output = Path(_OUTPUT.value)
    if output.suffix != ".npz":
        raise UserError(f"--output: {output} does not end in .npz")
    run = api.load(_WORKDIR.value, _WHICH.value)
    arrays = named_arrays(run.state)
    about = {
        "config": run.config,
        "class_names": run.class_names,
        "checkpoint": _WHICH.value,
        "step": run.step,
    }
    with cli.replacing(output) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    with cli.replacing(output.with_suffix(".json")) as partial:
        partial.write_text(json.dumps(about, indent=2) + "\n")
    print(f"{output}: {len(arrays)} arrays of step {run.step}; {output.with_suffix('.json')}")


def named_arrays(state) -> dict[str, np.ndarray]:
    """Returns `params/…` and `batch_stats/…`, each in the network's order."""
    flat = {}
    for collection in ("params", "batch_stats"):
        named = traverse_util.flatten_dict(getattr(state, collection), sep="/")
        for name in sorted(named, key=natural_key):
            flat[f"{collection}/{name}"] = np.asarray(named[name])
    return flat


if __name__ == "__main__":
    cli.run(main)
