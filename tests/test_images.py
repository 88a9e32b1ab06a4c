"""Decoding and scaling: every mode, rubbish, bombs, and sizes to the pixel."""

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from bn_vgg.data import images
from bn_vgg.data.images import (
    UnreadableImage,
    decode,
    hold_lock_until_scaled,
    large_image_lock,
    scale_shorter_side,
)
from bn_vgg.errors import one_line

LOSSLESS = {"WEBP": {"lossless": True}}
ORIENTATION = 0x0112


def encode(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def pixels(data):
    image = decode(data)
    assert image.mode == "RGB"
    return np.asarray(image)


def grey(levels):
    return np.repeat(np.asarray(levels, np.uint8)[..., None], 3, axis=-1)


def png(width, height, depth, colour_type, rows):
    def chunk(kind, body):
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def reason(data):
    with pytest.raises(UnreadableImage) as caught:
        decode(data)
    text = str(caught.value)
    assert text
    assert "\n" not in text
    return text


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "WEBP", "TIFF"])
def test_lossless_formats_keep_every_pixel(file_format):
    rgb = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    data = encode(Image.fromarray(rgb), file_format, **LOSSLESS.get(file_format, {}))
    np.testing.assert_array_equal(pixels(data), rgb)


def test_jpeg_comes_close():
    rgb = np.full((16, 24, 3), (200, 100, 50), np.uint8)
    got = pixels(encode(Image.fromarray(rgb), "JPEG", quality=95))
    assert got.shape == (16, 24, 3)
    np.testing.assert_allclose(got, rgb, atol=3)


def test_gif_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(pixels(data), np.full((3, 4, 3), (255, 0, 0)))


def test_grey_palette_and_one_bit():
    levels = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    np.testing.assert_array_equal(pixels(encode(Image.fromarray(levels))), grey(levels))

    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([1, 0])
    np.testing.assert_array_equal(pixels(encode(palette)), [[[40, 50, 60], [10, 20, 30]]])

    bits = Image.fromarray(np.array([[True, False]]))
    assert bits.mode == "1"
    np.testing.assert_array_equal(pixels(encode(bits)), grey([[255, 0]]))


@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_cmyk_is_not_inverted(file_format):
    # Full cyan ink alone takes away red alone: 255 - 255, 255 - 0, 255 - 0.
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    got = pixels(encode(cyan, file_format))
    np.testing.assert_allclose(got, np.full((8, 8, 3), (0, 255, 255)), atol=3)


def test_transparency_lies_over_white():
    rgba = Image.new("RGBA", (3, 1))
    rgba.putdata([(10, 20, 30, 0), (10, 20, 30, 255), (0, 0, 0, 51)])
    # 51 of 255 is a fifth: black at a fifth over white is 255 * 4 / 5 = 204.
    np.testing.assert_array_equal(
        pixels(encode(rgba)), [[[255, 255, 255], [10, 20, 30], [204, 204, 204]]]
    )
    la = Image.new("LA", (2, 1))
    la.putdata([(7, 0), (7, 255)])
    np.testing.assert_array_equal(pixels(encode(la)), grey([[255, 7]]))

    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1])
    for file_format in ("PNG", "GIF"):
        data = encode(palette, file_format, transparency=0)
        np.testing.assert_array_equal(pixels(data), [[[255, 255, 255], [40, 50, 60]]])

    levels = Image.fromarray(np.array([[0, 257]], np.uint16))
    np.testing.assert_array_equal(pixels(encode(levels, transparency=0)), grey([[255, 1]]))


def test_16_bit_grey_is_divided_by_257():
    levels = np.array([[0, 128, 129, 257 * 100], [257 * 100 + 129, 65278, 65407, 65535]], np.uint16)
    # 128/257 < 1/2 < 129/257, and 65535 = 255 * 257; clipping would give 255 from level 255 on.
    expected = grey([[0, 0, 1, 100], [101, 254, 255, 255]])
    image = Image.fromarray(levels)
    assert image.mode == "I;16"
    np.testing.assert_array_equal(pixels(encode(image)), expected)
    np.testing.assert_array_equal(pixels(encode(image, "TIFF")), expected)
    swapped = Image.frombytes("I;16B", image.size, levels.astype(">u2").tobytes())
    np.testing.assert_array_equal(pixels(encode(swapped, "TIFF")), expected)
    wide = Image.fromarray(levels.astype(np.int32))
    assert wide.mode == "I"
    np.testing.assert_array_equal(pixels(encode(wide, "TIFF")), expected)


