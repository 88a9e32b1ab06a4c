"""Lists and reads image files in folders and zip archives. Nothing is extracted to disk."""

import glob
import itertools
import os
import re
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from PIL import Image

from bn_vgg.data import images
from bn_vgg.data.images import UnreadableImage
from bn_vgg.errors import NotThereError, UserError, one_line

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")

# Of one image file: bounds what a hostile archive can make a read allocate.
MAX_BYTES = 256 * 2**20


@dataclass(frozen=True)
class ImageFile:
    """An image file in a folder or in a zip archive.

    Attributes:
      name: path within the folder or archive that was given, with forward slashes; see
        `list_images` for what happens when two of those hold equal ones.
      parent: name of the folder that holds the file, empty at an archive's root.
      size: in bytes, uncompressed.
      stamp: changes with the content: an archive's CRC-32, a folder's modification time in ns.
      container: path of the folder or archive that was given, without symbolic links.
      path: unique, without symbolic links to folders.
      read: returns the file's bytes.
    """

    name: str
    parent: str
    size: int
    stamp: int
    container: str
    path: str
    read: Callable[[], bytes]

    def decode(self) -> Image.Image:
        """Reads and decodes the file, from any thread.

        Raises:
          UnreadableImage: the file is gone, damaged, encrypted, larger than MAX_BYTES, or
            `images.decode` raises it.
        """
        if self.size > MAX_BYTES:
            raise UnreadableImage(f"{self.size:,} bytes: more than {MAX_BYTES:,}")
        try:
            data = self.read()
        except Exception as error:  # a damaged archive makes zipfile raise a dozen types
            raise UnreadableImage(one_line(error)) from error
        return images.decode(data)


def list_images(spec: str) -> list[ImageFile]:
    """Lists the images that a path, a pattern or several of them with commas between name.

    Each path is a folder, a zip archive or an image file; `~` and the patterns of `glob` are
    expanded. A pattern passes over files that are neither archives nor images by their
    extensions. Folders are searched to the bottom, through links too, each real folder once.
    Hidden files and archives inside are passed over. What is named twice is listed once.

    The order is that of the names, numbers by their value. Where two folders or archives hold
    equal names, every name starts with the folder's or archive's own, and with as many folders
    above it as tell them apart.

    Raises:
      UserError: a path does not exist, cannot be read or holds no image.
    """
    found: dict[str, ImageFile] = {}
    for path in _expand(spec):
        for file in _list_input(path):
            found.setdefault(file.path, file)
    files = list(found.values())
    if len({file.name for file in files}) < len(files):
        prefixes = _distinct_ends({file.container for file in files})
        files = [replace(f, name=f"{prefixes[f.container]}/{f.name}") for f in files]
    return sorted(files, key=lambda file: natural_key(file.name))


def natural_key(text: str) -> tuple[list, str]:
    """Returns a sort key by which 2 comes before 10; the text itself decides ties."""
    parts: list = re.split("([0-9]+)", text.casefold())
    # By the number of digits, then by the digits: int() refuses more than 4,300 of them.
    parts[1::2] = [(len(digits), digits) for digits in (p.lstrip("0") for p in parts[1::2])]
    return parts, text


def _expand(spec: str) -> list[str]:
    if os.path.exists(spec):  # it may hold commas and brackets
        return [spec]
    paths = []
    for part in filter(None, map(str.strip, spec.split(","))):
        path = os.path.expanduser(part)
        if os.path.exists(path) or not glob.has_magic(path):
            paths.append(path)  # `_list_input` says what is wrong with it
            continue
        matches = sorted(glob.glob(path, recursive=True))
        useful = [m for m in matches if os.path.isdir(m) or _is_zip(m) or _is_image(m)]
        if not useful:
            what = "no folder, zip archive or image" if matches else "nothing"
            raise NotThereError(f"{path!r} matches {what}{_where(path)}")
        paths += useful
    if not paths:
        raise UserError("no images given: name a zip archive, a folder or a pattern such as *.zip")
    return paths


