"""What questions need besides runs' lines: activations with dropout, and times of steps.

Activations: max pooling takes the largest of four values, some scaled up by dropout, so that in
training more comes out of each pooling than in evaluation. A normalizer that divides by its own
statistics undoes that before the next layer; one that only subtracts hands it on.
"""

from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from bn_vgg import trained
from bn_vgg.data import cache as image_cache
from bn_vgg.data.batches import Images, compared_batches, cut_windows
from bn_vgg.data.prepared import prepare
from bn_vgg.models import make_model
from bn_vgg.models.layers import layer_activations
from bn_vgg.models.vgg import VGG
from bn_vgg.steps import to_intensities
from experiments.timing import step_timing

# Five batches with statistics of their own, and seconds on two cores.
NUM_IMAGES = 500
# As the recipe trains: normalization in training mode depends on it.
BATCH_SIZE = 100
MODES = ("training", "evaluation")

# (dropout rate, stats_pass) to time every norm with. With dropout the recipe takes the running
# statistics from a second pass over each batch.
SETTINGS = {
    "without dropout": (0.0, "dropout"),
    "with dropout, one pass": (0.5, "dropout"),
    "with dropout, two passes": (0.5, "clean"),
}
NORMS = ("none", "mean_only", "full")
ROUNDS = 5

Means = dict[str, dict[str, float]]


def measure(path: str, cache_folder: Path) -> Means:
    """Measures a run's latest network on centre windows of its first training images.

    Args:
      path: of the run.
      cache_folder: where decoded images are kept.

    Returns:
      By mode of `MODES` and layer, the mean of the layer's output over images, places and
      channels.

    Raises:
      UserError: the run has no checkpoint, or its data cannot be read.
    """
    run = trained.load(path, "latest")
    data = run.config["data"]
    images = image_cache.open_or_build(
        data["source"], min_side=data["min_side"], folder=cache_folder
    )
    train = prepare(images, run.config).splits.train
    windows = centre_windows(Images.of(images, train), data["crop_size"])
    model = make_model(**run.config["model"] | {"dtype": "float32"})
    return mean_outputs(model, run.state.variables, windows)


def centre_windows(images: Images, crop_size: int) -> np.ndarray:
    """Cuts the centre windows (S, N, crop, crop, 3), uint8, of full batches of images.

    Where there are fewer than a batch, it is of all of them.
    """
    count = min(NUM_IMAGES, len(images.labels))
    batch_size = min(BATCH_SIZE, count)
    plan = compared_batches(
        images, batch_size=batch_size, crop_size=crop_size, count=count - count % batch_size
    )
    cut = cut_windows(images.pixels, plan["first_SNW"], plan["stride_SN"], crop_size)
    return cut[:, :, 0]


def mean_outputs(model: VGG, variables, windows_SNHWC: np.ndarray) -> Means:
    """Averages each layer's output over batches, in both modes; see `measure`."""
    positions_N = np.arange(windows_SNHWC.shape[1], dtype=np.int32)

    @jax.jit
    def of_batch(variables, windows_NHWC, key):
        images = to_intensities(windows_NHWC)
        updated = {}
        _, updated["training"] = model.apply(
            variables, images, train=True, positions_N=positions_N, rngs={"dropout": key},
            mutable=["batch_stats", "intermediates"],
        )  # fmt: skip
        _, updated["evaluation"] = model.apply(
            variables, images, train=False, mutable=["intermediates"]
        )
        return {
            mode: {layer: x.mean() for layer, x in layer_activations(of, "output").items()}
            for mode, of in updated.items()
        }

    keys = jax.random.split(jax.random.key(0), len(windows_SNHWC))
    found = [
        jax.device_get(of_batch(variables, windows, key))
        for windows, key in zip(windows_SNHWC, keys, strict=True)
    ]
    return {
        mode: {layer: float(np.mean([of[mode][layer] for of in found])) for layer in found[0][mode]}
        for mode in MODES
    }


def ratios(means: Means) -> dict[str, float]:
    """Divides each layer's mean in training by that in evaluation, where it is not 0."""
    training, evaluation = (means[mode] for mode in MODES)
    return {layer: training[layer] / mean for layer, mean in evaluation.items() if mean}


def step_seconds(config: ConfigDict) -> dict[str, dict[str, list[float]]]:
    """Times the bare training step at a configuration's size, the norms taking turns.

    Returns:
      Seconds of a step, one of each round, by setting of `SETTINGS` and norm.
    """
    images, labels = step_timing.random_batch(config)
    found = {}
    for setting, (rate, stats_pass) in SETTINGS.items():
        config.model.dropout_rate, config.model.stats_pass = rate, stats_pass
        timed = {}
        for norm in NORMS:
            config.model.norm = norm
            steps = step_timing.dispatch(config, images, labels)
            timed[norm] = step_timing.Timed(steps, step_timing.STEPS)
        step_timing.take_turns(timed.values(), ROUNDS)
        found[setting] = {norm: contender.seconds for norm, contender in timed.items()}
    return found