def test_16_bit_colour_loses_its_low_byte():
    rows = b"\0" + struct.pack(">6H", 0, 257 * 100, 65535, 257, 257 * 200, 257 * 7)
    np.testing.assert_allclose(
        pixels(png(2, 1, 16, 2, rows)), [[[0, 100, 255], [1, 200, 7]]], atol=1
    )


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([0, 0.2, 1], np.float32, [0, 51, 255]),  # fractions: times 255
        ([0, 51, 200.4], np.float32, [0, 51, 200]),  # 8-bit levels
        ([-1, 0, 1], np.float32, [0, 128, 255]),  # stretched: (0 + 1) * 255 / 2 = 127.5
        ([1000, 1500, 2000], np.float32, [0, 128, 255]),
        ([0, 65536, 131072], np.int32, [0, 128, 255]),
        ([-5, -5, -5], np.int32, [0, 0, 0]),
    ],
)
def test_levels_without_a_fixed_range(values, dtype, expected):
    image = Image.fromarray(np.array([values], dtype))
    np.testing.assert_array_equal(pixels(encode(image, "TIFF")), grey([expected]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_floats_that_are_not_finite_are_refused(value):
    image = Image.fromarray(np.array([[0, value]], np.float32))
    assert "not finite" in reason(encode(image, "TIFF"))


# What each orientation asks for, by EXIF 2.32, 4.6.4: where row 0 and column 0 are.
UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),  # a quarter turn clockwise
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: np.rot90,
    9: lambda a: a,  # no such orientation
}


@pytest.mark.parametrize("file_format", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientation_is_applied_once(orientation, file_format):
    rgb = np.random.default_rng(1).integers(0, 256, (2, 3, 3), np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encode(Image.fromarray(rgb), file_format, exif=exif, **LOSSLESS.get(file_format, {}))
    np.testing.assert_array_equal(pixels(data), UPRIGHT[orientation](rgb))
    assert decode(data).getexif().get(ORIENTATION) is None


def test_orientation_6_of_a_jpeg_turns_it_clockwise():
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:, :16] = 255  # white on the left comes to lie on top
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    got = pixels(encode(Image.fromarray(stored), "JPEG", exif=exif))
    assert got.shape == (32, 16, 3)
    assert got[:15].min() > 240
    assert got[17:].max() < 15


@pytest.mark.filterwarnings("ignore:.*EXIF:UserWarning")
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"rubbish!", b"II*\0", b"MM\0*\0\0\0\x08\xff\xff\0\x01"])
def test_damaged_exif_does_not_lose_the_image(exif, file_format):
    white = Image.new("RGB", (8, 8), "white")
    assert pixels(encode(white, file_format, exif=b"Exif\0\0" + exif)).min() == 255


