"""Damaged and hostile zip archives and folders, made anew from a seed."""

import io
import os
import random
import stat
import struct
import warnings
import zipfile
from collections.abc import Iterator

from tests.image_files import picture
from tests.rubbish_images import Rubbish, flip_bits

# Of the records of a zip archive: where fields begin, and their bytes.
FIELDS = {
    "central": (b"PK\1\2", "4:2 6:2 8:2 10:2 12:4 16:4 20:4 24:4 28:2 30:2 32:2 34:2 38:4 42:4"),
    "local": (b"PK\3\4", "4:2 6:2 8:2 10:4 14:4 18:4 22:4 26:2 28:2"),
    "end": (b"PK\5\6", "4:2 6:2 8:2 10:2 12:4 16:4 20:2"),
}
SOUND = {f"pets/{kind}/{n}.png": picture(n) for n in range(6) for kind in ("cat", "dog")}
NAMES = [
    "../evil.png", "../../../../evil.png", "cat/../../evil.png", "..\\..\\evil.png", "..png",
    "C:\\evil.png", "C:evil.png", "\\\\server\\share\\evil.png", "//evil.png", "/", "./", "..",
    "cat/./evil.png", "cat//evil.png", "~/evil.png", "$HOME/evil.png", "-rf.png", "CON.png",
    "a\nb.png", "a\rb.png", "\x1b[2Jevil.png", "\u202egnp.evil.png", "\u2028.png", "\ud7ff.png",
    " .png", ".png", "cat/.png", "a,b.png", "'\".png", "%s%n.png", "{0}.png", "*.png", "[.png",
    "zebra/1.png", "CAT/1.png", "cat/cat.1.png", "cat.1.png", "9" * 5000 + ".png", "x" * 65_000 +
    ".png", "/".join("d" * 99) + "/1.png", "\u2603/\U0001f600.png", "cat/1.png/2.png", "pets/cat",
]  # fmt: skip


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Like `image_files.write_zip`, with names as they are."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", compression) as archive:
        warnings.simplefilter("ignore")  # of names that come twice
        for name, data in members.items():
            info = zipfile.ZipInfo("x")
            info.filename, info.compress_type = name, compression
            archive.writestr(info, data)
    return buffer.getvalue()


def damaged_archives(outside: str, seed: int = 0) -> Iterator[Rubbish]:
    """Yields some 450 archives; some try to write under the folder `outside`."""
    rng = random.Random(seed)
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        sound = zipped(SOUND, compression)
        for i in range(30):
            yield Rubbish(
                "cut archive", f"cut{compression}-{i}.zip", sound[: rng.randrange(len(sound))]
            )
        for i in range(90):
            data = flip_bits(sound, rng, rng.randint(1, 12))
            yield Rubbish("flipped archive", f"flipped{compression}-{i}.zip", data)
        directory = sound.index(b"PK\1\2")
        for i in range(15):
            data = sound[:directory] + flip_bits(sound[directory:], rng, 5)
            yield Rubbish("flipped archive", f"directory{compression}-{i}.zip", data)
    yield from _damaged_fields(zipped(SOUND), rng)
    for i, name in enumerate([*NAMES, f"{outside}/evil.png"]):
        yield Rubbish("hostile names", f"name{i}.zip", zipped(SOUND | {name: picture(i)}))
        if "/" in name:
            backslashes = {name.replace("/", "\\"): picture(i)}
            yield Rubbish("hostile names", f"backslashes{i}.zip", zipped(SOUND | backslashes))
    for name, data in _special(outside).items():
        yield Rubbish("hostile archive", name, data)


def _damaged_fields(sound: bytes, rng: random.Random) -> Iterator[Rubbish]:
    for record, (signature, fields) in FIELDS.items():
        start = sound.index(signature)
        for field in fields.split():
            offset, length = map(int, field.split(":"))
            at = start + offset
            for value in (bytes(length), b"\xff" * length, b"\1" + bytes(length - 1),
                          rng.randbytes(length)):  # fmt: skip
                data = sound[:at] + value + sound[at + length :]
                name = f"{record}{offset}-{value.hex()}.zip"
                yield Rubbish("archive's fields", name, data)


