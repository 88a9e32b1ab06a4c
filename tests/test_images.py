"""Decoding and scaling: every mode, damage, bombs, and sizes to the pixel."""

import random
import struct
import zipfile
import zlib
from functools import partial

import numpy as np
import pytest
from PIL import Image

from bn_vgg.data import images
from bn_vgg.data.files import list_images
from bn_vgg.data.images import UnreadableImage, decode, scale_shorter_side
from bn_vgg.errors import UserError
from tests.image_files import KAGGLE, encode, write_zip

LOSSLESS = {"WEBP": {"lossless": True}}
ORIENTATION = 0x0112


def pixels(data):
    image = decode(data)
    assert image.mode == "RGB"
    return np.asarray(image)


def grey(levels):
    return np.repeat(np.asarray(levels, np.uint8)[..., None], 3, axis=-1)


def reason(data):
    with pytest.raises(UnreadableImage) as caught:
        decode(data)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


def test_jpeg_comes_close_and_gif_gives_its_first_frame():
    rgb = np.full((16, 24, 3), (200, 100, 50), np.uint8)
    np.testing.assert_allclose(pixels(encode(Image.fromarray(rgb), "JPEG")), rgb, atol=3)
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(pixels(data), np.full((3, 4, 3), (255, 0, 0)))


def test_grey_palette_one_bit_and_ink():
    levels = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    np.testing.assert_array_equal(pixels(encode(Image.fromarray(levels))), grey(levels))
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([1, 0])
    np.testing.assert_array_equal(pixels(encode(palette)), [[[40, 50, 60], [10, 20, 30]]])
    bits = Image.fromarray(np.array([[True, False]]))
    np.testing.assert_array_equal(pixels(encode(bits)), grey([[255, 0]]))
    # Full cyan ink alone takes away red alone: 255 - 255, 255 - 0, 255 - 0.
    cyan = encode(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG")
    np.testing.assert_allclose(pixels(cyan), np.full((8, 8, 3), (0, 255, 255)), atol=3)


def test_transparency_lies_over_white():
    rgba = Image.new("RGBA", (3, 1))
    rgba.putdata([(10, 20, 30, 0), (10, 20, 30, 255), (0, 0, 0, 51)])
    # 51 of 255 is a fifth: black at a fifth over white is 255 * 4 / 5 = 204.
    np.testing.assert_array_equal(
        pixels(encode(rgba)), [[[255, 255, 255], [10, 20, 30], [204, 204, 204]]]
    )
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1])
    for file_format in ("PNG", "GIF"):
        data = encode(palette, file_format, transparency=0)
        np.testing.assert_array_equal(pixels(data), [[[255, 255, 255], [40, 50, 60]]])


def test_16_bit_grey_is_divided_by_257():
    levels = np.array([[0, 128, 129, 257 * 100], [257 * 100 + 129, 65278, 65407, 65535]], np.uint16)
    # 128/257 < 1/2 < 129/257, and 65535 = 255 * 257; clipping would give 255 from level 255 on.
    expected = grey([[0, 0, 1, 100], [101, 254, 255, 255]])
    np.testing.assert_array_equal(pixels(encode(Image.fromarray(levels))), expected)
    wide = Image.fromarray(levels.astype(np.int32))
    np.testing.assert_array_equal(pixels(encode(wide, "TIFF")), expected)


@pytest.mark.parametrize("levels", [np.float32([[0, 0.5]]), np.int32([[0, 65536]])])
def test_levels_of_an_unknown_range_are_refused(levels):
    assert "unknown range" in reason(encode(Image.fromarray(levels), "TIFF"))


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


@pytest.mark.filterwarnings("ignore:.*EXIF:UserWarning")
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"rubbish!", b"II*\0", b"MM\0*\0\0\0\x08\xff\xff\0\x01"])
def test_damaged_exif_does_not_lose_the_image(exif, file_format):
    white = Image.new("RGB", (8, 8), "white")
    assert pixels(encode(white, file_format, exif=b"Exif\0\0" + exif)).min() == 255


def test_what_is_no_image_says_so():
    assert reason(b"") == "empty file"
    assert reason(b"<html>404</html>") == "not a JPEG, PNG, GIF, BMP, WEBP or TIFF image"
    assert "not a JPEG" in reason(encode(Image.new("RGB", (2, 2)), "PPM"))
    assert "truncated" in reason(SOUND[0][:-200])


def test_a_bomb_is_refused_by_its_header():
    data = bytearray(encode(Image.new("RGB", (1, 1))))
    data[16:24] = struct.pack(">II", 100_000, 10_000)  # width and height
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    assert "decompression bomb" in reason(bytes(data))


NOISE = Image.fromarray(np.random.default_rng(3).integers(0, 256, (24, 24, 3), np.uint8))
SOUND = [encode(NOISE, file_format) for file_format in images.FORMATS]
SOUND += [
    encode(NOISE, "TIFF", compression="tiff_lzw"),
    encode(NOISE, "JPEG", progressive=True),
    encode(Image.fromarray(np.arange(576, dtype=np.uint16).reshape(24, 24))),
]


def damaged(data, rng):
    """Cuts the end off, overwrites a few bytes, or flips bits."""
    changed = bytearray(data)
    for _ in range(rng.randint(0, 6)):
        at = rng.randrange(len(changed)) if rng.random() < 0.5 else rng.randrange(80) % len(changed)
        changed[at] = rng.choice([0, 255, changed[at] ^ 1 << rng.randrange(8), rng.randrange(256)])
    return bytes(changed[: rng.choice([len(changed), rng.randrange(1, len(changed))])])


def outcome(read):
    """The mode of what is read, or why it cannot be."""
    try:
        return read().mode
    except UnreadableImage as error:
        return f"unreadable: {error}"


@pytest.mark.filterwarnings("ignore")
def test_damaged_images_are_decoded_or_say_why_not():
    rng = random.Random(0)
    outcomes = [outcome(partial(decode, damaged(data, rng))) for data in SOUND * 60]
    assert all(len(text.splitlines()) == 1 for text in outcomes)
    assert 100 < outcomes.count("RGB") < 400


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_archives_are_read_or_say_why_not(tmp_path, compression):
    path = tmp_path / "x.zip"
    sound = write_zip(path, KAGGLE, compression).read_bytes()
    directory = sound.index(b"PK\1\2")
    rng, refused, outcomes = random.Random(1), [], []
    for i in range(300):
        start = directory if i % 2 else 0
        path.write_bytes(sound[:start] + damaged(sound[start:], rng))
        try:
            outcomes += [outcome(file.decode) for file in list_images(str(path))]
        except UserError as error:
            refused.append(str(error))
    assert all(str(path) in text for text in refused)
    assert all(len(text.splitlines()) == 1 for text in outcomes)
    assert 20 < len(refused) < 280
    assert 20 < outcomes.count("RGB") < len(outcomes) - 20


@pytest.mark.parametrize(
    ("before", "side", "after"),
    [
        ((500, 374), 128, (171, 128)),  # 500 * 128 / 374 = 171.1
        ((374, 500), 150, (150, 201)),  # 200.5, halves upwards
        ((80, 119), 128, (128, 190)),  # up: 190.4
        ((1, 20), 1, (1, 20)),
        ((1001, 1000), 1, (1, 1)),
    ],
)
def test_sizes(before, side, after):
    assert scale_shorter_side(Image.new("RGB", before), side).size == after


def test_a_strip_is_unreadable():
    with pytest.raises(UnreadableImage, match="21x1 pixels: one side is more than 20 times the"):
        scale_shorter_side(Image.new("RGB", (21, 1)), 128)