def test_truncated_jpeg_says_so():
    noise = np.random.default_rng(2).integers(0, 256, (64, 64, 3), np.uint8)
    data = encode(Image.fromarray(noise), "JPEG")
    assert "truncated" in reason(data[: len(data) // 2])
    reason(data[:20])


@pytest.mark.parametrize("file_format", images.FORMATS)
def test_half_a_file_is_refused(file_format):
    noise = np.random.default_rng(2).integers(0, 256, (64, 64, 3), np.uint8)
    data = encode(Image.fromarray(noise), file_format)
    reason(data[: len(data) // 2])


def test_what_is_no_image_is_named():
    assert reason(b"") == "empty file"
    assert reason(b"<html>404</html>") == "not a JPEG, PNG, GIF, BMP, WEBP or TIFF image"
    assert "not a JPEG" in reason(encode(Image.new("RGB", (2, 2)), "PPM"))


def test_reasons_are_one_line_and_never_empty(monkeypatch):
    assert one_line(ValueError("one\n  two")) == "one two"
    assert one_line(MemoryError()) == "MemoryError"

    def fail(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr(Image, "open", fail)
    assert reason(SOUND[0]) == "MemoryError"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("width", [8_001, 9_500, 100_000])  # below, in and above Pillow's range
def test_bombs_are_refused_by_their_header(width):
    bomb = png(width, 10_000, 8, 2, b"")  # decoding it would complain about missing rows instead
    text = reason(bomb)
    assert "pixels" in text
    assert "truncated" not in text


def test_the_largest_size_is_tried(monkeypatch):
    assert Image.MAX_IMAGE_PIXELS > images.MAX_PIXELS, "Pillow would warn about what is accepted"
    monkeypatch.setattr(images, "MAX_PIXELS", 12)
    assert decode(encode(Image.new("RGB", (4, 3)))).size == (4, 3)
    assert "13x1 pixels" in reason(encode(Image.new("RGB", (13, 1))))


@pytest.mark.filterwarnings("ignore")
@given(st.binary(max_size=200))
def test_rubbish_is_unreadable(data):
    reason(data)


NOISE = Image.fromarray(np.random.default_rng(3).integers(0, 256, (24, 24, 3), np.uint8))
SOUND = [encode(NOISE, file_format) for file_format in images.FORMATS]
SOUND += [
    encode(NOISE, "TIFF", compression="tiff_lzw"),
    encode(NOISE, "JPEG", progressive=True),
    encode(NOISE.convert("I;16"), "PNG"),
]


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    data=st.sampled_from(SOUND),
    patches=st.lists(st.tuples(st.integers(0, 400), st.binary(min_size=1, max_size=4)), max_size=4),
    keep=st.floats(0.05, 1),
)
def test_damage_raises_nothing_else(data, patches, keep):
    damaged = bytearray(data)
    for start, patch in patches:
        damaged[start : start + len(patch)] = patch
    damaged = bytes(damaged[: round(keep * len(damaged))])
    try:
        outcome = decode(damaged).mode
    except UnreadableImage as error:
        outcome = str(error)
    assert outcome
    assert "\n" not in outcome


SIDES = st.integers(1, 60)


@settings(deadline=None)
@given(width=SIDES, height=SIDES, side=SIDES)
def test_scaling_keeps_the_aspect(width, height, side):
    image = Image.new("RGB", (width, height), (9, 99, 199))
    shorter, longer = sorted((width, height))
    if longer > 20 * shorter:
        with pytest.raises(UnreadableImage, match="more than 20 times"):
            scale_shorter_side(image, side)
        return
    scaled = scale_shorter_side(image, side)
    assert min(scaled.size) == side
    # Nearest: the longer side is at most half a pixel from longer * side / shorter.
    assert 2 * abs(max(scaled.size) * shorter - longer * side) <= shorter
    assert (scaled.width >= scaled.height) == (width >= height) or scaled.width == scaled.height
    np.testing.assert_array_equal(
        np.asarray(scaled), np.broadcast_to((9, 99, 199), (*scaled.size[::-1], 3))
    )


@pytest.mark.parametrize(
    ("before", "side", "after"),
    [
        ((500, 374), 128, (171, 128)),  # 500 * 128 / 374 = 171.1
        ((374, 500), 150, (150, 201)),  # 200.5, halves upwards
        ((80, 119), 128, (128, 190)),  # up: 190.4
        ((1, 20), 1, (1, 20)),
        ((1, 1), 3, (3, 3)),
        ((1001, 1000), 1, (1, 1)),
    ],
)
def test_sizes(before, side, after):
    assert scale_shorter_side(Image.new("RGB", before), side).size == after


def test_scaling_is_pillows_bicubic():
    rgb = np.random.default_rng(4).integers(0, 256, (30, 45, 3), np.uint8)
    expected = Image.fromarray(rgb).resize((15, 10), Image.Resampling.BICUBIC)
    scaled = scale_shorter_side(Image.fromarray(rgb), 10)
    np.testing.assert_array_equal(np.asarray(scaled), np.asarray(expected))


def test_the_right_size_is_copied():
    image = Image.new("RGB", (5, 4), "red")
    copy = scale_shorter_side(image, 4)
    copy.putpixel((0, 0), (0, 0, 255))
    assert image.getpixel((0, 0)) == (255, 0, 0)
    assert copy.getpixel((1, 0)) == (255, 0, 0)


def test_a_side_of_nothing_is_a_bug():
    with pytest.raises(ValueError, match="at least 1"):
        scale_shorter_side(Image.new("RGB", (2, 2)), 0)


def test_an_error_while_a_large_image_is_held_leaves_no_lock_behind():
    """Otherwise the thread's next large image would be held for ever, and all others wait."""
    with pytest.raises(UnreadableImage), hold_lock_until_scaled():
        raise UnreadableImage("damaged")
    with large_image_lock(large=True):
        pass

    def decode():
        with large_image_lock(large=True):
            return True

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(decode).result(timeout=20)
