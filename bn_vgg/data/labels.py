"""Image files as a labelled source: the class is in the file's name or its folder's."""

import hashlib
import re
import sys
from collections import Counter

from tqdm import tqdm

from bn_vgg.data.files import ImageFile, list_images, natural_key
from bn_vgg.data.source import Record, Source
from bn_vgg.errors import UserError

# A file, its class, and its name within the class.
_Labelled = tuple[ImageFile, str, str]

_KAGGLE = re.compile(r"(?P<label>[^.]+)\.(?P<rest>[0-9]+\.[^.]+)")
_TEST_FOLDER = re.compile(r"test\d*")
# Folders that alone make no classes.
_NO_CLASS = re.compile(r"|train|training|valid|validation|val|test\d*")
# Where so many names are like Kaggle's, the others are strays.
_NEARLY_ALL = 0.9
_LAYOUTS = "call the files cat.1.jpg, dog.1.jpg, ... or put each class in a folder of its own"


def labelled_files(spec: str) -> Source:
    """Opens images whose names or folders say what they show.

    A class is either in the names, `<class>.<number>.<extension>`, as Kaggle has it (`cat.12.jpg`),
    or it is the folder that holds the file, as Microsoft has it (`PetImages/Cat/12.jpg`). Classes
    are lower case and in alphabetical order. A record's key is `cat/12.jpg` in either layout, in
    archives as in folders; another file with the same key has `@` and its name added. Files that
    neither rule labels are left out: those in `test` and `test1`, and a few strays among Kaggle's
    names; standard error says so.

    The fingerprint covers keys, sizes and, for archives, the CRC-32 of every image from the
    archive's directory; for folders the modification times. No image is read for it. It depends
    neither on where the archives and folders are nor on their order.

    Raises:
      UserError: as for `list_images`; no two classes are found; or names and folders disagree.
    """
    keyed: dict[str, tuple[str, ImageFile]] = {}
    for file, class_name, rest in _classify(list_images(spec), spec):
        key = f"{class_name}/{rest}"
        while key in keyed:
            key = f"{key}@{file.name}"
        keyed[key] = class_name, file
    keys = sorted(keyed, key=natural_key)
    class_names = tuple(sorted({class_name for class_name, _ in keyed.values()}))
    labels = {class_name: label for label, class_name in enumerate(class_names)}
    files = [keyed[key][1] for key in keys]
    digest = hashlib.blake2b(digest_size=16)
    for key, file in zip(keys, files, strict=True):
        digest.update(f"{key}\0{file.size}\0{file.stamp}\n".encode())
    return Source(
        description=spec,
        fingerprint=digest.hexdigest(),
        class_names=class_names,
        records=[Record(key, labels[keyed[key][0]]) for key in keys],
        read=lambda index: files[index].decode(),
    )


def _classify(files: list[ImageFile], spec: str) -> list[_Labelled]:
    matches = [_KAGGLE.fullmatch(_base(file)) for file in files]
    unlabelled, strays = [], []
    by_name: list[_Labelled] = []
    by_folder: list[_Labelled] = []
    for file, match in zip(files, matches, strict=True):
        if not match and _TEST_FOLDER.fullmatch(_folder(file)):
            unlabelled.append(file)
            continue
        by_folder.append((file, _folder(file), _base(file)))
        if match:
            by_name.append((file, match["label"].lower(), match["rest"]))
        else:
            strays.append(file)
    _say_left_out(unlabelled, "in a folder for tests, without labels", spec)
    names, folders = _classes(by_name), _classes(by_folder)
    has_folders = len(folders) > 1 and not all(map(_NO_CLASS.fullmatch, folders)) and folders[0]
    if len(names) > 1 and has_folders:
        if _disagree(by_name, by_folder):
            raise UserError(
                f"{spec!r}: by the files' names the classes are {_some(names)} (as in "
                f"{by_name[0][0].name!r}), by their folders {_some(folders)}: rename either, so "
                "that they agree or only one of them makes classes"
            )
        return by_folder if strays else by_name
    if len(names) > 1:
        if len(by_name) < _NEARLY_ALL * len(by_folder):
            raise UserError(
                f"{spec!r} mixes {len(by_name)} images with their class in the name, such as "
                f"{by_name[0][0].name!r}, and {len(strays)} others, such as {strays[0].name!r}: "
                "give only one kind"
            )
        _say_left_out(strays, "not named <class>.<number>.<extension> as the others are", spec)
        return by_name
    if has_folders:
        return by_folder
    where = f", as for {strays[0].name!r}" if strays else ""
    raise UserError(
        f"{spec!r} does not hold two classes (by the files' names: {_some(names)}; by their "
        f"folders: {_some(folders)}{where}): {_LAYOUTS}"
    )


def _disagree(by_name: list[_Labelled], by_folder: list[_Labelled]) -> bool:
    """Whether names and folders make different groups, in all or in a folder named like Kaggle's.

    `cats/cat.1.jpg` and `dogs/dog.1.jpg` agree: it is the same two groups.
    """
    groups = {(_folder(file), name) for file, name, _ in by_name}
    if len(by_name) >= _NEARLY_ALL * len(by_folder):
        return not len(groups) == len(_classes(by_name)) == len(_classes(by_folder))
    num_named = Counter(_folder(file) for file, _, _ in by_name)
    num_files = Counter(folder for _, folder, _ in by_folder)
    num_names = Counter(folder for folder, _ in groups)
    return any(
        num_names[folder] > 1 and num_named[folder] >= _NEARLY_ALL * count
        for folder, count in num_files.items()
    )


def _classes(labelled: list[_Labelled]) -> list[str]:
    return sorted({class_name for _, class_name, _ in labelled})


def _folder(file: ImageFile) -> str:
    return file.parent.lower()


def _base(file: ImageFile) -> str:
    return file.name.rpartition("/")[2]


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") or "none"


def _say_left_out(files: list[ImageFile], why: str, spec: str) -> None:
    if files:
        message = f"{spec}: left out {len(files)} images {why}, such as {files[0].name!r}"
        tqdm.write(message, file=sys.stderr)
