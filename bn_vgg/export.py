"""Exports a run's weights as named arrays.

python -m bn_vgg.export --workdir=DIR --output=weights.npz   # or weights.safetensors
python -m bn_vgg.export --workdir=DIR --output=weights.safetensors --layout=torch
"""

import json
from pathlib import Path

import numpy as np
from absl import flags

from bn_vgg import api, cli
from bn_vgg.errors import UserError, wrap_import_errors
from bn_vgg.weights import named_arrays, torch_state_dict

_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "The .npz or .safetensors file.", required=True)
_LAYOUT = flags.DEFINE_enum(
    "layout", "flax", ["flax", "torch"], "Names and axes: Flax's, or a PyTorch state_dict's."
)
_WHICH = flags.DEFINE_enum("which", "best", ["best", "latest"], "Which checkpoint.")


def main() -> None:
    """Runs the command."""
    output = Path(_OUTPUT.value)
    if output.suffix not in (".npz", ".safetensors"):
        raise UserError(f"--output: {output} does not end in .npz or .safetensors")
    run = api.load(_WORKDIR.value, _WHICH.value)
    arrays = named_arrays(run.state.eval_variables)
    images = "N, H, W, C"
    layout = "convolutions (height, width, in, out), dense layers (in, out)"
    if _LAYOUT.value == "torch":
        arrays = torch_state_dict(arrays, run.config["model"])
        images = "N, C, H, W"
        layout = "convolutions (out, in, height, width), dense layers (out, in)"
        if run.config["model"]["name"] != "vgg8":
            layout += "; flattened maps, where there are any, are still (height, width, channels)"
    about = {
        "config": run.config,
        "class_names": run.class_names,
        "checkpoint": _WHICH.value,
        "step": run.step,
        "input": f"RGB from 0 to 1, ({images}); crops of images scaled to config.data.min_side",
        "layout": layout,
        "statistics": "(x - mean) / sqrt(var + config.model.norm_epsilon); without var, x - mean",
    }
    with cli.atomic_write(output) as partial, partial.open("wb") as file:
        if output.suffix == ".npz":
            np.savez(file, **arrays)  # type: ignore[arg-type]
        else:
            with wrap_import_errors("safetensors"):
                from safetensors.numpy import save
            file.write(save(arrays))
    with cli.atomic_write(output.with_suffix(".json")) as partial:
        partial.write_text(json.dumps(about, indent=2) + "\n")
    print(f"{output}: {len(arrays)} arrays of step {run.step}; {output.with_suffix('.json')}")


if __name__ == "__main__":
    cli.run(main)
