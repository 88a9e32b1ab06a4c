"""Augmentation: what each kind does to an image, and that devices and restarts change nothing."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bn_vgg import augment
from bn_vgg.steps import is_wrong, to_intensities

pytestmark = pytest.mark.usefixtures("quick_compilation")

COUNT, SIDE = 32, 16
ALL = {
    "horizontal_flip": True, "colour_jitter": 0.4, "cutout": 6, "mixup": 0.5,
    "label_smoothing": 0.1,
}  # fmt: skip


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    return {
        "crops": rng.integers(0, 256, (COUNT, 2, SIDE, SIDE, 3), np.uint8),
        "label": rng.integers(0, 2, COUNT, np.int32),
        "partner_label": rng.integers(0, 2, COUNT, np.int32),
        "position": np.arange(COUNT, dtype=np.int32),
    }


def augmented(batch, **settings):
    return augment.training_images(batch, jax.random.key(0), augment.NO_AUGMENTATION | settings)


def test_the_recipe_changes_nothing(batch):
    original = to_intensities(batch["crops"][:, 0])
    np.testing.assert_array_equal(augmented(batch), original)


def test_half_of_the_images_are_mirrored(batch):
    found, original = augmented(batch, horizontal_flip=True), augmented(batch)
    same = (found == original).all((1, 2, 3))
    mirrored = (found == original[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ mirrored).all()
    assert 0.25 < mirrored.mean() < 0.75


def test_a_square_is_greyed_out(batch):
    found, original = augmented(batch, cutout=6), augmented(batch)
    changed = (found != original).any(-1)
    assert (found[changed] == 0.5).all()
    rows, columns = changed.any(2).sum(1), changed.any(1).sum(1)
    np.testing.assert_array_equal(changed.sum((1, 2)), rows * columns)
    assert max(rows.max(), columns.max()) == 6
    assert (rows >= 3).all(), "the middle is inside the image"


def test_colours_are_scaled_within_bounds(batch):
    grey = batch | {"crops": np.full_like(batch["crops"], 100)}
    brightness = augmented(grey, colour_jitter=0.2) / (100 / 255)
    assert np.ptp(brightness, axis=(1, 2, 3)).max() < 1e-5, "grey stays grey"
    factors = brightness[:, 0, 0, 0]
    assert 0.8 <= factors.min() < 0.85
    assert 1.15 < factors.max() <= 1.2
    found = augmented(batch, colour_jitter=0.2)
    assert 0 <= found.min() <= found.max() <= 1


def test_images_and_labels_are_mixed_by_one_share(batch):
    key = jax.random.key(0)
    share = augment.mixup_shares(batch, key, ALL)
    assert 0.3 < share.mean() < 0.7
    assert share.std() > 0.25, "Beta(1/2, 1/2) is widest at its ends: its deviation is 0.35"
    first, second = (to_intensities(batch["crops"][:, k]) for k in range(2))
    weights = share[:, None, None, None]
    expected = weights * first + (1 - weights) * second
    np.testing.assert_allclose(augmented(batch, mixup=0.5), expected, atol=1e-6)
    logits = jax.random.normal(jax.random.key(1), (COUNT, 2))
    labels = (
        share[:, None] * jax.nn.one_hot(batch["label"], 2)
        + (1 - share)[:, None] * jax.nn.one_hot(batch["partner_label"], 2)
    ) * 0.9 + 0.05
    settings = augment.NO_AUGMENTATION | {"mixup": 0.5, "label_smoothing": 0.1}
    losses = augment.training_losses(logits, batch, key, settings)
    expected = optax.softmax_cross_entropy(logits, labels)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-6)
    sure = partial(is_wrong, 20 * jax.nn.one_hot(batch["label"], 2))
    others = share * 0 + (1 - share) * (batch["label"] != batch["partner_label"])
    np.testing.assert_allclose(augment.mix_over_labels(sure, batch, key, ALL), others, atol=1e-6)


def test_what_an_example_draws_is_its_own(batch):
    """By its position and the epoch's key alone: in shares of the batch, and in another order."""
    compiled = jax.jit(lambda batch, key: augment.training_images(batch, key, ALL))
    whole = compiled(batch, jax.random.key(0))
    parts = jax.tree.map(lambda x: x.reshape(4, COUNT // 4, *x.shape[1:]), batch)
    shared = jax.jit(jax.vmap(compiled, (0, None)))(parts, jax.random.key(0))
    np.testing.assert_allclose(shared.reshape(whole.shape), whole, atol=1e-6)
    order = np.random.default_rng(1).permutation(COUNT)
    again = compiled({name: x[order] for name, x in batch.items()}, jax.random.key(0))
    np.testing.assert_allclose(again, whole[order], atol=1e-6)
    assert not jnp.allclose(compiled(batch, jax.random.key(1)), whole, atol=0.1)
