"""What dropout does to a run's activations: each layer's mean in training over that in evaluation.

python -m experiments.mechanism RUN [--cache_dir=DIR]

Max pooling takes the largest of four values, some scaled up by dropout, so that in training more
comes out of each pooling than in evaluation. A normalizer that divides by its own statistics undoes
that before the next layer; one that only subtracts hands it on.
"""

import jax
import numpy as np
from absl import flags

from bn_vgg import api, cli
from bn_vgg.data import cache as image_cache
from bn_vgg.data.crops import five_crops
from bn_vgg.data.splits import split
from bn_vgg.models import make_model
from bn_vgg.models.layers import layer_activations
from bn_vgg.models.vgg import VGG
from bn_vgg.steps import to_intensities

# Batches with statistics of their own, of the recipe's size: seconds on two cores.
NUM_BATCHES, BATCH_SIZE = 5, 100

_CACHE_DIR = flags.DEFINE_string("cache_dir", None, "As bn_vgg.main's.")


def main(path: str) -> None:
    """Runs the command: the latest network on centre crops of the first training images."""
    run = api.load(path, "latest")
    data = run.config["data"]
    folder = image_cache.choose_folder(_CACHE_DIR.value)
    images = image_cache.open_or_build(data["source"], min_side=data["min_side"], folder=folder)
    sizes = {name: data[name] for name in ("valid_examples", "test_examples")}
    train = split(images.keys, images.splits, **sizes).train
    batch_size = min(BATCH_SIZE, len(train))
    count = min(NUM_BATCHES, len(train) // batch_size) * batch_size
    # The last of the five is the centre crop.
    crops = np.stack([five_crops(images.image(i), data["crop_size"])[-1] for i in train[:count]])
    model = make_model(**run.config["model"] | {"dtype": "float32"})
    batches = crops.reshape(-1, batch_size, *crops.shape[1:])
    print("| layer | training | evaluation | ratio |\n| --- | --- | --- | --- |")
    for layer, (training, evaluation) in mean_outputs(model, run.state.variables, batches).items():
        # A layer that is never active has no ratio.
        ratio = f"{training / evaluation:.2f}" if evaluation else "-"
        print(f"| {layer} | {training:.3g} | {evaluation:.3g} | {ratio} |")


def mean_outputs(model: VGG, variables, images_SNHWC: np.ndarray) -> dict[str, tuple[float, float]]:
    """Averages each layer's output over batches, places and channels.

    Args:
      model: with dropout or without.
      variables: its parameters and statistics.
      images_SNHWC: S batches of images, uint8.

    Returns:
      By layer, the mean in training mode and that in evaluation mode.
    """
    positions_N = np.arange(images_SNHWC.shape[1], dtype=np.int32)

    @jax.jit
    def of_batch(images_NHWC, key):
        images = to_intensities(images_NHWC)
        _, training = model.apply(
            variables, images, train=True, positions_N=positions_N, rngs={"dropout": key},
            mutable=["batch_stats", "intermediates"],
        )  # fmt: skip
        _, evaluation = model.apply(variables, images, train=False, mutable=["intermediates"])
        outputs = [layer_activations(of, "output") for of in (training, evaluation)]
        return {layer: [output[layer].mean() for output in outputs] for layer in outputs[0]}

    keys = jax.random.split(jax.random.key(0), len(images_SNHWC))
    found = [jax.device_get(of_batch(*each)) for each in zip(images_SNHWC, keys, strict=True)]
    return {layer: tuple(np.mean([of[layer] for of in found], axis=0)) for layer in found[0]}


if __name__ == "__main__":
    cli.run(main, positional=("RUN",))
