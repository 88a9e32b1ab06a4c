"""Cats and dogs that are drawn, not downloaded: the data of the demo and of the tests.

The classes differ in shape alone (ears, muzzle, pupils, whiskers, tail). Colours, sizes, poses,
backgrounds, clutter and lighting have one distribution for both, and vary so much that a network
has to look at the animal.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from bn_vgg.data.source import Record, Source
from bn_vgg.errors import UserError

# Raise it when a change here changes a pixel: it is part of cache keys.
VERSION = 1
MAX_IMAGES = 1_000_000
_OVERSAMPLING = 2

_Colour = tuple[int, int, int]
_Points = Sequence[tuple[float, float]] | np.ndarray
_COATS = (
    (226, 140, 62), (240, 222, 190), (150, 150, 156), (74, 70, 78),
    (134, 88, 54), (246, 243, 236), (112, 128, 150), (196, 152, 104),
)  # fmt: skip
_PINK, _DARK, _WHITE = (232, 130, 142), (34, 28, 32), (250, 248, 244)
_CIRCLE = np.exp(2j * np.pi * np.arange(20) / 20).view(np.float64).reshape(20, 2)


class _Dice(np.random.Generator):
    """Draws from uniform doubles and bytes alone: NumPy may change its other distributions."""

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.random()

    def pick(self, options: Sequence):
        return options[int(len(options) * self.random())]

    def colour(self) -> _Colour:
        value = self.between(45, 235)
        return _shift([value + self.between(-60, 60) for _ in range(3)])


class _Pen:
    """Draws in a frame of its own: y points down, lengths are multiples of `unit` pixels."""

    def __init__(self, canvas: Image.Image, origin, unit: float, turn: float = 0, mirror: int = 1):
        self._draw, self._origin, self._unit = ImageDraw.Draw(canvas), origin, unit
        self._frame = _matrix(unit * mirror, unit, turn)

    def line(self, points: _Points, colour: _Colour, width: float) -> None:
        self._draw.line(self._place(points), colour, self._pixels(width), "curve")

    def polygon(self, points: _Points, colour: _Colour, edge: _Colour | None = None) -> None:
        placed = self._place(points)
        self._draw.polygon(placed, colour)
        if edge:  # `polygon(..., width=...)` would go through a mask, which takes far longer
            self._draw.line(placed + placed[:2], edge, self._pixels(0.07))

    def blob(
        self, x: float, y: float, rx: float, ry: float, colour: _Colour,
        edge: _Colour | None = None, turn: float = 0,
    ) -> None:  # fmt: skip
        self.polygon(_CIRCLE @ _matrix(rx, ry, turn) + (x, y), colour, edge)

    def _place(self, points: _Points) -> list[float]:
        return (np.asarray(points) @ self._frame + self._origin).ravel().tolist()

    def _pixels(self, width: float) -> int:
        return max(1, round(width * self._unit))


def _shift(colour: Sequence[float], by: float = 0, times: float = 1) -> _Colour:
    red, green, blue = (max(0, min(255, round(times * value + by))) for value in colour)
    return red, green, blue


def _matrix(scale_x: float, scale_y: float, turn: float) -> np.ndarray:
    cos, sin = math.cos(turn), math.sin(turn)
    return np.array([[scale_x * cos, scale_x * sin], [-scale_y * sin, scale_y * cos]])


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
    dice = _Dice(np.random.Philox(key=np.array([0, index], np.uint64)))
    canvas = _background(dice)
    _clutter(dice, canvas, count=dice.pick((0, 1, 2, 3)), largest=0.25)
    _draw_animal(dice, canvas, is_dog=index % 2 == 1)
    _clutter(dice, canvas, count=dice.pick((0, 1, 2)), largest=0.13)
    return _light(dice, canvas.reduce(_OVERSAMPLING))


def _background(dice: _Dice) -> Image.Image:
    long, aspect = dice.between(60, 120), 1.7 ** dice.between(-0.95, 1)
    width, height = round(long * min(1, aspect)), round(long / max(1, aspect))
    size = width * _OVERSAMPLING, height * _OVERSAMPLING
    first, second = dice.colour(), dice.colour()
    canvas = Image.new("RGB", size, first)
    kind = dice.pick(("plain", "gradient", "clouds", "checkers", "stripes", "lawn", "room"))
    tilt = dice.between(-3, 3) if kind == "stripes" else dice.between(-0.1, 0.1)
    pen = _Pen(canvas, np.array(size) / 2, max(size) / 2, tilt)
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
        pen.polygon([(-2, horizon), (2, horizon), (2, 2), (-2, 2)], second, _shift(second, -30))
        if kind == "room":
            window = [(x, y), (x + 0.5, y), (x + 0.5, y + 0.4), (x, y + 0.4)]
            pen.polygon(window, dice.colour(), edge=dice.colour())
        else:
            pen.blob(x, y, dice.between(0.08, 0.3), 0.13, dice.colour())  # a sun or a cloud
    return canvas


def _clutter(dice: _Dice, canvas: Image.Image, count: int, largest: float) -> None:
    for _ in range(count):
        origin = dice.between(0, canvas.width), dice.between(0, canvas.height)
        unit = min(canvas.size) * dice.between(0.06, largest)
        pen = _Pen(canvas, origin, unit, dice.between(-0.6, 0.6))
        first, second = dice.colour(), dice.colour()
        edge = _shift(first, times=0.55)
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


def _light(dice: _Dice, image: Image.Image) -> Image.Image:
    pixels = np.array(image, np.float32)
    down, across = (np.arange(side, dtype=np.float32) / side - 0.5 for side in pixels.shape[:2])
    gain, contrast = 1.7 ** dice.between(-1.4, 0.8), dice.between(0.5, 1.2)
    cast = np.array([gain * dice.between(0.8, 1.25) for _ in range(3)], np.float32)
    across, down = 1 + dice.between(-0.4, 0.4) * across, 1 + dice.between(-0.4, 0.4) * down
    pixels = ((pixels - 128) * contrast + 128) * ((down[:, None] * across)[..., None] * cast)
    noise = np.frombuffer(dice.bytes(pixels.size), np.int8).reshape(pixels.shape)
    pixels += noise * np.float32(dice.between(0, 0.16))
    return Image.fromarray(pixels.clip(0, 255, out=pixels).astype(np.uint8))


class _Coat(NamedTuple):
    base: _Colour
    second: _Colour
    muzzle: _Colour
    edge: _Colour
    iris: _Colour
    nose: _Colour
    pattern: str


def _draw_animal(dice: _Dice, canvas: Image.Image, is_dog: bool) -> None:
    coat = _coat(dice)
    pose, mirror = dice.pick(("head", "head", "sits", "stands")), dice.pick((-1, 1))
    right, bottom, smallest, most_turned = {
        "head": (1.35, 1.05, 0.55, 0.6), "sits": (1.6, 2.5, 0.75, 0.3),
        "stands": (3.0, 2.35, 0.75, 0.3),
    }[pose]  # fmt: skip
    size = np.array(canvas.size)
    extent = dice.between(smallest, 1) * size.min()
    unit, turn = extent / max(right + 1.35, bottom + 1.35), dice.between(-most_turned, most_turned)
    # Placed by the middle of its own outline, so that the place does not tell the classes apart.
    middle = np.array([right - 1.35, bottom - (1.05 if is_dog else 1.65)]) / 2
    spare = np.maximum(0.06 * size, (size - 0.9 * extent) / 2)
    place = size / 2 + spare * (dice.between(-1, 1), dice.between(-1, 1))
    origin = place - middle @ _matrix(unit * mirror, unit, turn)
    if pose != "head":
        _body(dice, _Pen(canvas, origin, unit, turn, mirror), coat, is_dog, sits=pose == "sits")
        turn += dice.between(-0.3, 0.3)
    (_dog_head if is_dog else _cat_head)(dice, _Pen(canvas, origin, unit, turn, mirror), coat)


def _coat(dice: _Dice) -> _Coat:
    base, second = (
        _shift([value + dice.between(-22, 22) for value in dice.pick(_COATS)]) for _ in range(2)
    )
    if sum(abs(a - b) for a, b in zip(base, second, strict=True)) < 120:
        second = _shift(base, 70) if sum(base) < 380 else _shift(base, times=0.6)
    muzzle, edge = dice.pick((_shift(base, 35), _shift(second, 20))), _shift(base, times=0.5)
    iris = dice.pick(((120, 170, 70), (215, 170, 60), (90, 150, 200), (150, 95, 50)))
    nose = dice.pick((_PINK, _DARK, (96, 56, 48)))
    pattern = dice.pick(("plain", "patch", "stripes", "spots"))
    return _Coat(base, second, muzzle, edge, iris, nose, pattern)


def _fur(dice: _Dice, pen: _Pen, x: float, y: float, rx: float, ry: float, coat: _Coat) -> None:

    def at(angle: float, radius: float) -> tuple[float, float]:
        return x + radius * rx * math.cos(angle), y + radius * ry * math.sin(angle)

    pen.blob(x, y, rx, ry, coat.base, coat.edge)
    if coat.pattern == "stripes":
        for angle in (-2.25, -1.9, -1.57, -1.24, -0.9, -0.15, 0.25, 2.9, 3.3):
            pen.line([at(angle, 0.95), at(angle, 0.6)], coat.second, 0.11)
    elif coat.pattern == "patch":
        start = dice.between(0, math.tau)
        rim = [at(start + 0.25 * k, 0.95) for k in range(8)]
        pen.polygon([*rim, at(start + 1.3, 0.1), at(start + 0.3, 0.3)], coat.second)
    elif coat.pattern == "spots":
        for k in range(6):
            spot = at(k + dice.between(0, 0.6), dice.between(0.5, 0.75))
            pen.blob(*spot, dice.between(0.1, 0.2), 0.14, coat.second)


def _eyes(pen: _Pen, x: float, y: float, pupil_rx: float, coat: _Coat) -> None:
    for side in (-x, x):
        pen.blob(side, y, 0.21, 0.22, coat.iris, _DARK)
        pen.blob(side, y, pupil_rx, 0.15, _DARK)
        pen.blob(side + 0.07, y - 0.08, 0.055, 0.055, _WHITE)


def _cat_head(dice: _Dice, pen: _Pen, coat: _Coat) -> None:
    ear = dice.pick((coat.base, coat.second))
    tip, lean = dice.between(1.45, 1.75), dice.between(0.7, 1)
    for side in (-1, 1):
        outer = [(side * 0.98, -0.2), (side * lean, -tip), (side * 0.15, -0.8)]
        inner = [(side * 0.8, -0.5), (side * lean * 0.95, 0.35 - tip), (side * 0.4, -0.75)]
        pen.polygon(outer, ear, coat.edge)
        pen.polygon(inner, _PINK)
    _fur(dice, pen, 0, 0, dice.between(0.98, 1.12), dice.between(0.82, 0.95), coat)
    for x in (-0.2, 0.2):
        pen.blob(x, 0.42, 0.27, 0.22, coat.muzzle)
    _eyes(pen, 0.43, -0.12, 0.065, coat)
    pen.polygon([(-0.14, 0.2), (0.14, 0.2), (0, 0.37)], coat.nose)
    pen.line([(-0.28, 0.52), (-0.1, 0.57), (0, 0.4), (0.1, 0.57), (0.28, 0.52)], _DARK, 0.05)
    whisker = _WHITE if sum(coat.base) < 400 else _DARK
    for end in ((1.35, 0.2), (1.4, 0.42), (1.3, 0.66)):
        for side in (-1, 1):
            pen.line([(side * 0.35, 0.36 + 0.2 * end[1]), (side * end[0], end[1])], whisker, 0.04)


def _dog_head(dice: _Dice, pen: _Pen, coat: _Coat) -> None:
    ear = dice.pick((_shift(coat.base, times=0.85), coat.second))
    width, length, lean = dice.between(0.28, 0.4), dice.between(0.6, 0.8), dice.between(-0.1, 0.35)
    _fur(dice, pen, 0, 0, dice.between(0.82, 0.95), dice.between(0.9, 1.02), coat)
    pen.blob(0, 0.5, dice.between(0.42, 0.55), dice.between(0.5, 0.62), coat.muzzle, coat.edge)
    for side in (-1, 1):
        pen.blob(side * 0.98, length - 0.6, width, length, ear, coat.edge, -side * lean)
    _eyes(pen, 0.37, -0.24, 0.13, coat)
    if dice.random() < 0.5:
        pen.blob(dice.between(-0.1, 0.1), 0.92, 0.17, 0.3, _PINK, _shift(_PINK, -60))
    smile = [(-0.3, 0.6), (-0.14, 0.7), (0, 0.6), (0, 0.3), (0, 0.6), (0.14, 0.7), (0.3, 0.6)]
    pen.line(smile, _DARK, 0.05)
    pen.blob(0, 0.2, 0.24, 0.17, coat.nose)


def _body(dice: _Dice, pen: _Pen, coat: _Coat, is_dog: bool, sits: bool) -> None:
    x, y = (0.6, 2.1) if sits else (2.2, 0.9)
    along, sway = np.linspace(0, 1, 8), dice.between(0.35, 0.6)
    if is_dog:  # short, thick and raised
        tail, width = (x + 0.75 * along, y - 1.8 * sway * along**2), 0.3
    else:  # long and thin, in an S
        tail, width = (x + 0.5 * along + sway * np.sin(4.5 * along), y - 1.6 * along), 0.18
    pen.line(np.stack(tail, axis=1), coat.edge, width + 0.14)
    pen.line(np.stack(tail, axis=1), coat.base, width)
    if sits:
        _fur(dice, pen, 0, 1.5, 0.8, 0.95, coat)
        for x in (-0.6, 0.6):
            pen.blob(x, 2.1, 0.38, 0.36, coat.base, coat.edge)
        for x in (-0.28, 0.28):
            pen.blob(x, 1.85, 0.2, 0.55, coat.base, coat.edge)
            pen.blob(x * 1.1, 2.36, 0.27, 0.16, coat.muzzle, coat.edge)
    else:
        for x in (0.4, 0.85, 1.7, 2.1):
            pen.blob(x, 1.75, 0.2, 0.6, coat.base, coat.edge)
        _fur(dice, pen, 1.25, 1.05, 1.2, 0.65, coat)
