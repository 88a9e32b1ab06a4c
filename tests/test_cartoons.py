"""The drawn cats and dogs: repeatable, varied, and told apart by their shape alone."""

import numpy as np
import pytest
from PIL import Image

from bn_vgg.data import cartoons as drawings
from bn_vgg.data import sources
from bn_vgg.data.cartoons import cartoons, draw
from bn_vgg.errors import UserError

NUM_FITTED, NUM_HELD_OUT = 400, 200


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return [draw(i) for i in range(NUM_FITTED + NUM_HELD_OUT)]


def test_records_are_balanced_and_a_smaller_set_begins_a_larger_one(images):
    source, larger = sources.open_source("cartoons:11"), cartoons(12)
    assert source.class_names == ("cat", "dog")
    assert [record.label for record in source.records] == [0, 1] * 5 + [0]
    assert source.records[:3] == [("cat/0.png", 0, ""), ("dog/0.png", 1, ""), ("cat/1.png", 0, "")]
    assert larger.records[:11] == source.records
    assert larger.fingerprint != source.fingerprint
    assert len(sources.open_source("cartoons").records) == 4000
    drawn = [read().tobytes() for read in reversed(list(source.readers()))]
    assert drawn[::-1] == [image.tobytes() for image in images[:11]]
    for spec in ("cartoons:1", "cartoons:1000001"):
        with pytest.raises(UserError, match="give at least 2, at most 1,000,000"):
            sources.open_source(spec)


def test_the_version_names_these_pixels(images):
    # Mean grey levels drawn with Pillow 13 by version 2; other releases may round a few edges.
    means = [np.asarray(image.convert("L")).mean() for image in images[:8]]
    assert drawings.VERSION == 2
    np.testing.assert_allclose(
        means,
        [125.2, 54.2, 57.8, 140.7, 81.9, 167.5, 199.2, 63.6],
        atol=0.5,
        err_msg="The drawings changed: raise cartoons.VERSION, then put the new values here.",
    )


def held_out_accuracy(features: np.ndarray) -> float:
    """Fits least squares with a small ridge to alternating labels and scores what is left."""
    features = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-6)
    design = np.hstack([features, np.ones((len(features), 1))])
    target = np.where(np.arange(len(design)) % 2, 1.0, -1.0)
    fitted, ridge = design[:NUM_FITTED], 5 * np.eye(design.shape[1])
    weights = np.linalg.solve(fitted.T @ fitted + ridge, fitted.T @ target[:NUM_FITTED])
    return np.mean((design[NUM_FITTED:] @ weights > 0) == (target[NUM_FITTED:] > 0))


def test_colour_brightness_and_size_vary_but_do_not_tell_the_classes_apart(images):
    def global_features(image):
        pixels = np.asarray(image, np.float64)
        moments = [*pixels.mean(axis=(0, 1)), *pixels.std(axis=(0, 1)), pixels.min(), pixels.max()]
        return [*moments, image.width, image.height, image.width / image.height]

    features = np.array([global_features(image) for image in images])
    assert features[:, :3].mean(axis=1).std() > 25
    assert np.ptp(features[:, :3], axis=1).std() > 10
    sides = features[:, 8:10]
    assert 35 <= sides.min() < 45
    assert 110 < sides.max() <= 120
    # Chance has a standard deviation of 0.035 on 200 images.
    assert held_out_accuracy(features) < 0.58
    # The classifier does find a cue where there is one.
    features[1::2, 0] += 60
    assert held_out_accuracy(features) > 0.7


def test_a_linear_classifier_of_a_thumbnail_does_not_tell_the_classes_apart(images):
    thumbnails = [image.resize((8, 8), Image.Resampling.BOX) for image in images]
    features = np.stack([np.asarray(thumbnail, np.float64).ravel() for thumbnail in thumbnails])
    assert held_out_accuracy(features) < 0.6
