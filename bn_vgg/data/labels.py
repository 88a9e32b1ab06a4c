"""Image files as a labelled source: classes by file names or by folders."""

import hashlib
import re
import sys

from tqdm import tqdm

from bn_vgg.data.files import ImageFile, list_images, natural_key
from bn_vgg.data.sources import Record, Source
from bn_vgg.errors import UserError

_KAGGLE = re.compile(r"(?P<label>[^.]+)\.(?P<rest>[0-9]+\.[^.]+)")
_TEST_FOLDER = re.compile(r"test(ing)?([ _-]?(set|data|images))?\d*")
# Folders that are not classes; the first is an archive's root.
_NO_CLASS = re.compile(r"|train(ing)?|valid(ation)?|val|test\d*")

# A file, its class, and its name within the class.
_Labelled = tuple[ImageFile, str, str]


def labelled_files(spec: str) -> Source:
    """Opens images that are labelled by their names or folders.

    The class is either part of the file's name, `<class>.<number>.<extension>`, as in Kaggle's
    archive (`cat.12.jpg`), or the name of its folder, as in Microsoft's (`PetImages/Cat/12.jpg`).
    Classes are lower case and in alphabetical order. A record's key is `cat/12.jpg` in either
    layout; if another file has the same key, `@` and the file's name are appended. Unlabelled files
    in folders such as `test1` are left out, with a message on standard error.

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
    unlabelled = []
    elsewhere = {_folder(file) for file in files if not _is_in_test_folder(file)}
    for file in files:
        base, folder = file.name.rpartition("/")[2], _folder(file)
        if match := _KAGGLE.fullmatch(base):
            by_name.append((file, match["label"].lower(), match["rest"]))
        elif _TEST_FOLDER.fullmatch(folder) or (elsewhere and folder not in elsewhere):
            unlabelled.append(file.name)  # test/1.jpg, or test/all/1.jpg beside train/cat/1.jpg
            continue
        by_folder.append((file, folder, base))
    if unlabelled:
        example = f"such as {unlabelled[0]!r}"
        text = f"{spec}: left out {len(unlabelled)} images without labels, {example}"
        tqdm.write(text, file=sys.stderr)
    names, folders = (sorted({label for _, label, _ in each}) for each in (by_name, by_folder))
    have_names = len(names) > 1 and len(by_name) == len(by_folder)
    have_folders = len(folders) > 1 and "" not in folders
    have_folders = have_folders and not all(map(_NO_CLASS.fullmatch, folders))
    # They agree if they are one to one, as for cats/cat.1.jpg and dogs/dog.1.jpg.
    pairs = {(_folder(file), name) for file, name, _ in by_name}
    agree = len(pairs) == len(names) == len({folder for folder, _ in pairs})
    if (have_names or have_folders) and (agree or len(names) < 2 or not have_folders):
        return by_name if have_names else by_folder
    # By names if there are any, otherwise by folders.
    unclear = [f.name for f, of, x in by_folder if not (_KAGGLE.fullmatch(x) if names else of)]
    raise UserError(
        f"{spec!r}: {f'{unclear[0]!r} has no label; ' if unclear else ''}classes by file names: "
        f"{', '.join(names[:6]) or 'none'}; by folders: "
        f"{', '.join(filter(None, folders[:6])) or 'none'}; name all files "
        "cat.1.jpg, dog.1.jpg, ... or give each class its own folder; if both do, they must agree"
    )


def _folder(file: ImageFile) -> str:
    return file.parent.lower()


def _is_in_test_folder(file: ImageFile) -> bool:
    return any(map(_TEST_FOLDER.fullmatch, [*file.name.lower().split("/")[:-1], _folder(file)]))
