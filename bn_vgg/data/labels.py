"""Image files as a labelled source: classes by file names or by folders."""

import hashlib
import re
import sys
from collections import Counter

from tqdm import tqdm

from bn_vgg.data.files import ImageFile, list_images, natural_key
from bn_vgg.data.sources import Record, Source
from bn_vgg.errors import UserError

_KAGGLE = re.compile(r"(?P<label>[^.]+)\.(?P<rest>[0-9]+\.[^.]+)")
_TEST_FOLDER = re.compile(r"test(ing)?([ _-]?(set|data|images))?\d*")
# Folders that are not classes; the first is an archive's root.
_NO_CLASS = re.compile(r"|train(ing)?|valid(ation)?|val|test\d*")
# With this share of names like Kaggle's, files with other names are ignored.
_NEARLY_ALL = 0.9

# A file, its class, and its name within the class.
_Labelled = tuple[ImageFile, str, str]


def labelled_files(spec: str) -> Source:
    """Opens images that are labelled by their names or folders.

    The class is either part of the file's name, `<class>.<number>.<extension>`, as in Kaggle's
    archive (`cat.12.jpg`), or the name of its folder, as in Microsoft's (`PetImages/Cat/12.jpg`).
    Classes are lower case and in alphabetical order. A record's key is `cat/12.jpg` in either
    layout; if another file has the same key, `@` and the file's name are appended. Unlabelled files
    in `test` or `test1`, and a few files that are not named like Kaggle's others, are left out,
    with a message on standard error.

    The fingerprint is a digest of keys, sizes and each image's CRC-32 (archives) or modification
    time (folders). It reads no image and does not depend on the paths.

    Raises:
      UserError: as for `list_images`; there are fewer than two classes; or names and folders give
        different classes.
    """
    keyed: dict[str, tuple[str, ImageFile]] = {}
    for file, class_name, rest in _classify(list_images(spec), spec):
        key = f"{class_name}/{rest.replace('@', '%40')}"  # see `Record`
        while key in keyed:
            key = f"{key}@{file.name}"
        keyed[key] = class_name, file
    keys = sorted(keyed, key=natural_key)
    class_names = sorted({class_name for class_name, _ in keyed.values()})
    files = [keyed[key][1] for key in keys]
    digest = hashlib.blake2b(digest_size=16)
    for key, file in zip(keys, files, strict=True):
        digest.update(f"{key}\0{file.size}\0{file.stamp}\n".encode())
    return Source(
        description=spec,
        fingerprint=digest.hexdigest(),
        class_names=tuple(class_names),
        records=[Record(key, class_names.index(keyed[key][0])) for key in keys],
        readers=lambda: (file.decode for file in files),
    )


def _classify(files: list[ImageFile], spec: str) -> list[_Labelled]:
    by_name: list[_Labelled] = []
    by_folder: list[_Labelled] = []
    unlabelled, strays = [], []
    elsewhere = {_folder(file) for file in files if not _is_for_test(file)}
    for file in files:
        base, folder = file.name.rpartition("/")[2], _folder(file)
        if match := _KAGGLE.fullmatch(base):
            by_name.append((file, match["label"].lower(), match["rest"]))
        elif _TEST_FOLDER.fullmatch(folder) or (elsewhere and folder not in elsewhere):
            unlabelled.append(file)  # test/1.jpg, or test/all/1.jpg beside train/cat/1.jpg
            continue
        else:
            strays.append(file)
        by_folder.append((file, folder, base))
    _report_left_out(unlabelled, "without labels", spec)
    names, folders = _classes(by_name), _classes(by_folder)
    have_names = len(names) > 1
    have_folders = len(folders) > 1 and folders[0] and not all(map(_NO_CLASS.fullmatch, folders))
    if have_names and have_folders and _disagree(by_name, by_folder):
        raise UserError(
            f"{spec!r}: by the files' names the classes are {_shorten(names)} (as in "
            f"{by_name[0][0].name!r}), by their folders {_shorten(folders)}: rename either, so "
            "that they agree or only one of them makes classes"
        )
    if have_folders and (strays or not have_names):
        return by_folder
    if have_names and len(by_name) >= _NEARLY_ALL * len(by_folder):
        _report_left_out(strays, "not named <class>.<number>.<extension>", spec)
        return by_name
    unclear = [file.name for file in strays if have_names or not file.parent][:1]
    problem = f"nothing says what {unclear[0]!r} shows" if unclear else "two classes are needed"
    raise UserError(
        f"{spec!r}: {problem} (classes by the files' names: {_shorten(names)}; by their folders: "
        f"{_shorten(folders)}); call all files cat.1.jpg, dog.1.jpg, ... or put each class in a "
        "folder of its own"
    )


def _disagree(by_name: list[_Labelled], by_folder: list[_Labelled]) -> bool:
    """Whether names and folders group the files differently.

    They do not for cat.1.jpg in cats and dog.1.jpg in dogs. Folders where only some files are named
    like Kaggle's are ignored.
    """
    sizes = Counter(folder for _, folder, _ in by_folder)
    named = Counter(_folder(file) for file, _, _ in by_name)
    groups = {
        (_folder(file), name)
        for file, name, _ in by_name
        if named[_folder(file)] >= _NEARLY_ALL * sizes[_folder(file)]
    }
    return any(len(set(side)) < len(groups) for side in zip(*groups, strict=True))


def _classes(labelled: list[_Labelled]) -> list[str]:
    return sorted({class_name for _, class_name, _ in labelled})


def _folder(file: ImageFile) -> str:
    return file.parent.lower()


def _is_for_test(file: ImageFile) -> bool:
    return any(map(_TEST_FOLDER.fullmatch, [*file.name.lower().split("/")[:-1], _folder(file)]))


def _shorten(names: list[str]) -> str:
    return ", ".join(filter(None, names[:6])) + (", ..." if len(names) > 6 else "") or "none"


def _report_left_out(files: list[ImageFile], why: str, spec: str) -> None:
    if files:
        text = f"{spec}: left out {len(files)} images {why}, such as {files[0].name!r}"
        tqdm.write(text, file=sys.stderr)
