"""Tiny sets for TFDS to prepare; importing them registers them."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from tests.image_files import encode

# Of different sizes, so that a mix-up shows. Grey values, because the images are of one colour.
GREYS = {"Cat/0.png": 10, "Cat/1.png": 50, "Dog/0.png": 90, "Dog/1.png": 130, "Dog/2.png": 170}


def png(grey, mode="RGB", width=8):
    return io.BytesIO(encode(Image.new("RGB", (width, 6), (grey,) * 3).convert(mode)))


class _Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    FEATURES: tfds.features.FeaturesDict
    SUPERVISED: tuple | None = ("image", "label")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=self.FEATURES, supervised_keys=self.SUPERVISED
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield from ()


class TinyPets(_Tiny):
    """As cats_vs_dogs: one split, file names."""

    FEATURES = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(),
            "image/filename": tfds.features.Text(),
            "label": tfds.features.ClassLabel(names=["cat", "dog"]),
        }
    )

    def _generate_examples(self):
        for name, grey in GREYS.items():
            image = png(grey, "L" if grey == 50 else "RGB", width=grey)
            label = name[:3].lower()
            yield name, {"image": image, "image/filename": f"PetImages/{name}", "label": label}


class TinySplits(_Tiny):
    """Two splits, one more that is to be ignored, an unknown label, other feature names."""

    FEATURES = tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "photo": tfds.features.Image(shape=(None, None, 1)),
            "kind": tfds.features.ClassLabel(num_classes=3),
        }
    )
    SUPERVISED = ("photo", "kind")

    def _split_generators(self, dl_manager):
        return {
            split: self._generate_examples(split) for split in ("train", "test", "unsupervised")
        }

    def _generate_examples(self, split):
        for label in (-1, 0, 1, 2):
            # An array, as cifar10 has it: TFDS encodes it.
            photo = np.full((4, 5, 1), 40 * (label + 1) + len(split), np.uint8)
            yield label, {"id": f"{split}{label}", "photo": photo, "kind": label}


class TinyBroken(_Tiny):
    """Holds what is no image."""

    FEATURES = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(names=["a", "b"])}
    )
    SUPERVISED = None

    def _generate_examples(self):
        yield 0, {"image": io.BytesIO(b"rubbish"), "label": "a"}


class TinyTexts(_Tiny):
    FEATURES = tfds.features.FeaturesDict(
        {"text": tfds.features.Text(), "label": tfds.features.ClassLabel(names=["a", "b"])}
    )
    SUPERVISED = ("text", "label")


class TinyUnlabelled(_Tiny):
    FEATURES = TinyBroken.FEATURES

    def _generate_examples(self):
        yield 0, {"image": png(0), "label": -1}
