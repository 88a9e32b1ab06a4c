"""From the bytes of an image file to an upright 8-bit RGB image of a given shorter side."""

import contextlib
import io
import threading
from collections.abc import Callable, Iterator

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from bn_vgg.errors import one_line

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")

# Below the size at which Pillow itself starts to warn (89 million), so that an image is either
# decoded in silence or refused: filtering warnings is not safe while other threads decode.
MAX_PIXELS = 80_000_000

# The longer side follows from the shorter, so a strip of 1 x 50,000 pixels would become
# 128 x 6,400,000. Photographs, panoramas included, stay far below this.
MAX_ASPECT_RATIO = 20

# Larger images are decoded one at a time, so that memory is bounded by one of MAX_PIXELS.
_LARGE = 8_000_000
_large_one = threading.RLock()
# Of each thread: `until`, where it is to let the next large one go on.
_waiting = threading.local()
# What is converted at once, so that intermediate results stay small.
_STRIP_PIXELS = 1_000_000
# Of the memory for pixels: each thread's heap keeps freed blocks of Pillow's 16 MiB, but what is
# larger than 32 MiB goes back to the system at once.
_BLOCK_BYTES = 64 * 2**20

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImage(Exception):  # noqa: N818 - a state of the data, not a fault of the program
    """An image that cannot be used; the message is one line that says why."""


def decode(data: bytes) -> Image.Image:
    """Decodes a JPEG, PNG, GIF (its first frame), BMP, WEBP or TIFF file.

    Every image becomes upright (the EXIF orientation is applied) 8-bit RGB without metadata:
    transparency is laid over white, 16-bit grey is divided by 257, and grey levels whose range
    the file does not fix are scaled as `_eight_bit` says.

    Raises:
      UnreadableImage: the data is truncated, no image of these types, or more than MAX_PIXELS.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UnreadableImage(f"{width}x{height} pixels: more than {MAX_PIXELS:,}")
            with large_image_lock(width * height > _LARGE):
                image.load()
                turn = _TURNS.get(_orientation(image))
                rgb = _rgb(image)
                return rgb if turn is None else rgb.transpose(turn)
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:  # its text holds only the address of the BytesIO
        reason = f"not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image" if data else "empty file"
        raise UnreadableImage(reason) from error
    except Exception as error:  # Pillow's decoders raise nearly every built-in one on rubbish
        raise UnreadableImage(one_line(error)) from error


@contextlib.contextmanager
def large_image_lock(large: bool) -> Iterator[None]:
    """Lets one thread at a time into what needs much memory (`large`), the others all at once."""
    if not large:
        yield
        return
    until = getattr(_waiting, "until", None)
    if until is not None:
        until.enter_context(_large_one)
    with _large_one:
        Image.core.set_block_size(_BLOCK_BYTES)
        yield


@contextlib.contextmanager
def hold_lock_until_scaled() -> Iterator[None]:
    """Within this, a thread that has decoded a large image keeps the lock until it leaves.

    That is, until the pixels of full size are gone: otherwise each thread could hold a large image
    that waits to be scaled.
    """
    with contextlib.ExitStack() as _waiting.until:
        try:
            yield
        finally:
            _waiting.until = None


def read_scaled(read: Callable[[], Image.Image], side: int) -> np.ndarray | UnreadableImage:
    """Calls `read` and scales what it returns, see `scale_shorter_side`: (height, width, 3).

    Of what cannot be read, why not.
    """
    try:
        with hold_lock_until_scaled():
            return np.asarray(scale_shorter_side(read(), side))
    except UnreadableImage as error:
        # Anew: the traceback of what was raised holds the file's bytes.
        return UnreadableImage(str(error))


def scale_shorter_side(image: Image.Image, side: int) -> Image.Image:
    """Scales an image, up or down, until its shorter side measures `side` pixels.

    Bicubic, antialiased when scaling down. The aspect ratio is kept: the longer side is rounded
    to the nearest pixel. An image that already fits is copied.

    Raises:
      UnreadableImage: one side is more than MAX_ASPECT_RATIO times the other.
    """
    if side < 1:
        raise ValueError(f"side is {side} pixels; it must be at least 1")
    shorter, longer = sorted(image.size)
    if longer > MAX_ASPECT_RATIO * shorter:
        raise UnreadableImage(
            f"{image.width}x{image.height} pixels: one side is more than {MAX_ASPECT_RATIO} times "
            f"the other, so it would take too much memory at a shorter side of {side}"
        )
    # In whole numbers, halves upwards; never below `side`, because longer >= shorter.
    scaled = (2 * longer * side + shorter) // (2 * shorter)
    size = (side, scaled) if image.width <= image.height else (scaled, side)
    return image.resize(size, Image.Resampling.BICUBIC)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF beside sound pixels is common: do not lose the image for it
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _eight_bit(image)
    # A new image has none of what describes the file: its orientation must not be applied twice.
    rgb = Image.new("RGB", image.size)
    for box in _strips(image):
        strip = image.crop(box)
        if strip.has_transparency_data:
            strip = strip.convert("RGBA")
            white = Image.new("RGBA", strip.size, "white")
            strip = Image.alpha_composite(white, strip)
        rgb.paste(strip.convert("RGB"), box)
    return rgb


def _strips_values(image: Image.Image) -> Iterator[np.ndarray]:
    return (np.asarray(image.crop(box)) for box in _strips(image))


def _strips(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield 0, top, image.width, min(top + rows, image.height)


def _eight_bit(image: Image.Image) -> Image.Image:
    """Returns grey levels that are wider than 8 bits as mode L, where `convert` would clip them.

    I;16 and I within 0..65535 are 16-bit levels, F within 0..1 are fractions and F within 0..255
    are 8-bit levels. Nothing says what other values of I and F mean: they are stretched, the
    least becomes black and the greatest white.
    """
    # Of each strip; NaN where one of its values is, as NumPy's minimum of these is again.
    lows, highs = zip(*((v.min(), v.max()) for v in _strips_values(image)), strict=True)
    low, high = float(np.min(lows)), float(np.max(highs))
    if not np.isfinite([low, high]).all():
        raise UnreadableImage("has pixels that are not finite numbers")
    tops = (1.0, 255.0) if image.mode == "F" else (65535.0,)
    top = next((top for top in tops if high <= top), None)
    if low < 0 or top is None:
        low, top = low, max(high, low + 1)
    else:
        low = 0.0
    transparent = image.info.get("transparency")
    levels = []
    for values in _strips_values(image):
        scaled = (values.astype(np.float64) - low) * (255 / (top - low))
        levels.append(np.rint(scaled).astype(np.uint8))
        if isinstance(transparent, int):
            levels[-1][values == transparent] = 255
    return Image.fromarray(np.concatenate(levels))
