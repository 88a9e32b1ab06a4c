"""What the tests of files share: archives and folders of tiny images, and error messages."""

import io
import zipfile

import pytest
from PIL import Image

from bn_vgg.data.files import list_images
from bn_vgg.data.images import UnreadableImage
from bn_vgg.errors import UserError


def picture(number=0):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (number % 256, number // 256 % 256, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def write_zip(path, members, compression=zipfile.ZIP_STORED):
    """Writes `members`, a mapping of names to contents, in its order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def write_folder(path, members):
    for name, data in members.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def names(spec):
    return [file.name for file in list_images(str(spec))]


def keys(source):
    return [record.key for record in source.records]


def message(call, spec):
    with pytest.raises(UserError) as caught:
        call(str(spec))
    text = str(caught.value)
    assert "\n" not in text
    return text


def why(file):
    with pytest.raises(UnreadableImage) as caught:
        file.read_bytes()
    text = str(caught.value)
    assert text
    assert "\n" not in text
    return text


def directory_field(path, offset, value):
    """Overwrites a field of the first member's entry in the archive's central directory."""
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\1\2") + offset
    data[at : at + len(value)] = value
    path.write_bytes(data)


KAGGLE = {f"train/{kind}.{n}.png": picture(n) for n in (0, 2, 10) for kind in ("dog", "cat")}
MICROSOFT = {f"PetImages/{k}/{n}.png": picture(n) for n in (0, 2, 10) for k in ("Dog", "Cat")}
KEYS = ["cat/0.png", "cat/2.png", "cat/10.png", "dog/0.png", "dog/2.png", "dog/10.png"]
