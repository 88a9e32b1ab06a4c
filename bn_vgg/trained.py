"""A run's network, read back from its working directory."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging

from bn_vgg import checkpoint, provenance
from bn_vgg.errors import UserError
from bn_vgg.models import make_model
from bn_vgg.models.vgg import VGG
from bn_vgg.optimizer import rmsprop
from bn_vgg.run_dir import Workdir, with_added
from bn_vgg.state import TrainState, init_state


class Trained(NamedTuple):
    """A network with its weights.

    Attributes:
      model: built as the run's configuration says.
      state: of the checkpoint, NumPy arrays.
      config: the run's, nested.
      class_names: one per output.
      step: updates done by the checkpoint.
    """

    model: VGG
    state: TrainState
    config: dict[str, Any]
    class_names: list[str]
    step: int


def load(path: str, which: str = "best") -> Trained:
    """Reads the `best` or the `latest` checkpoint of the run in the folder `path`.

    A damaged latest one is passed over with a warning, as by a run that goes on.

    Raises:
      UserError: there is no run, no checkpoint yet, or it cannot be read; the best one is damaged.
    """
    workdir = Workdir(path, writes=False)
    workdir.check_format()
    config = with_added(workdir.read("config.json"))
    class_names = workdir.read("data.json")["class_names"]
    norm = config["model"]["norm"]
    if workdir.norm_changed(provenance.norm_digest(norm)):
        logging.warning("the file of %s has changed since %s was trained with it", norm, path)
    # TensorFloat-32 is a GPU's alone; what was trained with it can be used anywhere.
    elsewhere = {} if jax.default_backend() == "gpu" else {"precision": "highest"}
    try:
        model = make_model(**config["model"] | elsewhere)
    except TypeError as error:
        raise UserError(f"{path} was written by another version of this code: {error}") from error
    crop = config["data"]["crop_size"]
    like = jax.eval_shape(
        lambda: init_state(
            model, rmsprop(**config["optimizer"]), jax.random.key(0), jnp.zeros((1, crop, crop, 3))
        )
    )
    progress, state, damaged = _newest(workdir, like)
    if which == "best":
        if not progress.best_step:
            raise UserError(
                f"{path} has no best checkpoint yet: it is chosen after an epoch "
                f"(python -m bn_vgg.export --which=latest takes step {progress.step})"
            )
        lines = workdir.read_metrics()
        best = min(lines, key=lambda line: line["valid/error_rate"])["step"] if lines else None
        if best in damaged:
            raise damaged[best]
        progress, state = checkpoint.read(workdir.checkpoints, progress.best_step, like)
    return Trained(model, state, config, class_names, progress.step)


def _newest(
    workdir: Workdir, like: TrainState
) -> tuple[checkpoint.Progress, TrainState, dict[int, checkpoint.DamagedError]]:
    """Reads the newest intact checkpoint. Returns what was wrong with newer ones, too, by step."""
    steps = checkpoint.steps(workdir.checkpoints)
    if not steps:
        raise UserError(f"{workdir.path} has no checkpoint yet: the first comes after an epoch")
    damaged = {}
    for step in steps:
        try:
            found = checkpoint.read(workdir.checkpoints, step, like)
        except checkpoint.DamagedError as error:
            damaged[step] = error
        else:
            for why in damaged.values():
                logging.warning("%s; step %d is the newest that is intact", why, step)
            return *found, damaged
    raise damaged[steps[0]]
