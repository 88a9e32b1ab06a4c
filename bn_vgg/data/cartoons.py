"""Drawings of cats and dogs, for the demo and the tests.

The classes differ only in shape (ears, muzzle, pupils, whiskers). Colours, sizes, positions,
backgrounds, clutter and light have the same distribution for both.
"""

import hashlib
import random
from functools import partial

import numpy as np
from PIL import Image, ImageDraw

from bn_vgg.data.sources import Record, Source
from bn_vgg.errors import UserError

# Part of cache keys. Increase it when a change here changes a pixel.
VERSION = 2
MAX_IMAGES = 1_000_000

_COATS = ((226, 140, 62), (240, 222, 190), (150, 150, 156), (84, 80, 88), (134, 88, 54))
_PINK, _DARK, _WHITE = (232, 130, 142), (34, 28, 32), (250, 248, 244)


def cartoons(num_images: int = 4000) -> Source:
    """Returns a source of drawn cats (even indices) and dogs: RGB, sides of 35 to 120 pixels.

    Image i depends only on i. Raises a UserError unless there are 2 to MAX_IMAGES images.
    """
    if not 2 <= num_images <= MAX_IMAGES:
        raise UserError(f"cartoons:{num_images}: give at least 2, at most {MAX_IMAGES:,}")
    names = ("cat", "dog")
    content = f"cartoons, version {VERSION}, {num_images} images"
    return Source(
        description=f"{num_images} cartoons of cats and dogs",
        fingerprint=hashlib.sha256(content.encode()).hexdigest(),
        class_names=names,
        records=[Record(f"{names[i % 2]}/{i // 2}.png", i % 2) for i in range(num_images)],
        readers=lambda: (partial(draw, i) for i in range(num_images)),
    )


def draw(index: int) -> Image.Image:
    """Draws a cat for an even index, a dog for an odd one."""
    rng = random.Random(index)
    long, aspect = rng.uniform(60, 120), 1.7 ** rng.uniform(-1, 1)
    size = np.array([round(long * min(1, aspect)), round(long / max(1, aspect))])
    grid = rng.choice(((1, 1), (1, 6), (7, 1), (4, 5), (2, 2), (8, 8)))
    tiles = np.array([_colour(rng), _colour(rng)], np.uint8)[np.indices(grid).sum(axis=0) % 2]
    resampling = rng.choice((Image.Resampling.NEAREST, Image.Resampling.BICUBIC))
    canvas = Image.fromarray(tiles).resize(tuple(size), resampling)
    for _ in range(rng.randrange(5)):  # clutter: tents, boxes and balls
        circle = [rng.uniform(0, side) for side in size], size.min() * rng.uniform(0.06, 0.2)
        corners, turn = rng.choice((3, 4, 20)), rng.uniform(0, 360)
        ImageDraw.Draw(canvas).regular_polygon(circle, corners, turn, _colour(rng), _DARK)
    head = _draw_head(rng, is_dog=index % 2 == 1)
    head = head.crop(head.getbbox())
    extent = size.min() * rng.uniform(0.5, 0.95)
    head.thumbnail((extent, extent))
    head = head.rotate(rng.uniform(-35, 35), Image.Resampling.BICUBIC, expand=True)
    head = head.crop(head.getbbox())
    # Up to an eighth of the head may be outside the image.
    over = np.array(head.size) // 8
    x, y = (round(rng.uniform(-a, b + a)) for a, b in zip(over, size - head.size, strict=True))
    canvas.paste(head, (x, y), head)
    return _apply_lighting(rng, canvas)


def _draw_head(rng: random.Random, is_dog: bool) -> Image.Image:
    head = Image.new("RGBA", (320, 320))
    pen = ImageDraw.Draw(head)

    def oval(x: float, y: float, rx: float, ry: float, colour: tuple[int, ...]) -> None:
        pen.ellipse((x - rx, y - ry, x + rx, y + ry), colour, _DARK, 4)

    coat, second, iris = (_colour(rng, rng.choice(_COATS), 22) for _ in range(3))
    ear, nose, whisker = rng.choice((coat, second)), rng.choice((_PINK, _DARK)), _WHITE
    length, extra_width = rng.uniform(60, 80), rng.uniform(-7, 7)
    for side in (-1, 1):
        if not is_dog:
            tip = (160 + 85 * side, 90 - length)
            pen.polygon([(160 + 98 * side, 160), tip, (160 + 12 * side, 95)], ear, _DARK, 4)
            tip = (160 + 75 * side, 115 - length)
            pen.polygon([(160 + 80 * side, 130), tip, (160 + 40 * side, 105)], _PINK)
    oval(160, 175, (88 if is_dog else 103) + extra_width, 92 if is_dog else 85, coat)
    if rng.random() < 0.5:
        oval(120, 155, 34, 38, second)
    for side in (-1, 1):
        if is_dog:
            oval(160 + 96 * side, 115 + length, 32, length, ear)
        else:
            oval(160 + 21 * side, 217, 27, 21, second)
            for y in (200, 218, 236):
                pen.line((160 + 40 * side, 212, 160 + 140 * side, y), whisker, 4)
        oval(160 + 40 * side, 158, 21, 22, iris)
        oval(160 + 40 * side, 158, 13 if is_dog else 6, 15, _DARK)
        oval(165 + 40 * side, 151, 5, 5, _WHITE)
    if is_dog:
        oval(160, 260, 16, 32, _PINK)
        oval(160, 222, 48, 44, second)
    oval(160, 202, 24 if is_dog else 13, 16 if is_dog else 9, nose)
    pen.arc((132, 205, 160, 240), 20, 160, _DARK, 5)
    pen.arc((160, 205, 188, 240), 20, 160, _DARK, 5)
    return head


def _colour(rng: random.Random, base=None, spread: float = 60) -> tuple[int, ...]:
    base = base or [rng.uniform(45, 235)] * 3
    return tuple(round(min(255, max(0, c + rng.uniform(-spread, spread)))) for c in base)


def _apply_lighting(rng: random.Random, image: Image.Image) -> Image.Image:
    pixels = np.asarray(image, np.float32)
    ramp = np.linspace(-0.5, 0.5, pixels.shape[1])[:, None]
    gain = 1.7 ** rng.uniform(-1.4, 0.8) * np.array([rng.uniform(0.8, 1.25) for _ in range(3)])
    noise = np.frombuffer(rng.randbytes(pixels.size), np.int8).reshape(pixels.shape)
    pixels = pixels * gain * (1 + rng.uniform(-0.6, 0.6) * ramp) + noise * rng.uniform(0, 0.16)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
