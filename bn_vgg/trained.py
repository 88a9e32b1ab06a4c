"""A run's network, read back from its working directory."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bn_vgg.checkpoint import Checkpoints
from bn_vgg.errors import UserError
from bn_vgg.optimizer import rmsprop
from bn_vgg.state import TrainState, init_state
from bn_vgg.vgg import VGG, make_model
from bn_vgg.workdir import Workdir


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

    Raises:
      UserError: there is no run, no checkpoint yet, or it cannot be read.
    """
    workdir = Workdir(path, writes=False)
    config = workdir.read("config.json")
    class_names = workdir.read("data.json")["class_names"]
    if not workdir.checkpoints.exists():
        raise UserError(f"{path} has no checkpoint yet: the first is written after an epoch")
    try:
        model = make_model(**config["model"])
    except TypeError as error:
        raise UserError(f"{path} was written by another version of this code: {error}") from error
    crop = config["data"]["crop_size"]
    like = jax.eval_shape(
        lambda: init_state(
            model, rmsprop(**config["optimizer"]), jax.random.key(0), jnp.zeros((1, crop, crop, 3))
        )
    )
    checkpoints = Checkpoints(workdir.checkpoints)
    try:
        latest = checkpoints.latest_step()
        if latest is None:
            raise UserError(f"{path} has no checkpoint yet: the first is written after an epoch")
        step = checkpoints.progress(latest).best_step if which == "best" else latest
        state = checkpoints.restore(step, like)
    finally:
        checkpoints.close()
    return Trained(model, state, config, class_names, step)