def _special(outside: str) -> dict[str, bytes]:
    zeros = bytes(30_000_000)
    lying = zipped({**SOUND, "cat/9.png": zeros})
    inner = zipped(SOUND)
    for _ in range(50):
        inner = zipped({"again.zip": inner})
    return {
        "zeros.zip": zipped({**SOUND, "cat/9.png": zeros}),
        "says-less.zip": lying.replace(struct.pack("<I", len(zeros)), struct.pack("<I", 50)),
        "says-more.zip": lying.replace(struct.pack("<I", len(zeros)), struct.pack("<I", 2**32 - 2)),
        "nested.zip": inner,
        "nested-beside.zip": zipped({**SOUND, "more/again.zip": inner}),
        "itself-as-image.zip": zipped({**SOUND, "cat/9.png": inner}),
        "bzip2.zip": zipped(SOUND, zipfile.ZIP_BZIP2),
        "lzma.zip": zipped(SOUND, zipfile.ZIP_LZMA),
        "before.zip": b"MZ" + bytes(5000) + zipped(SOUND),
        "after.zip": zipped(SOUND) + bytes(5000),
        "long-after.zip": zipped(SOUND) + bytes(70_000),
        "twice.zip": zipped(SOUND) + zipped({"dog/1.png": b"x"}),
        "no-text-as-utf8.zip": zipped({**SOUND, "cat/\u00e9\u00e9.png": picture()}).replace(
            "\u00e9\u00e9".encode(), b"\xff\xfe\xff\xfe"
        ),
        "zero-byte.zip": zipped({**SOUND, "cat/a@b.png": picture()}).replace(b"a@b", b"a\0b"),
        "same-names.zip": _renamed(zipped({**SOUND, "pets/cat/x.png": b"x"})),
        "overlapping.zip": _overlapping(zipped(SOUND)),
        "links.zip": _links([outside, f"{outside}/evil.png", "/etc/passwd", "..", "cat/link.png"]),
        "classes.zip": zipped({f"kind{n}/{n}.png": picture(n) for n in range(500)}),
        "one-class.zip": zipped({"cat/1.png": picture()}),
        "no-class.zip": zipped({"1.png": picture()}),
        "nothing.zip": zipped({}),
        "zeros-alone.zip": bytes(5000),
        "text.zip": b"not an archive",
    }


def many_entries(count: int = 100_000) -> bytes:
    """An archive of so many members, of which all but a thousand are no images."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for n in range(count):
            ending = "png" if n % 100 == 0 else "txt"
            info = zipfile.ZipInfo(f"{('cat', 'dog')[n // 100 % 2]}/{n}.{ending}")
            archive.writestr(info, picture(n // 100) if ending == "png" else b"")
    return buffer.getvalue()


def _renamed(data: bytes) -> bytes:
    return data.replace(b"pets/cat/x.png", b"pets/cat/1.png")


def _overlapping(data: bytes) -> bytes:
    """All members of the directory begin where the first does."""
    changed, at = bytearray(data), data.find(b"PK\1\2")
    while at >= 0:
        changed[at + 42 : at + 46] = bytes(4)
        at = data.find(b"PK\1\2", at + 4)
    return bytes(changed)


def _links(targets: list[str]) -> bytes:
    buffer = io.BytesIO(zipped(SOUND))
    with zipfile.ZipFile(buffer, "a") as archive:
        for i, target in enumerate(targets):
            for name in (f"pets/cat/link{i}.png", f"pets/link{i}"):
                info = zipfile.ZipInfo(name)
                info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
                archive.writestr(info, target)
        archive.writestr("pets/link0/evil.png", picture())
    return buffer.getvalue()


def damaged_folders(place, outside) -> dict[str, str]:
    """Makes folders under `place` that hold more than files; returns the specs that name them."""
    specs = {}
    for what in ("links", "pipes", "names", "deep", "loop", "nested"):
        for name, data in SOUND.items():
            path = place / what / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        specs[what] = str(place / what)
    cats = place / "links" / "pets" / "cat"
    (cats / "passwd.png").symlink_to("/etc/passwd")
    (cats / "nothing.png").symlink_to("/no/where.png")
    (cats / "outside").symlink_to(outside)
    (cats / "up").symlink_to(place)
    (cats / "device.png").symlink_to("/dev/zero")
    os.mkfifo(place / "pipes" / "pets" / "cat" / "pipe.png")
    (place / "loop" / "pets" / "cat" / "loop.png").symlink_to("loop.png")
    names = os.fsencode(place / "names" / "pets")
    for name in (b"\xff\xfe.png", b"a\nb.png", b"\x1b[2J.png", b"-rf.png", b"a,b.png", b"$(x).png"):
        for kind in (b"cat", b"dog", b"z\xffbra\n"):
            os.makedirs(names + b"/" + kind, exist_ok=True)
            with open(names + b"/" + kind + b"/" + name, "wb") as file:
                file.write(picture())
    (place / "nested" / "pets" / "cat" / "more.zip").write_bytes(zipped(SOUND))
    (place / "nested" / "pets" / "cat" / "folder.png").mkdir()
    deep = place / "deep" / "pets"
    for _ in range(12):
        deep = deep / ("d" * 200)
    deep.mkdir(parents=True)
    (deep / "1.png").write_bytes(picture())
    for what, spec in {
        "device": "/dev/zero", "process": "/proc/self/fd", "nothing": "", "commas": "," * 99,
        "null": "a\0b", "long": "./" + "x" * 5000, "no text": "./\udcff.zip", "brackets": "[" * 99,
        "stars": f"{place}/**/**/**/*.zip", "class": "zebra", "many": "cartoons:" + "9" * 5000,
    }.items():  # fmt: skip
        specs[what] = spec
    return specs
