"""Image files as a labelled source: the class is in the file's name or its folder's."""

import hashlib
import re
from collections.abc import Sequence

from PIL import Image

from bn_vgg.data.files import ImageFile, list_images, natural_key
from bn_vgg.data.source import Record
from bn_vgg.errors import UserError

_KAGGLE = re.compile(r"(?P<name>[^.]+)\.(?P<rest>[0-9]+\.[^.]+)")


class LabelledFiles:
    """A source of images whose names or folders say what they show.

    Where every file is called `<class>.<number>.<extension>`, as Kaggle has it (`cat.12.jpg`),
    that is the class; otherwise it is the folder that holds the file, as Microsoft has it
    (`PetImages/Cat/12.jpg`). Classes are lower case and in alphabetical order. A record's key is
    `cat/12.jpg` in either layout, in archives as in folders; another file with the same key has
    `@` and its name added.

    The fingerprint covers keys, sizes and, for archives, the CRC-32 of every image from the
    archive's directory; for folders the modification times. No image is read for it. It depends
    neither on where the archives and folders are nor on their order.

    Raises:
      UserError: as for `list_images`, or no two classes are found.
    """

    def __init__(self, spec: str):
        files = list_images(spec)
        classes, file_names = _classify(files, spec)
        self.class_names = tuple(sorted(set(classes)))
        labels = {name: label for label, name in enumerate(self.class_names)}
        keyed: dict[str, tuple[int, ImageFile]] = {}
        for file, class_name, file_name in zip(files, classes, file_names, strict=True):
            key = f"{class_name}/{file_name}"
            while key in keyed:
                key = f"{key}@{file.name}"
            keyed[key] = labels[class_name], file
        keys = sorted(keyed, key=natural_key)
        self.records: Sequence[Record] = [Record(key, keyed[key][0]) for key in keys]
        self._files = [keyed[key][1] for key in keys]
        self.description = spec
        self.fingerprint = _fingerprint(keys, self._files)

    def read(self, index: int) -> Image.Image:
        """Decodes the image of `records[index]` as upright RGB.

        Raises:
          UnreadableImage: the file cannot be read or decoded; the message says why.
        """
        return self._files[index].decode()


def _classify(files: list[ImageFile], spec: str) -> tuple[list[str], list[str]]:
    """Returns each file's class and its name in the class's folder."""
    layouts = "call the files cat.1.jpg, dog.1.jpg, ... or put each class in a folder of its own"
    names = [file.name.rpartition("/")[2] for file in files]
    matches = [_KAGGLE.fullmatch(name) for name in names]
    kaggle = [match for match in matches if match]
    if len(kaggle) == len(files):
        classes = [match["name"].lower() for match in kaggle]
        names = [match["rest"] for match in kaggle]
    else:
        if _has_kaggle_folder(files, matches):
            other = next(f.name for f, match in zip(files, matches, strict=True) if not match)
            raise UserError(
                f"{spec!r} mixes images with their class in the name, such as "
                f"{kaggle[0].string!r}, and others, such as {other!r}: give only one kind"
            )
        classes = [file.parent.lower() for file in files]
        if "" in classes:
            stray = files[classes.index("")].name
            raise UserError(f"nothing says what {stray!r} in {spec!r} shows: {layouts}")
    found = sorted(set(classes))
    if len(found) < 2:
        raise UserError(f"{spec!r} holds only one class, {found[0]!r}: {layouts}")
    return classes, names


def _has_kaggle_folder(files: list[ImageFile], matches: Sequence[re.Match[str] | None]) -> bool:
    """Whether some folder holds two classes or more, told by all its files' names.

    Kaggle's labelled and unlabelled images together have one. Their folders, `train` and
    `test1`, must not pass for classes.
    """
    folders: dict[tuple[str, str], set[str]] = {}
    for file, match in zip(files, matches, strict=True):
        folder = file.container.path, file.name.rpartition("/")[0]
        folders.setdefault(folder, set()).add(match["name"].lower() if match else "")
    return any(len(classes) > 1 and "" not in classes for classes in folders.values())


def _fingerprint(keys: Sequence[str], files: Sequence[ImageFile]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for key, file in zip(keys, files, strict=True):
        digest.update(f"{key}\0{file.size}\0{file.stamp}\n".encode())
    return digest.hexdigest()
