"""The animals of the cartoons, and the dice and the pen that draw them and what is around them."""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageDraw

_T = TypeVar("_T")
Colour = tuple[int, int, int]
Point = tuple[float, float] | np.ndarray
Points = Sequence[tuple[float, float]] | np.ndarray

_COATS = (
    (226, 140, 62), (240, 222, 190), (150, 150, 156), (74, 70, 78),
    (134, 88, 54), (246, 243, 236), (112, 128, 150), (196, 152, 104),
)  # fmt: skip
_PINK, _DARK, _WHITE = (232, 130, 142), (34, 28, 32), (250, 248, 244)
_CIRCLE = np.exp(2j * np.pi * np.arange(20) / 20).view(np.float64).reshape(20, 2)


class Dice(np.random.Generator):
    """Draws from uniform doubles and bytes alone: NumPy may change its other distributions."""

    def between(self, low: float, high: float) -> float:
        """Draws a number, all from `low` to `high` being as likely."""
        return low + (high - low) * self.random()

    def pick(self, options: Sequence[_T]) -> _T:
        """Draws one of `options`, each as likely."""
        return options[int(len(options) * self.random())]

    def colour(self) -> Colour:
        """Draws a grey level, then shifts each of its channels by up to 60."""
        value = self.between(45, 235)
        return shift([value + self.between(-60, 60) for _ in range(3)])


class Pen:
    """Draws in a frame of its own: y points down, lengths are multiples of `unit` pixels."""

    def __init__(
        self, canvas: Image.Image, origin: Point, unit: float, turn: float = 0, mirror: int = 1
    ):
        self._draw, self._origin, self._unit = ImageDraw.Draw(canvas), origin, unit
        self._frame = _matrix(unit * mirror, unit, turn)

    def line(self, points: Points, colour: Colour, width: float) -> None:
        """Draws a line through `points`, rounded where it bends."""
        self._draw.line(self._place(points), colour, self._pixels(width), "curve")

    def polygon(self, points: Points, colour: Colour, edge: Colour | None = None) -> None:
        """Fills the polygon, and draws its outline if `edge` is given."""
        placed = self._place(points)
        self._draw.polygon(placed, colour)
        if edge:  # `polygon(..., width=...)` would go through a mask, which takes far longer
            self._draw.line(placed + placed[:2], edge, self._pixels(0.07))

    def blob(
        self, x: float, y: float, rx: float, ry: float, colour: Colour,
        edge: Colour | None = None, turn: float = 0,
    ) -> None:  # fmt: skip
        """Draws an ellipse around (x, y), turned by `turn` radians."""
        self.polygon(_CIRCLE @ _matrix(rx, ry, turn) + (x, y), colour, edge)

    def _place(self, points: Points) -> list[float]:
        return (np.asarray(points) @ self._frame + self._origin).ravel().tolist()

    def _pixels(self, width: float) -> int:
        return max(1, round(width * self._unit))


def shift(colour: Sequence[float], by: float = 0, times: float = 1) -> Colour:
    """Returns `times * colour + by`, rounded and clipped."""
    red, green, blue = (max(0, min(255, round(times * value + by))) for value in colour)
    return red, green, blue


def _matrix(scale_x: float, scale_y: float, turn: float) -> np.ndarray:
    """Scales row vectors, then turns them clockwise by `turn` radians."""
    cos, sin = math.cos(turn), math.sin(turn)
    return np.array([[scale_x * cos, scale_x * sin], [-scale_y * sin, scale_y * cos]])


class _Coat(NamedTuple):
    base: Colour
    second: Colour
    muzzle: Colour
    edge: Colour
    iris: Colour
    nose: Colour
    pattern: str


def draw_animal(dice: Dice, canvas: Image.Image, is_dog: bool) -> None:
    """Draws a cat or a dog, or the head of one, mostly within the canvas."""
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
        _body(dice, Pen(canvas, origin, unit, turn, mirror), coat, is_dog, sits=pose == "sits")
        turn += dice.between(-0.3, 0.3)
    (_dog_head if is_dog else _cat_head)(dice, Pen(canvas, origin, unit, turn, mirror), coat)


def _coat(dice: Dice) -> _Coat:
    base, second = (
        shift([value + dice.between(-22, 22) for value in dice.pick(_COATS)]) for _ in range(2)
    )
    if sum(abs(a - b) for a, b in zip(base, second, strict=True)) < 120:
        second = shift(base, 70) if sum(base) < 380 else shift(base, times=0.6)
    muzzle, edge = dice.pick((shift(base, 35), shift(second, 20))), shift(base, times=0.5)
    iris = dice.pick(((120, 170, 70), (215, 170, 60), (90, 150, 200), (150, 95, 50)))
    nose = dice.pick((_PINK, _DARK, (96, 56, 48)))
    pattern = dice.pick(("plain", "patch", "stripes", "spots"))
    return _Coat(base, second, muzzle, edge, iris, nose, pattern)


def _fur(dice: Dice, pen: Pen, x: float, y: float, rx: float, ry: float, coat: _Coat) -> None:
    """Draws an ellipse of the coat, with its pattern."""

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


def _eyes(pen: Pen, x: float, y: float, pupil_rx: float, coat: _Coat) -> None:
    for side in (-x, x):
        pen.blob(side, y, 0.21, 0.22, coat.iris, _DARK)
        pen.blob(side, y, pupil_rx, 0.15, _DARK)
        pen.blob(side + 0.07, y - 0.08, 0.055, 0.055, _WHITE)


def _cat_head(dice: Dice, pen: Pen, coat: _Coat) -> None:
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


def _dog_head(dice: Dice, pen: Pen, coat: _Coat) -> None:
    ear = dice.pick((shift(coat.base, times=0.85), coat.second))
    width, length, lean = dice.between(0.28, 0.4), dice.between(0.6, 0.8), dice.between(-0.1, 0.35)
    _fur(dice, pen, 0, 0, dice.between(0.82, 0.95), dice.between(0.9, 1.02), coat)
    pen.blob(0, 0.5, dice.between(0.42, 0.55), dice.between(0.5, 0.62), coat.muzzle, coat.edge)
    for side in (-1, 1):
        pen.blob(side * 0.98, length - 0.6, width, length, ear, coat.edge, -side * lean)
    _eyes(pen, 0.37, -0.24, 0.13, coat)
    if dice.random() < 0.5:
        pen.blob(dice.between(-0.1, 0.1), 0.92, 0.17, 0.3, _PINK, shift(_PINK, -60))
    smile = [(-0.3, 0.6), (-0.14, 0.7), (0, 0.6), (0, 0.3), (0, 0.6), (0.14, 0.7), (0.3, 0.6)]
    pen.line(smile, _DARK, 0.05)
    pen.blob(0, 0.2, 0.24, 0.17, coat.nose)


def _body(dice: Dice, pen: Pen, coat: _Coat, is_dog: bool, sits: bool) -> None:
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
