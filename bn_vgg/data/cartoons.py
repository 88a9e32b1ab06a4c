"""Cats and dogs that are drawn, not downloaded: the data of the demo and of the tests.

The classes differ in shape alone (ears, muzzle, pupils, whiskers, tail). Colours, sizes, poses,
backgrounds, clutter and lighting have one distribution for both, and vary so much that a network
has to look at the animal.
"""

import hashlib
import math

import numpy as np
from PIL import Image

from bn_vgg.data.cartoon_animals import Dice, Pen, draw_animal, shift
from bn_vgg.data.source import Record, Source
from bn_vgg.errors import UserError

# Raise it when a change here or in `cartoon_animals` changes a pixel: it is part of cache keys.
VERSION = 1
MAX_IMAGES = 1_000_000
_OVERSAMPLING = 2


def cartoons(num_images: int = 4000) -> Source:
    """Draws cats (even indices) and dogs: RGB, both sides from 35 to 120 pixels.

    Image i is a function of i alone: reads may come in any order and from any thread, and a
    smaller set is the beginning of a larger one.

    Raises:
      UserError: there are not 2 to MAX_IMAGES of them.
    """
    if not 2 <= num_images <= MAX_IMAGES:
        raise UserError(f"cartoons:{num_images}: give at least 2, at most {MAX_IMAGES:,}")
    names = ("cat", "dog")
    # The seed is one of Philox's two keys, see `draw`; the names of caches hold it.
    content = f"cartoons, version {VERSION}, {num_images} images, seed 0"
    return Source(
        description=f"{num_images} cartoons of cats and dogs (seed 0)",
        fingerprint=hashlib.sha256(content.encode()).hexdigest(),
        class_names=names,
        records=[Record(f"{names[i % 2]}/{i // 2}.png", i % 2) for i in range(num_images)],
        read=draw,
    )


def draw(index: int) -> Image.Image:
    """Draws a cat for an even index, a dog for an odd one."""
    dice = Dice(np.random.Philox(key=np.array([0, index], np.uint64)))
    canvas = _background(dice)
    _clutter(dice, canvas, count=dice.pick((0, 1, 2, 3)), largest=0.25)
    draw_animal(dice, canvas, is_dog=index % 2 == 1)
    _clutter(dice, canvas, count=dice.pick((0, 1, 2)), largest=0.13)
    return _light(dice, canvas.reduce(_OVERSAMPLING))


def _background(dice: Dice) -> Image.Image:
    long, aspect = dice.between(60, 120), 1.7 ** dice.between(-0.95, 1)
    width, height = round(long * min(1, aspect)), round(long / max(1, aspect))
    size = width * _OVERSAMPLING, height * _OVERSAMPLING
    first, second = dice.colour(), dice.colour()
    canvas = Image.new("RGB", size, first)
    kind = dice.pick(("plain", "gradient", "clouds", "checkers", "stripes", "lawn", "room"))
    tilt = dice.between(-3, 3) if kind == "stripes" else dice.between(-0.1, 0.1)
    pen = Pen(canvas, np.array(size) / 2, max(size) / 2, tilt)
    cells = 2 if kind == "gradient" else int(dice.between(4, 14))
    if kind in ("gradient", "clouds"):
        noise = np.frombuffer(dice.bytes(3 * cells**2), np.uint8).reshape(cells, cells, 3)
        tiles = noise // 2 + np.array(first, np.uint8) // 2
        canvas = Image.fromarray(tiles).resize(size, Image.Resampling.BILINEAR)
    elif kind == "checkers":
        tiles = np.array([first, second], np.uint8)[np.indices((cells, cells)).sum(axis=0) % 2]
        canvas = Image.fromarray(tiles).resize(size, Image.Resampling.NEAREST)
    elif kind == "stripes":
        for y in np.arange(-1.5, 1.5, 2 / cells):
            pen.line([(-1.5, y), (1.5, y)], second, 1 / cells)
    elif kind in ("lawn", "room"):
        horizon, x, y = dice.between(-0.2, 0.5), dice.between(-1, 0.6), dice.between(-0.8, -0.3)
        pen.polygon([(-2, horizon), (2, horizon), (2, 2), (-2, 2)], second, shift(second, -30))
        if kind == "room":
            window = [(x, y), (x + 0.5, y), (x + 0.5, y + 0.4), (x, y + 0.4)]
            pen.polygon(window, dice.colour(), edge=dice.colour())
        else:
            pen.blob(x, y, dice.between(0.08, 0.3), 0.13, dice.colour())  # a sun or a cloud
    return canvas


def _clutter(dice: Dice, canvas: Image.Image, count: int, largest: float) -> None:
    for _ in range(count):
        origin = dice.between(0, canvas.width), dice.between(0, canvas.height)
        unit = min(canvas.size) * dice.between(0.06, largest)
        pen = Pen(canvas, origin, unit, dice.between(-0.6, 0.6))
        first, second = dice.colour(), dice.colour()
        edge = shift(first, times=0.55)
        kind = dice.pick(("ball", "box", "plant", "text", "tent"))
        if kind == "ball":
            pen.blob(0, 0, 1, 1, first, edge)
            pen.line([(-0.9, 0.2), (0, 0.4), (0.9, 0.2)], second, 0.25)
        elif kind == "box":
            pen.polygon([(-1, -0.7), (1, -0.7), (1, 0.7), (-1, 0.7)], first, edge)
            pen.line([(0, -0.7), (0, 0.7)], second, 0.3)
        elif kind == "plant":
            for angle in (-1.0, -0.5, 0.0, 0.5, 1.0):
                pen.blob(math.sin(angle), -math.cos(angle), 0.25, 0.8, first, edge, angle)
            pen.polygon([(-0.6, 0), (0.6, 0), (0.4, 1), (-0.4, 1)], second, edge)
        elif kind == "text":
            for y in (-0.5, 0, 0.5):
                pen.line([(-1, y), (dice.between(-0.7, 1), y)], first, 0.2)
        else:
            pen.polygon([(-0.8, 0.8), (dice.between(-0.4, 0.4), -1), (0.8, 0.8)], first, edge)


def _light(dice: Dice, image: Image.Image) -> Image.Image:
    pixels = np.array(image, np.float32)
    down, across = (np.arange(side, dtype=np.float32) / side - 0.5 for side in pixels.shape[:2])
    gain, contrast = 1.7 ** dice.between(-1.4, 0.8), dice.between(0.5, 1.2)
    cast = np.array([gain * dice.between(0.8, 1.25) for _ in range(3)], np.float32)
    across, down = 1 + dice.between(-0.4, 0.4) * across, 1 + dice.between(-0.4, 0.4) * down
    pixels = ((pixels - 128) * contrast + 128) * ((down[:, None] * across)[..., None] * cast)
    noise = np.frombuffer(dice.bytes(pixels.size), np.int8).reshape(pixels.shape)
    pixels += noise * np.float32(dice.between(0, 0.16))
    return Image.fromarray(pixels.clip(0, 255, out=pixels).astype(np.uint8))
