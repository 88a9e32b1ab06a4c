"""The Python API, imported as `import bn_vgg`; the README has an example."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from bn_vgg import checkpoint, cli, config_file, launch, provenance
from bn_vgg.config import check_config
from bn_vgg.data.cache import choose_folder
from bn_vgg.data.crops import five_crops
from bn_vgg.data.images import scale_shorter_side, upright_rgb
from bn_vgg.errors import UserError, wrap_errors
from bn_vgg.models import make_model as _make_model
from bn_vgg.optimizer import make_optimizer
from bn_vgg.run_dir import Workdir
from bn_vgg.steps import TrainState, predict
from bn_vgg.steps import init_state as _init_state
from bn_vgg.steps import make_train_step as _make_train_step

# Images that `predict` processes at once.
PREDICT_BATCH_SIZE = 100


def get_config(name: str) -> ConfigDict:
    """Returns the configuration of a cell (`meanonly_crop:demo`) or a file (`my_config.py:small`).

    Raises:
      UserError: there is no such file or variant.
    """
    cell, colon, variant = name.partition(":")
    if not cell.endswith(".py"):
        # Not `configs` in the current folder, which may be another project's.
        cell = f"{Path(__file__).resolve().parents[1] / 'configs' / cell}.py"
    return config_file.load_config([f"--config={cell}{colon}{variant}"])


def train(
    config: ConfigDict,
    workdir: str | Path,
    *,
    cache_dir: str | Path | None = None,
    tensorboard: bool = False,
) -> dict[str, Any]:
    """Trains a run to its end, or finds it finished. Returns the content of `result.json`.

    `cache_dir` is for decoded images, see `choose_folder`. Raises the errors of `launch.train`.
    """
    check_config(config.to_dict())
    folder = choose_folder(str(cache_dir) if cache_dir else None)
    return launch.train(
        config, str(workdir), cache_folder=folder, say=logging.info, tensorboard=tensorboard
    )


def make_model(config: ConfigDict) -> Any:
    """Builds a configuration's network for one device; a UserError if it is invalid."""
    check_config(config.to_dict())
    return _make_model(**config.to_dict()["model"])


def init_state(
    config: ConfigDict, model: Any, key: jax.Array, images_NHWC: Any = None
) -> TrainState:
    """Returns the initial state for `make_train_step`, with weights drawn from `key`.

    Normalizers that initialize from data need `images_NHWC`, a training batch's intensities from 0
    to 1.
    """
    side, optimizer = config.data.crop_size, make_optimizer(config.to_dict(), steps_per_epoch=200)
    if images_NHWC is None:
        if model.norm.initializes_from_data:
            raise UserError(f"config.model.norm={model.norm.name} needs data: give images_NHWC")
        images_NHWC = jnp.zeros((1, side, side, 3))
    return _init_state(model, optimizer, key, images_NHWC)


def make_train_step(config: ConfigDict, model: Any):
    """Returns the training step for one device, see `steps.make_train_step`.

    Schedules assume 200 updates in an epoch, as with the 20,000 training photographs. Products
    within an optimizer have JAX's default precision; in a run they have `config.model.precision`.
    """
    settings = config.to_dict()
    optimizer = make_optimizer(settings, steps_per_epoch=200)
    return _make_train_step(model, optimizer, augment=settings["augment"])


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A trained network: model, a checkpoint's state (NumPy arrays) and configuration."""

    model: Any
    state: TrainState
    config: dict[str, Any]
    class_names: list[str]
    step: int

    def predict(self, images: Sequence[Any]) -> np.ndarray:
        """Returns class probabilities by five-crop evaluation, (N, classes), float32.

        `images` are N PIL images or arrays (H, W, 3) of uint8, of any sizes.
        """
        return self.predict_crops([self.crops(image) for image in images])

    def crops(self, image: Any) -> np.ndarray:
        """Scales an image and cuts its five crops: (5, crop_size, crop_size, 3), uint8."""
        from PIL import Image

        if not isinstance(image, Image.Image):
            image = Image.fromarray(np.asarray(image))
        scaled = scale_shorter_side(upright_rgb(image), self.config["data"]["min_side"])
        return five_crops(np.asarray(scaled), self.config["data"]["crop_size"])

    def predict_crops(self, crops: Sequence[np.ndarray]) -> np.ndarray:
        """Returns class probabilities, (N, classes), of N images' five crops each."""
        found = [np.zeros((0, len(self.class_names)), np.float32)]
        for first in range(0, len(crops), PREDICT_BATCH_SIZE):
            some = np.stack(crops[first : first + PREDICT_BATCH_SIZE])
            # Padded to one shape, so that it is compiled once.
            padded = np.resize(some, (PREDICT_BATCH_SIZE, *some.shape[1:]))
            found.append(np.asarray(self._predict(padded))[: len(some)])
        return np.concatenate(found)

    @functools.cached_property
    def _predict(self) -> Callable[[np.ndarray], jax.Array]:
        variables = jax.device_put(self.state.eval_variables)
        flips = self.config["eval"]["flips"]
        step = jax.jit(lambda v, crops: predict(self.model, v, crops, flips)[0].mean(axis=1))
        return functools.partial(step, variables)


def load(workdir: str | Path, which: str = "best") -> TrainedModel:
    """Reads the checkpoint of a run's `best` epoch, or its `latest` one.

    Raises:
      UserError: there is no run or no checkpoint yet, or it is damaged or cannot be read.
    """
    if which not in ("best", "latest"):
        raise UserError(f"which must be best or latest, not {which!r}")
    cli.quiet_libraries()
    run = Workdir(str(workdir), writes=False)
    run.check_format()
    config, class_names = run.read("config.json"), run.read("data.json")["class_names"]
    steps = checkpoint.list_steps(run.checkpoints)
    if which == "best":  # an epoch's line is written before its checkpoint
        lines = [line for line in run.read_metrics() if line["step"] in steps]
        steps = [line["step"] for line in sorted(lines, key=lambda x: x["valid/error_rate"])]
    if not steps:
        raise UserError(f"{workdir} has no checkpoint yet: the first comes after an epoch")
    # Only GPUs have TensorFloat-32, but a network that was trained with it runs anywhere.
    precision_override = {} if jax.default_backend() == "gpu" else {"precision": "highest"}
    with wrap_errors(f"{workdir}/config.json does not fit this version of the code"):
        model = _make_model(**config["model"] | precision_override)
        side, optimizer = config["data"]["crop_size"], make_optimizer(config, steps_per_epoch=1000)
        like = jax.eval_shape(
            lambda: _init_state(model, optimizer, jax.random.key(0), jnp.zeros((1, side, side, 3)))
        ).with_precise_stats(config, model)
    old = run.read("format.json").get("user_code", {})
    for name, digest in provenance.user_code(config).items():
        if old.get(name, digest) != digest:
            logging.warning("the code of %s has changed since the run in %s", name, workdir)
    progress, state = checkpoint.read(run.checkpoints, steps[0], like)
    if state.precise_stats and progress.within_epoch is not None:
        raise UserError(
            f"{workdir} has no precise statistics at step {steps[0]}, within an epoch: resume the "
            "run, or take the best epoch"
        )
    return TrainedModel(model, state, config, class_names, steps[0])
