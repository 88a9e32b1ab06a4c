"""A run in this process, from its configuration to its result: what `main` and sweeps start."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import logging
from ml_collections import ConfigDict

import bn_vgg
from bn_vgg import checkpoint, cli, multihost, provenance, train
from bn_vgg.data import cache as image_cache
from bn_vgg.data.batches import num_train_batches
from bn_vgg.data.prepared import PreparedData, prepare
from bn_vgg.errors import UserError
from bn_vgg.feed import batches_per_dispatch
from bn_vgg.hooks import Hooks
from bn_vgg.parallel import check_precision
from bn_vgg.programs import Session
from bn_vgg.run_dir import Workdir, flatten


def launch(
    config: ConfigDict,
    path: str,
    *,
    cache_folder: Path,
    session: Session | None = None,
    say: Callable[[str], None] = cli.say,
    tensorboard: bool = True,
    profile: bool = False,
) -> dict[str, Any]:
    """Makes a run, goes on with it, or finds it finished.

    Args:
      config: checked.
      path: of the working directory.
      cache_folder: where decoded images and compiled programs are kept.
      session: shared with other runs of this process.
      say: shows a line to a person; on the first host alone.
      tensorboard: whether to write its files, which imports TensorFlow.
      profile: whether to trace a few steps for it; the run has to have enough.

    Returns:
      What `result.json` holds.

    Raises:
      UserError: the data, the working directory or the devices do not suit, hosts disagree
        about them, the configuration or the code, or as `train`.
    """
    is_first, several = jax.process_index() == 0, jax.process_count() > 1
    say = say if is_first else logging.info
    cli.keep_compiled(cache_folder)
    check_precision(config.model.precision, jax.default_backend())
    if several:
        multihost.agree(flatten({"config": config.to_dict(), "code": _code(config)}))
    workdir = Workdir(path, writes=is_first)
    with workdir.locked():
        data = prepare_data(config, cache_folder, quiet=not is_first)
        if several:
            multihost.agree(flatten({"data": data.about, "workdir": _kept(workdir)}))
        multihost.start()
        norm_digest = provenance.norm_digest(config.model.norm)
        workdir.claim(config.to_dict(), data.about, norm_digest)
        multihost.check_shared(workdir.path / "config.json")
        finished = train.finished_result(config, workdir)
        if finished is not None:
            say(f"this run is finished: see {workdir.path}/result.json")
            return finished
        cli.log_to_file(workdir.path / "log.txt" if is_first else None)
        hooks = Hooks(say=say)
        steps_per_epoch = num_train_batches(len(data.splits.train), config.batch_size)
        if profile:
            _check_enough_to_profile(steps_per_epoch, config.num_epochs)
        if tensorboard and is_first:
            from bn_vgg import writers as board  # imports TensorFlow, which costs seconds

            hooks = board.make_hooks(
                hooks,
                workdir.path,
                path.removeprefix("runs/"),
                num_steps=steps_per_epoch * config.num_epochs,
                profile=profile,
            )
        return train.train(config, workdir, data, hooks, session)


def _check_enough_to_profile(steps_per_epoch: int, num_epochs: int) -> None:
    dispatches = num_epochs * -(-steps_per_epoch // batches_per_dispatch(steps_per_epoch))
    if dispatches < 4:
        raise UserError(
            "--profile traces steps in the middle of a run, and this one is too short: it has "
            f"{num_epochs * steps_per_epoch}, in {dispatches} dispatches, of which 4 are needed; "
            "more --config.num_epochs have more"
        )


def prepare_data(config: ConfigDict, cache_folder: Path, *, quiet: bool = False) -> PreparedData:
    """Opens the decoded images of a configuration, making them if need be, and splits them.

    Args:
      config: checked.
      cache_folder: where decoded images are kept.
      quiet: whether to show no progress.

    Raises:
      UserError: the data cannot be read, or do not suit the configuration.
    """
    images = image_cache.open_or_build(
        config.data.source, min_side=config.data.min_side, folder=cache_folder, quiet=quiet
    )
    return prepare(images, config)


def _code(config: ConfigDict) -> dict[str, Any]:
    """What computes a run, which has to be the same on all hosts."""
    return {
        "version": bn_vgg.__version__,
        "digest": provenance.digest("bn_vgg"),
        "commit": provenance.commit(),
        "norm": provenance.norm_digest(config.model.norm),
        "versions": provenance.versions(),
        "backend": jax.default_backend(),
        "local_devices": jax.local_device_count(),
    }


def _kept(workdir: Workdir) -> dict[str, Any]:
    """What of a run is there to go on with, as this host sees it."""
    folder = workdir.checkpoints
    return {"checkpoints": checkpoint.steps(folder), "finished": workdir.exists("result.json")}
