"""Damaged images of every type, made anew from a seed."""

import io
import random
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import Image

from bn_vgg.data.files import EXTENSIONS


class Rubbish(NamedTuple):
    """A damaged input; its name ends in an image's extension and is unique."""

    category: str
    name: str
    data: bytes


# How each kind is saved; several of a format where its decoders differ.
KINDS = {
    "jpg": {"format": "JPEG"},
    "progressive.jpeg": {"format": "JPEG", "progressive": True},
    "png": {"format": "PNG"},
    "bmp": {"format": "BMP"},
    "gif": {"format": "GIF"},
    "lossy.webp": {"format": "WEBP"},
    "lossless.webp": {"format": "WEBP", "lossless": True},
    "tif": {"format": "TIFF"},
    "lzw.tif": {"format": "TIFF", "compression": "tiff_lzw"},
    "deflate.tiff": {"format": "TIFF", "compression": "tiff_deflate"},
    "jpeg.tiff": {"format": "TIFF", "compression": "jpeg"},
}
NOT_IMAGES = {
    "html": b"<html><body>404 Not Found</body></html>",
    "zip": b"PK\3\4\x14\0\0\0",
    "pdf": b"%PDF-1.7\n",
    "elf": b"\x7fELF\2\1\1",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "text": "\u2603\n".encode() * 99,
}
# Width and height of images that only their headers hold.
GIANTS = [(30_000, 30_000), (65_535, 65_535), (65_535, 1), (1, 65_535), (9_000, 9_000), (0, 0)]
# The largest that is decoded.
LARGEST = (8_000, 10_000)


def sound_images(seed: int = 0) -> dict[str, bytes]:
    """One small image of each of `KINDS`, noise, as a file's bytes."""
    noise = np.random.default_rng(seed).integers(0, 256, (24, 20, 3), np.uint8)
    return {kind: encode(Image.fromarray(noise), **how) for kind, how in KINDS.items()}


def encode(image: Image.Image, **how) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **how)
    return buffer.getvalue()


def damaged_images(seed: int = 0) -> Iterator[Rubbish]:
    """Yields some 1,700 files."""
    rng, sound = random.Random(seed), sound_images(seed)
    for kind, data in sound.items():
        for i in range(45):
            yield Rubbish("truncated", f"cut{i}.{kind}", data[: rng.randrange(1, len(data))])
        for i in range(60):
            yield Rubbish("flipped", f"flipped{i}.{kind}", flip_bits(data, rng, rng.randint(1, 8)))
        for i in range(20):
            at, patch = rng.randrange(min(80, len(data))), rng.choice([b"\0", b"\xff"]) * 4
            changed = data[:at] + patch + data[at + 4 :]
            yield Rubbish("header", f"header{i}.{kind}", changed)
        for i in range(6):
            other = rng.choice(list(sound.values()))
            changed = data[: rng.randrange(len(data))] + other[rng.randrange(len(other)) :]
            yield Rubbish("spliced", f"spliced{i}.{kind}", changed)
    for ending in EXTENSIONS:
        for kind, data in (sound | NOT_IMAGES).items():
            yield Rubbish("mislabelled", f"{kind.replace('.', '-')}-as{ending}", data)
        yield Rubbish("empty", f"empty{ending}", b"")
        yield Rubbish("empty", f"zero{ending}", b"\0")
        yield Rubbish("empty", f"zeros{ending}", bytes(5000))
    for kind, data in sound.items():
        yield Rubbish("empty", f"magic.{kind}", data[:8])
    for width, height in GIANTS:
        for kind, data in giants(width, height).items():
            yield Rubbish("bomb", f"{width}x{height}.{kind}", data)


def flip_bits(data: bytes, rng: random.Random, count: int) -> bytes:
    changed = bytearray(data)
    for _ in range(count):
        bit = rng.randrange(8 * len(changed))
        changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def giants(width: int, height: int) -> dict[str, bytes]:
    """Small files that say they are so large, and hold few of their pixels or none."""
    return {
        "png": png(width, height, depth=8, colours=2, rows=b""),
        "bmp": bmp(width, height),
        "gif": gif((width, height), (width, height)),
        "frame.gif": gif((1, 1), (width, height)),
        "webp": webp(min(max(width, 1), 2**14), min(max(height, 1), 2**14)),
        "strip.tif": tiff(width, height, data=b"\0", rows_of_a_strip=2**31),
        "tif": tiff(width, height, data=b"\0", rows_of_a_strip=1),
        "jpg": jpeg(width, height),
    }


def largest_images() -> dict[str, bytes]:
    """Sound files, small ones, of the largest images that are decoded: what costs most memory."""
    width, height = LARGEST
    return {
        "grey-alpha.png": png(*LARGEST, depth=8, colours=4, rows=bytes(2 * width + 1) * height),
        "float.tif": tiff(
            *LARGEST, data=zlib.compress(bytes(4 * width * height), 1), rows_of_a_strip=height,
            bits=32, compression=8,
        ),
        "alpha.webp": webp(*LARGEST),
    }  # fmt: skip


def png(width: int, height: int, *, depth: int, colours: int, rows: bytes) -> bytes:
    def chunk(kind, body):
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows, 1)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def bmp(width: int, height: int) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 2835, 2835, 0, 0)
    return b"BM" + struct.pack("<IHHI", 58, 0, 0, 54) + header + bytes(4)


def gif(screen: tuple[int, int], frame: tuple[int, int]) -> bytes:
    start = b"GIF89a" + struct.pack("<HHBBB", *screen, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    return start + b"," + struct.pack("<HHHHB", 0, 0, *frame, 0) + b"\2\2\x4c\1\0;"


def webp(width: int, height: int) -> bytes:
    """A lossless image of one colour, with alpha: whatever its size, in 44 bytes."""
    one_symbol = (0b0001, 4)  # of one bit, and that is 0: a pixel takes no bits at all
    fields = [(width - 1, 14), (height - 1, 14), (1, 1), (0, 3), (0, 3), *[one_symbol] * 5]
    bits, at = 0, 0
    for value, length in fields:
        bits |= value << at
        at += length
    body = b"\x2f" + bits.to_bytes((at + 7) // 8 + 8, "little")
    body += b"\0" * (len(body) % 2)
    chunk = b"VP8L" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def tiff(
    width: int, height: int, *, data: bytes, rows_of_a_strip: int, bits: int = 8,
    compression: int = 1,
) -> bytes:  # fmt: skip
    tags = {
        256: width, 257: height, 258: bits, 259: compression, 262: 1, 273: 8, 277: 1,
        278: rows_of_a_strip, 279: len(data), 339: 3 if bits == 32 else 1,
    }  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory


def jpeg(width: int, height: int) -> bytes:
    data = sound_images()["jpg"]
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]
