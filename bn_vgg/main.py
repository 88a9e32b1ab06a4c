"""Trains a network: python -m bn_vgg.main --config=configs/meanonly_crop.py."""

from pathlib import Path

import jax
from absl import flags, logging
from ml_collections import config_flags

from bn_vgg import command, distributed, train
from bn_vgg.data import cache as image_cache
from bn_vgg.data.batches import num_train_batches
from bn_vgg.data.prepared import prepare
from bn_vgg.hooks import Hooks
from bn_vgg.workdir import Workdir

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The run: a file in configs/, a variant after a colon.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run is kept; runs/<config name>/seed<seed> if not given."
)
_CACHE_DIR = flags.DEFINE_string(
    "cache_dir", None, "Where decoded images are kept; $BN_VGG_CACHE or ~/.cache/bn_vgg."
)
_TENSORBOARD = flags.DEFINE_bool(
    "tensorboard", True, "Write TensorBoard files into the workdir (imports TensorFlow)."
)
_PROFILE = flags.DEFINE_bool("profile", False, "Profile a few steps, for TensorBoard.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "host:port of the first process, of several."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes over all hosts.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "This process's number, from 0.")


def main() -> None:
    """Runs the command."""
    config = command.checked_config(_CONFIG)
    distributed.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    is_first = jax.process_index() == 0
    say = command.say if is_first else logging.info
    folder = Path(_CACHE_DIR.value) if _CACHE_DIR.value else image_cache.default_folder()
    command.keep_compiled(folder)
    images = image_cache.open_or_build(
        config.data.source, min_side=config.data.min_side, folder=folder, quiet=not is_first
    )
    data = prepare(
        images,
        source=config.data.source,
        valid_examples=config.data.valid_examples,
        test_examples=config.data.test_examples,
        num_classes=config.model.num_classes,
        batch_size=config.batch_size,
    )
    path = _WORKDIR.value or f"runs/{config.name}/seed{config.seed}"
    workdir = Workdir(path, writes=is_first)
    workdir.claim(config.to_dict(), data.about)
    if train.finished_result(config, workdir):
        say(f"this run is finished: see {workdir.path}/result.json")
        return
    command.log_to_file(workdir.path / "log.txt" if is_first else None)
    hooks = Hooks(say=say)
    if _TENSORBOARD.value:
        from bn_vgg import tensorboard  # imports TensorFlow, which costs seconds

        steps_per_epoch = num_train_batches(len(data.splits.train), config.batch_size)
        hooks = tensorboard.make_hooks(
            say,
            workdir.path,
            path.removeprefix("runs/"),
            is_first=is_first,
            num_steps=steps_per_epoch * config.num_epochs,
            profile=_PROFILE.value,
        )
    train.train(config, workdir, data, hooks)


if __name__ == "__main__":
    command.run(main)