def _list_input(path: str) -> list[ImageFile]:
    try:
        if not os.path.isdir(path) and not os.path.isfile(path):
            os.stat(path)
            raise UserError(f"{path!r} is neither a file nor a folder")
        if os.path.isdir(path):
            files = list(_folder_files(path))
        elif _is_image(path):
            files = [_on_disk(os.path.realpath(os.path.dirname(path)), os.path.basename(path))]
        else:
            files = _archive_files(path)
    except PermissionError as error:
        where = os.path.abspath(error.filename or path)
        raise UserError(f"this user may not read {where!r}: chmod it, or use a copy") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotThereError(f"{error.filename or path!r} does not exist{_where(path)}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path!r}: {one_line(error)}") from error
    if not files:
        raise UserError(
            f"{path!r} holds no images: their names end in {', '.join(EXTENSIONS)}; zip archives "
            "inside are not opened: name them themselves, or unzip the outer one once"
        )
    return files


def _folder_files(top: str) -> Iterator[ImageFile]:
    """Yields the images below `top`; linked folders after the others, each real folder once."""
    top = os.path.realpath(top)
    pending, seen = [top], set()
    while pending:
        for folder, folders, names in os.walk(pending.pop(0), onerror=_raise):
            real = os.path.realpath(folder)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = [name for name in folders if not _is_hidden(name)]
            paths = [os.path.join(folder, name) for name in folders]
            pending += sorted(filter(os.path.islink, paths))  # `walk` passes over these
            inside = os.path.relpath(folder, top)
            for name in names:
                path = os.path.join(folder, name)
                if _is_hidden(name):
                    continue
                if os.path.islink(path) and not os.path.exists(path):
                    raise UserError(f"{path!r} is a link to nothing: restore that, or delete it")
                if _is_image(name) and os.path.isfile(path):
                    yield _on_disk(top, os.path.normpath(os.path.join(inside, name)), real)


def _raise(error: OSError) -> None:
    raise error


def _on_disk(top: str, inner: str, folder: str = "") -> ImageFile:
    path = os.path.join(top, inner)
    status = os.stat(path)
    return ImageFile(
        name=_encodable(inner.replace(os.sep, "/")),
        parent=_encodable(os.path.basename(os.path.dirname(path))),
        size=status.st_size,
        stamp=status.st_mtime_ns,
        container=top,
        path=os.path.join(folder or top, os.path.basename(path)),
        read=partial(_read_file, path),
    )


def _read_file(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(MAX_BYTES)


def _archive_files(path: str) -> list[ImageFile]:
    real = os.path.realpath(path)
    try:
        archive = zipfile.ZipFile(real)
    except PermissionError:
        raise
    except Exception as error:  # zipfile raises a dozen types on a damaged directory
        kind = "a complete zip archive" if _is_zip(path) else "a folder, zip archive or image"
        raise UserError(
            f"{path!r} is not {kind} ({one_line(error)}): copy or download it again"
        ) from error
    lock = threading.Lock()  # ZipFile counts its open members without one
    found = {}  # of two members with one name the later counts, as when extracting
    for info in archive.infolist():
        # Some programs write backslashes, and some a leading "./".
        parts = [p for p in info.filename.replace("\\", "/").split("/") if p not in ("", ".")]
        if not parts or info.is_dir() or not _is_image(parts[-1]) or any(map(_is_hidden, parts)):
            continue
        name = _encodable("/".join(parts))
        parent = _encodable(parts[-2]) if len(parts) > 1 else ""
        read = partial(_read_member, archive, lock, info)
        found[name] = ImageFile(
            name, parent, info.file_size, info.CRC, real, f"{real}/{name}", read
        )
    return list(found.values())


def _read_member(archive: zipfile.ZipFile, lock: threading.Lock, info: zipfile.ZipInfo) -> bytes:
    with lock, archive.open(info) as member:
        return member.read(info.file_size + 1)  # no more than the directory says, and its CRC


def _distinct_ends(paths: Iterable[str]) -> dict[str, str]:
    """Returns the last parts of each path, the same number of each, and as few as suffice."""
    parts = {path: path.split(os.sep) for path in paths}
    for count in itertools.count(1):
        ends = {path: "/".join(split[-count:]) for path, split in parts.items()}
        if len(set(ends.values())) == len(ends):
            break
    return {path: _encodable(end) for path, end in ends.items()}


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _is_zip(name: str) -> bool:
    return name.lower().endswith(".zip")


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _encodable(name: str) -> str:
    """Escapes bytes that are no UTF-8: hashing them would fail."""
    return name.encode("utf-8", "backslashreplace").decode()


def _where(path: str) -> str:
    return f"{'' if os.path.isabs(path) else f' in {os.getcwd()!r}'}: check the path"
