"""Starts a run: prepares its data and folder, and checks that all hosts agree.

A run resumes from the first of these that exists; otherwise it begins from the seed:

  1. `result.json` with the requested number of epochs: the run is finished;
  2. the newest intact checkpoint: training continues with the next step. If there are only damaged
     ones, the run is refused.
"""

import contextlib
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

from bn_vgg import checkpoint, cli, loop, multihost, provenance
from bn_vgg.data.cache import open_or_build
from bn_vgg.data.pipeline import Data
from bn_vgg.data.splits import class_counts, split
from bn_vgg.devices import Devices
from bn_vgg.errors import Interrupted, UserError, one_line, wrap_import_errors
from bn_vgg.run_dir import Workdir, flatten
from bn_vgg.writers import TensorBoard


def train(
    config: ConfigDict,
    path: str,
    *,
    cache_folder: Path,
    say: Callable[[str], None] = cli.say,
    tensorboard: bool = True,
    wandb: bool = False,
) -> dict[str, Any]:
    """Trains a run to its end, or finds it finished. Returns the content of `result.json`.

    Args:
      config: a configuration that `check_config` accepts.
      path: the working directory.
      cache_folder: for decoded images and compiled programs.
      say: prints a line; only the first host calls it.
      tensorboard: whether to write TensorBoard files.
      wandb: whether to also send to Weights & Biases what TensorBoard gets.

    Raises:
      UserError: the data, the working directory or the devices do not fit the configuration; hosts
        disagree; a checkpoint cannot be read or written; a number is not finite.
      Interrupted: a signal stopped the run, which has saved its state.
    """
    is_first = jax.process_index() == 0
    say = say if is_first else logging.info
    provenance.pin_jax_settings(config.model)
    if not multihost.is_multiprocess() or jax.default_backend() == "tpu":
        cli.enable_compilation_cache(cache_folder)
    else:
        # JAX writes its cache only in the first process, so the others may have to compile what it
        # reads. On a CPU Gloo times out if they are then half a minute behind; on GPUs the
        # processes share the compilation.
        jax.config.update("jax_enable_compilation_cache", False)
    user_code = provenance.user_code(config.to_dict())
    devices = Devices()
    devices.check(config.batch_size, config.model.precision)
    if multihost.is_multiprocess():
        code: dict[str, Any] = {"commit": provenance.commit(), "versions": provenance.versions()}
        code |= {"backend": jax.default_backend(), "local_devices": jax.local_device_count()}
        code["user_code"] = user_code
        multihost.check_agreement(flatten({"config": config.to_dict(), "code": code}))
    workdir = Workdir(path, writes=is_first)
    checkpoints = workdir.checkpoints  # refuses some paths, before data are prepared
    with workdir.locked():
        data, metadata = load_data(config, cache_folder, devices, quiet=not is_first)
        kept = {
            "checkpoints": checkpoint.list_steps(checkpoints),
            "finished": workdir.exists("result.json"),
        }
        facts = {"data": metadata, "images on the host": data.on_host, "workdir": kept}
        multihost.check_agreement(flatten(facts))
        multihost.expect_compilation()
        workdir.claim(config.to_dict(), metadata, user_code)
        multihost.check_shared(workdir.path / "config.json")
        if workdir.exists("result.json"):
            result = workdir.read("result.json")
            if result["config"]["num_epochs"] == config.num_epochs:
                say(f"this run is finished: see {workdir.path}/result.json")
                return result
        cli.log_to_file(workdir.path / "log.txt" if is_first else None)
        backend = jax.default_backend()
        say(f"{config.name} seed {config.seed} on {devices.count} {backend}, in {workdir.path}")
        say(data.description)
        board, name = None, path.removeprefix("runs/")
        with contextlib.ExitStack() as stack:
            if wandb and is_first:  # before TensorBoard's writer, which it patches
                shown = _wandb_run(config, workdir, name)  # as a context it prints tracebacks
                stack.push(
                    lambda kind, *_: shown.finish(exit_code=int(kind not in (None, Interrupted)))
                )
            if tensorboard and is_first:
                board = TensorBoard(workdir.path, name)
            return loop.Run(config, workdir, data, devices, board, say).train_and_evaluate()


def _wandb_run(config: ConfigDict, workdir: Workdir, name: str) -> Any:
    """Starts or resumes a Weights & Biases run that copies what TensorBoard gets."""
    with wrap_import_errors("wandb"):
        import wandb
    if not workdir.exists("wandb.json"):
        workdir.write("wandb.json", {"id": uuid.uuid4().hex})
    try:
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", "bn_vgg"), group=config.name, name=name,
            config=config.to_dict(), id=workdir.read("wandb.json")["id"], resume="allow",
            dir=None if "://" in str(workdir.path) else str(workdir.path), sync_tensorboard=True,
        )  # fmt: skip
    except wandb.Error as error:
        raise UserError(f"--wandb: {one_line(error)}; or set WANDB_MODE=offline") from error


def load_data(
    config: ConfigDict, cache_folder: Path, devices: Devices, *, quiet: bool = False
) -> tuple[Data, dict[str, Any]]:
    """Opens the cache of decoded images, or builds it, and places the images.

    Returns the data and the content of `data.json`: source, fingerprint, classes, numbers of
    examples.

    Raises:
      UserError: the data cannot be read or do not fit the configuration.
    """
    source, classes = config.data.source, config.model.num_classes
    cache = open_or_build(source, min_side=config.data.min_side, folder=cache_folder, quiet=quiet)
    counts = class_counts(cache.labels, cache.class_names)
    if classes != len(cache.class_names):
        raise UserError(
            f"config.model.num_classes is {classes}, but {source} has {len(cache.class_names)} "
            f"classes ({counts}): if these are what you mean, set "
            f"--config.model.num_classes={len(cache.class_names)}"
        )
    splits = split(
        cache.keys, cache.splits,
        valid_examples=config.data.valid_examples, test_examples=config.data.test_examples,
    )  # fmt: skip
    metadata = {
        "source": source,
        "fingerprint": cache.fingerprint,
        "class_names": cache.class_names,
        "examples": {name: len(indices) for name, indices in splits._asdict().items()},
    }
    data = Data(config.to_dict(), cache, splits, devices)
    data.description += f": {counts}"
    return data, metadata
