"""The drawn cats and dogs: repeatable, varied, and told apart by their shape alone."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from bn_vgg.data import cartoons as drawings
from bn_vgg.data import sources
from bn_vgg.data.cartoons import cartoons, draw
from bn_vgg.errors import UserError

NUM_FITTED, NUM_HELD_OUT = 600, 400


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [draw(i) for i in range(NUM_FITTED + NUM_HELD_OUT)]


def test_records_are_balanced_and_a_smaller_set_begins_a_larger_one():
    source, larger = sources.open_source("cartoons:11"), cartoons(12)
    assert source.class_names == ("cat", "dog")
    assert [record.label for record in source.records] == [0, 1] * 5 + [0]
    assert source.records[:3] == [("cat/0.png", 0, ""), ("dog/0.png", 1, ""), ("cat/1.png", 0, "")]
    assert larger.records[:11] == source.records
    assert larger.fingerprint != source.fingerprint
    assert len(sources.open_source("cartoons").records) == 4000
    for spec in ("cartoons:1", "cartoons:1000001"):
        with pytest.raises(UserError, match="give at least 2, at most 1,000,000"):
            sources.open_source(spec)


def test_pixels_do_not_depend_on_the_thread_or_the_order(images):
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(draw, reversed(range(40))))
    assert [image.tobytes() for image in reversed(drawn)] == [x.tobytes() for x in images[:40]]
    assert len({image.tobytes() for image in images}) == len(images)


def test_the_version_names_these_pixels(images):
    # Mean grey levels drawn with Pillow 13 by version 1; other releases may round a few edges.
    means = [np.asarray(image.convert("L")).mean() for image in images[:8]]
    assert drawings.VERSION == 1
    np.testing.assert_allclose(
        means,
        [91.7, 129.5, 161.0, 57.6, 126.1, 69.7, 79.9, 161.7],
        atol=0.5,
        err_msg="The drawings changed: raise cartoons.VERSION, then put the new values here.",
    )


def test_images_vary_in_size_shape_light_and_colour(images):
    sides = np.array([image.size for image in images])
    assert 35 <= sides.min() < 45
    assert 110 < sides.max() <= 120
    # Uniform in the logarithm: as many upright images as wide ones.
    assert 0.4 < np.mean(sides[:, 0] > sides[:, 1]) < 0.6
    means = np.array([np.asarray(image).mean(axis=(0, 1)) for image in images])
    assert means.mean(axis=1).std() > 25
    assert (means.max(axis=1) - means.min(axis=1)).std() > 10


def held_out_accuracy(features: np.ndarray) -> float:
    """Fits least squares with a small ridge to alternating labels and scores what is left."""
    features = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-6)
    design = np.hstack([features, np.ones((len(features), 1))])
    target = np.where(np.arange(len(design)) % 2, 1.0, -1.0)
    fitted, ridge = design[:NUM_FITTED], 5 * np.eye(design.shape[1])
    weights = np.linalg.solve(fitted.T @ fitted + ridge, fitted.T @ target[:NUM_FITTED])
    return np.mean((design[NUM_FITTED:] @ weights > 0) == (target[NUM_FITTED:] > 0))


def test_colour_brightness_and_size_do_not_tell_the_classes_apart(images):
    def global_features(image):
        pixels = np.asarray(image, np.float64)
        moments = [*pixels.mean(axis=(0, 1)), *pixels.std(axis=(0, 1)), pixels.min(), pixels.max()]
        return [*moments, image.width, image.height, image.width / image.height]

    features = np.array([global_features(image) for image in images])
    # Chance has a standard deviation of 0.025 on 400 images.
    assert held_out_accuracy(features) < 0.58
    # The classifier does find a cue where there is one.
    features[1::2, 0] += 60
    assert held_out_accuracy(features) > 0.7


@pytest.mark.parametrize("side", [4, 16])
def test_a_linear_classifier_of_a_thumbnail_does_not_tell_the_classes_apart(images, side):
    thumbnails = [image.resize((side, side), Image.Resampling.BOX) for image in images]
    features = np.stack([np.asarray(thumbnail, np.float64).ravel() for thumbnail in thumbnails])
    assert held_out_accuracy(features) < 0.6
