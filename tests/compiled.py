"""Compiles a run's programs for devices that this machine does not have, and describes them.

python -m tests.compiled COMPILERS h100 train '{"norm": "full", "dtype": "bfloat16"}' '{}'
python -m tests.compiled COMPILERS v5e:2x2 train,evaluate '{}'

COMPILERS is a folder with the wheels `jax-cuda12-pjrt` and `libtpu`, see .ci/run; the GPU's also
needs ptxas on the PATH. The program has the published size and batch; each of the last arguments
changes fields of `config.model`. Prints a line of JSON for each. Nothing runs: convolutions become
the same calls as on the device, but their speed is not known.
"""

import itertools
import json
import os
import re
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# A third of the time, to a program that is somewhat slower.
os.environ["JAX_OPTIMIZATION_LEVEL"] = "O1"
os.environ["XLA_FLAGS"] = "--xla_gpu_autotune_level=0 " + os.environ.get("XLA_FLAGS", "")

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from bn_vgg.devices import AXIS, Devices
from bn_vgg.programs import Programs
from configs import meanonly_crop

_GPU_PLUGIN = "jax_plugins/xla_cuda12/xla_cuda_plugin.so"
# 20,000 photographs for training, 150x150, and the steps of a chunk.
_PIXELS, _STEPS = 20_000 * 150 * 150 * 3, 10


class Elsewhere(Devices):
    """Devices of another machine, to compile for."""

    def __init__(self, devices):
        self.devices, self.count = devices, len(devices)
        self.axis_name = AXIS if self.count > 1 else None

    def compile(self, function):
        if self.axis_name is None:
            return jax.jit(function)
        return jax.pmap(function, AXIS, devices=self.devices)

    def replicate(self, tree):
        return tree

    def shapes(self, tree):
        """Returns what programs are lowered with, for arrays of one device."""
        if self.axis_name is None:
            sharding = SingleDeviceSharding(self.devices[0])
            return jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
            )
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((self.count, *x.shape), x.dtype), tree)


def find_devices(compilers: Path, name: str):
    """Returns the devices: one `h100`, or those of a TPU topology such as `v5e:2x2`."""
    if name != "h100":
        os.environ["TPU_LIBRARY_PATH"] = str(compilers / "libtpu" / "libtpu.so")
        os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}
        chips = [int(side) for side in name.partition(":")[2].split("x")]
        return topologies.get_topology_desc(
            name, platform="tpu", chips_per_host_bounds=[*chips, 1]
        ).devices
    from jax._src import xla_bridge

    xla_bridge.register_plugin("cuda", library_path=str(compilers / _GPU_PLUGIN))
    described = Path(__file__).with_name("h100.txtpb").read_text()
    return topologies.get_topology_desc(
        "h100", platform="cuda", target_config=described, topology="1x1x1"
    ).devices


def compile_program(devices, program: str, changes: dict):
    """Compiles a chunk of `train` or `evaluate`; returns it and a device's examples of a batch."""
    config = meanonly_crop.get_config()
    config.model.update(changes)
    elsewhere, side = Elsewhere(devices), config.data.crop_size
    own = config.batch_size // elsewhere.count
    programs = Programs(config.to_dict(), elsewhere, 200)
    # Initialization needs no other devices, and has no mapped axis.
    init = Programs(config.to_dict(), Elsewhere(devices[:1]), 200).init
    key, image = jax.random.key(0), jnp.zeros((1, side, side, 3))
    state = jax.eval_shape(init, key, image)

    def of(dtype, *shape):
        return jax.ShapeDtypeStruct((_STEPS, own, *shape), dtype)

    crops = 1 if program == "train" else 5
    if devices[0].platform == "tpu":  # whose images are on the host
        batches, pixels = {"crops": of(np.uint8, crops, side, side, 3)}, None
    else:
        batches = {"crop_start": of(np.int32, crops), "row_stride": of(np.int32, crops)}
        pixels = jax.ShapeDtypeStruct((_PIXELS,), np.uint8)
    batches["label"] = of(np.int32)
    if program == "train":
        batches["position"] = of(np.int32)
        arguments = (state, programs.empty_training), jax.eval_shape(lambda: key)
        function = programs.train_chunk
    else:
        batches |= {"mask": of(np.float32)}
        arguments = programs.empty_evaluation, state.variables
        function = programs.eval_chunk
    return function.lower(*elsewhere.shapes((*arguments, batches, pixels))).compile(), own


def convolutions(text: str) -> dict[str, list[list[int]]]:
    """Finds cuDNN's calls: by function, the channels of both operands and of the result."""
    shapes = dict(re.findall(r"%?([\w.-]+) = \(?(\w+\[[\d,]*\])", text))
    found: dict[str, list[list[int]]] = {}
    pattern = (
        r"= \((\w+\[[\d,]*\]).*? custom-call\(([^)]*)\).*dim_labels=(\w+)_(\w+)->(\w+).*"
        r'custom_call_target="__cudnn\$(\w+)"'
    )
    for result, operands, *labels, function in re.findall(pattern, text):
        names = [name.strip().split(" ")[-1].lstrip("%") for name in operands.split(",")]
        channels = []
        for shape, of in zip([shapes[names[0]], shapes[names[1]], result], labels, strict=True):
            sizes = [int(size) for size in re.findall(r"\d+", shape.partition("[")[2])]
            channels += [sizes[of.index(letter)] for letter in "fi" if letter in of]
        found.setdefault(function, []).append(channels)
    return found


def describe(compiled, examples: int) -> dict:
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()  # a GPU's is None
    return {
        "convolutions": convolutions(compiled.as_text()),
        "gib": (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**30,
        # XLA counts a loop's body once, whatever the number of turns.
        "mb_moved_per_example": cost and cost["bytes accessed"] / examples / 1e6,
    }


if __name__ == "__main__":
    folder, name, programs, *models = sys.argv[1:]
    of_device = find_devices(Path(folder), name)
    for program, changes in itertools.product(programs.split(","), map(json.loads, models)):
        print(json.dumps(describe(*compile_program(of_device, program, changes))), flush=True)
