"""Decodes image files to upright 8-bit RGB, and scales them."""

import io

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from bn_vgg.errors import one_line

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")

# Scaling 1 x 50,000 pixels would give 128 x 6,400,000. Panoramas are far below this ratio.
MAX_ASPECT_RATIO = 20


class UnreadableImage(Exception):  # noqa: N818 - a state of the data, not a fault of the program
    """An image cannot be used; the message is one line that says why."""


def decode(data: bytes) -> Image.Image:
    """Decodes an image file, or the first frame of an animated one, to upright 8-bit RGB.

    Applies the EXIF orientation, blends transparency over white, and divides 16-bit grey by 257.

    Raises:
      UnreadableImage: the data is truncated or not one of `FORMATS`; the image has more than twice
        `PIL.Image.MAX_IMAGE_PIXELS`, or grey levels of an unknown range.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.load()
            return upright_rgb(image)
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:  # its message has only the address of the BytesIO
        reason = f"not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image" if data else "empty file"
        raise UnreadableImage(reason) from error
    except Exception as error:  # Pillow's decoders raise many types for damaged data
        raise UnreadableImage(one_line(error)) from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """Converts an image of any mode to upright 8-bit RGB, see `decode`."""
    rgb = _rgb(image)
    rgb.getexif()[ExifTags.Base.Orientation] = _orientation(image)
    return ImageOps.exif_transpose(rgb)


def scale_shorter_side(image: Image.Image, side: int) -> Image.Image:
    """Scales an image, up or down, until its shorter side measures `side` pixels.

    Bicubic, antialiased when scaling down. The longer side is rounded to the nearest pixel.

    Raises:
      UnreadableImage: one side is more than MAX_ASPECT_RATIO times the other.
    """
    shorter, longer = sorted(image.size)
    if longer > MAX_ASPECT_RATIO * shorter:
        raise UnreadableImage(
            f"{image.width}x{image.height} pixels: one side is more than {MAX_ASPECT_RATIO} times "
            "the other"
        )
    scaled = (2 * longer * side + shorter) // (2 * shorter)  # in integers, rounding half up
    size = (side, scaled) if image.width <= image.height else (scaled, side)
    return image.resize(size, Image.Resampling.BICUBIC)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF data is common in intact images
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        levels = np.asarray(image)  # `convert` would clip at 255
        if image.mode == "F" or levels.min() < 0 or levels.max() > 65535:
            raise UnreadableImage("grey levels of more than 16 bits, of an unknown range")
        image = Image.fromarray(np.rint(levels / 257).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    # Convert through an array to drop the file's metadata, which may be damaged.
    return Image.fromarray(np.asarray(image.convert("RGB")))
