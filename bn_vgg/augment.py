"""Augmentation of training images and labels inside the step: `config.augment`."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

# The recipe augments only by random crops, which data/crops.py draws.
NO_AUGMENTATION = dict.fromkeys(
    ("horizontal_flip", "colour_jitter", "cutout", "mixup", "label_smoothing"), 0
)
# Folded into the epoch's key, so that augmentation and dropout draw different numbers.
_AUGMENT = 2**31
# Purposes of random numbers, folded into keys. Append new ones, so that the others stay the same.
_FLIP, _COLOUR, _CUTOUT, _MIXUP, _PARTNER = range(5)


def training_images(batch: Mapping[str, Any], rng: jax.Array, settings: Mapping[str, Any]):
    """Returns a training batch's augmented images, intensities from 0 to 1, (N, H, W, C), float32.

    `batch` and `rng` are those of the training step, see `make_train_step`; `settings` is
    `config.augment`.
    """
    images = to_intensities(batch["crops"][:, 0])
    if not any(settings.values()):
        return images  # saves tracing the keys
    keys = _keys(batch, rng)
    images = _augment(images, keys, settings)
    if settings["mixup"]:
        partners = _augment(
            to_intensities(batch["crops"][:, 1]), _fold_in(keys, _PARTNER), settings
        )
        share = mixup_shares(batch, rng, settings)[:, None, None, None]
        images = share * images + (1 - share) * partners
    return images


def training_losses(logits_NC, batch: Mapping[str, Any], rng, settings: Mapping[str, Any]):
    """Returns each example's cross-entropy, (N,), with label smoothing and mixup if configured.

    Label smoothing: Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7.
    """

    def losses(label_N):
        if not settings["label_smoothing"]:
            return optax.softmax_cross_entropy_with_integer_labels(logits_NC, label_N)
        one_hot = jax.nn.one_hot(label_N, logits_NC.shape[-1])
        smooth = optax.smooth_labels(one_hot, settings["label_smoothing"])
        return optax.softmax_cross_entropy(logits_NC, smooth)

    return mix_over_labels(losses, batch, rng, settings)


def mix_over_labels(measure: Callable, batch: Mapping[str, Any], rng, settings: Mapping[str, Any]):
    """Returns `measure(label_N)`, (N,); with mixup its mean over both labels, weighted by share."""
    if not settings["mixup"]:
        return measure(batch["label"])
    share = mixup_shares(batch, rng, settings)
    return share * measure(batch["label"]) + (1 - share) * measure(batch["partner_label"])


def mixup_shares(batch: Mapping[str, Any], rng, settings: Mapping[str, Any]):
    """Draws the weight of each example against its partner, (N,), from Beta(mixup, mixup).

    Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization". The partner is the previous
    example of the batch.
    """
    alpha = settings["mixup"]
    keys = _fold_in(_keys(batch, rng), _MIXUP)
    return jax.vmap(lambda key: jax.random.beta(key, alpha, alpha))(keys)


def to_intensities(images_uint8):
    """Scales 0..255 to 0..1, without subtracting a mean; float32."""
    return images_uint8.astype(jnp.float32) / 255


def flip(images):
    """Mirrors images (..., H, W, C) from left to right."""
    return images[..., ::-1, :]


def _augment(images, keys_N, settings: Mapping[str, Any]):
    if settings["horizontal_flip"]:
        flipped_N = jax.vmap(jax.random.bernoulli)(_fold_in(keys_N, _FLIP))
        images = jnp.where(flipped_N[:, None, None, None], flip(images), images)
    if settings["colour_jitter"]:
        images = jax.vmap(_jitter, (0, 0, None))(
            images, _fold_in(keys_N, _COLOUR), settings["colour_jitter"]
        )
    if settings["cutout"]:
        images = jax.vmap(_cut_out, (0, 0, None))(
            images, _fold_in(keys_N, _CUTOUT), settings["cutout"]
        )
    return images


def _jitter(image_HWC, key, strength: float):
    """Scales brightness, contrast and saturation by factors from 1 - strength to 1 + strength."""
    brightness, contrast, saturation = jax.random.uniform(
        key, (3,), minval=1 - strength, maxval=1 + strength
    )
    image = image_HWC * brightness
    # Not a matrix product, which accelerators would compute with less precision.
    grey = (image * jnp.array([0.299, 0.587, 0.114]).reshape(1, 1, 3)).sum(-1)
    mean = grey.mean()
    image = (image - mean) * contrast + mean
    grey = ((grey - mean) * contrast + mean)[..., None]
    return ((image - grey) * saturation + grey).clip(0, 1)


def _cut_out(image_HWC, key, side: int):
    """Greys out a square, which may extend over the border (DeVries and Taylor 2017)."""
    height, width, _ = image_HWC.shape
    down, across = jax.random.uniform(key, (2,)) * jnp.array([height, width])
    inside_H = jnp.abs(jnp.arange(height) + 0.5 - down) < side / 2
    inside_W = jnp.abs(jnp.arange(width) + 0.5 - across) < side / 2
    return jnp.where((inside_H[:, None] & inside_W[None])[..., None], 0.5, image_HWC)


def _keys(batch: Mapping[str, Any], rng):
    rng = jax.random.fold_in(rng, _AUGMENT)
    return jax.vmap(jax.random.fold_in, (None, 0))(rng, batch["position"])


def _fold_in(keys_N, purpose: int):
    return jax.vmap(jax.random.fold_in, (0, None))(keys_N, purpose)
