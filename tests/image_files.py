"""What the tests of files share: archives and folders of tiny images."""

import io
import zipfile

from PIL import Image

from bn_vgg.data.files import list_images


def encode(image, file_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def picture(number=0):
    return encode(Image.new("RGB", (4, 3), (number % 256, number // 256 % 256, 7)))


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


KAGGLE = {f"train/{kind}.{n}.png": picture(n) for n in (0, 2, 10) for kind in ("dog", "cat")}
MICROSOFT = {f"PetImages/{k}/{n}.png": picture(n) for n in (0, 2, 10) for k in ("Dog", "Cat")}
KEYS = ["cat/0.png", "cat/2.png", "cat/10.png", "dog/0.png", "dog/2.png", "dog/10.png"]
