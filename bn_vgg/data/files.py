"""Lists and reads image files in folders and zip archives. Nothing is extracted to disk."""

import glob
import os
import re
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from PIL import Image

from bn_vgg.data import images
from bn_vgg.data.images import UnreadableImage
from bn_vgg.errors import NotFoundError, UserError, one_line

EXTENSIONS = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")

# The largest image file that is read, so that a damaged archive cannot exhaust the memory.
MAX_BYTES = 256 * 2**20


@dataclass(frozen=True)
class ImageFile:
    """An image file in a folder or in a zip archive."""

    name: str  # path within the given folder or archive, with forward slashes
    parent: str  # name of the file's folder, empty at an archive's root
    size: int  # in bytes, uncompressed
    stamp: int  # an archive's CRC-32, or the modification time in ns
    container: str  # path of the given folder or archive, without symbolic links
    path: str  # without symbolic links: the same for a file that is given or linked twice
    read: Callable[[], bytes]

    def decode(self) -> Image.Image:
        """Reads and decodes the file, in any thread; raises UnreadableImage."""
        if self.size > MAX_BYTES:
            raise UnreadableImage(f"{self.size:,} bytes: more than {MAX_BYTES:,}")
        try:
            data = self.read()
        except Exception as error:  # zipfile raises many types for a damaged archive
            raise UnreadableImage(one_line(error)) from error
        return images.decode(data)


def list_images(spec: str) -> list[ImageFile]:
    """Lists the images of a path, a glob pattern, or several of these separated by commas.

    Each path is a folder, a zip archive or an image file. Folders are searched recursively and
    through links; hidden files, and archives in folders, are ignored. No file is listed twice.
    Names are in natural order. If two folders or archives hold equal names, every name is prefixed
    with its folder or archive.

    Raises:
      UserError: a path does not exist, cannot be read or holds no image.
    """
    found: dict[str, ImageFile] = {}
    for path in _expand(spec):
        # Of two members of an archive with the same name the last counts, as in unzipping.
        found = {file.path: file for file in _list_path(path)} | found
    files = list(found.values())
    if len({file.name for file in files}) < len(files):
        common = os.path.commonpath([os.path.dirname(file.container) for file in files])
        files = [replace(f, name=f"{os.path.relpath(f.container, common)}/{f.name}") for f in files]
    return sorted(files, key=lambda file: natural_key(file.name))


def natural_key(text: str) -> tuple[list, str]:
    """Returns a sort key by which 2 comes before 10; ties are broken by the text itself."""
    parts: list = re.split("([0-9]+)", text.casefold())
    # Not `int`, which refuses more than 4,300 digits.
    parts[1::2] = [(len(digits), digits) for digits in (p.lstrip("0") for p in parts[1::2])]
    return parts, text


def _expand(spec: str) -> list[str]:
    if whole := _matches(spec):  # a path may contain commas and brackets
        return whole
    paths = []
    for part in filter(None, map(str.strip, spec.split(","))):
        matches = _matches(part)
        if not matches and glob.has_magic(part):
            raise NotFoundError(f"{part!r} matches no folder, zip archive or image; {_here()}")
        paths += matches or [os.path.expanduser(part)]
    if not paths:
        raise UserError("no images given: name a zip archive, a folder or a pattern such as *.zip")
    return paths


def _matches(spec: str) -> list[str]:
    path = os.path.expanduser(spec.strip())
    if os.path.exists(path):
        return [path]
    found = sorted(glob.glob(path, recursive=True)) if glob.has_magic(path) else []
    return [p for p in found if os.path.isdir(p) or p.lower().endswith((".zip", *EXTENSIONS))]


def _list_path(path: str) -> list[ImageFile]:
    try:
        if os.path.isdir(path):
            files = list(_in_folder(os.path.realpath(path)))
        elif _is_image(path):
            files = [_on_disk(os.path.realpath(os.path.dirname(path)), os.path.basename(path))]
        else:
            files = list(_in_archive(os.path.realpath(path)))
    except PermissionError as error:
        where = error.filename or path
        raise UserError(f"this user may not read {where!r}: chmod it, or use a copy") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        where = error.filename if os.path.isdir(path) else path
        raise NotFoundError(f"{where!r} does not exist, or links to nothing; {_here()}") from error
    except Exception as error:  # zipfile raises many types for a damaged archive
        raise UserError(
            f"{path!r} is not a folder, an image or a complete zip archive ({one_line(error)}): "
            "copy or download it again"
        ) from error
    if not files:
        raise UserError(
            f"{path!r} holds no images, whose names end in {', '.join(EXTENSIONS)}; unzip nested "
            "archives, or give their own paths"
        )
    return files


def _in_folder(top: str) -> Iterator[ImageFile]:
    pending, seen = [top], set()  # linked folders come last, and may form a cycle
    while pending:
        for folder, folders, names in os.walk(pending.pop(0), onerror=_raise):
            real = os.path.realpath(folder)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = [name for name in folders if not _is_hidden(name)]
            paths = [os.path.join(folder, name) for name in folders]
            pending += sorted(filter(os.path.islink, paths))  # `os.walk` does not enter links
            for name in names:
                path = os.path.join(folder, name)
                if _is_hidden(name):
                    continue
                if os.path.islink(path):
                    os.stat(path)  # a broken link may stand for a whole class: raise an error
                if _is_image(name) and os.path.isfile(path):
                    yield _on_disk(top, os.path.relpath(path, top), os.path.join(real, name))


def _raise(error: OSError) -> None:
    raise error


def _on_disk(top: str, inner: str, path: str = "") -> ImageFile:
    inside = os.path.join(top, inner)
    status = os.stat(inside)
    return ImageFile(
        name=_encodable(inner.replace(os.sep, "/")),
        parent=_encodable(os.path.basename(os.path.dirname(inside))),
        size=status.st_size,
        stamp=status.st_mtime_ns,
        container=_encodable(top),
        path=path or inside,
        read=Path(inside).read_bytes,
    )


def _in_archive(path: str) -> Iterator[ImageFile]:
    archive = zipfile.ZipFile(path)
    lock = threading.Lock()  # opening a member of a ZipFile is not thread-safe

    def read(info: zipfile.ZipInfo) -> bytes:
        with lock, archive.open(info) as member:
            return member.read(info.file_size + 1)  # at most the size in its header

    for info in archive.infolist():
        # Some programs write backslashes or a leading "./".
        parts = [p for p in info.filename.replace("\\", "/").split("/") if p not in ("", ".")]
        if not parts or info.is_dir() or not _is_image(parts[-1]) or any(map(_is_hidden, parts)):
            continue
        yield ImageFile(
            name="/".join(parts),
            parent=parts[-2] if len(parts) > 1 else "",
            size=info.file_size,
            stamp=info.CRC,
            container=_encodable(path),
            path="/".join([path, *parts]),
            read=partial(read, info),
        )


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _is_hidden(name: str) -> bool:
    # Folders of macOS archives, of thumbnails on Synology and QNAP, and of Windows.
    return name.startswith(".") or name in ("__MACOSX", "@eaDir", "$RECYCLE.BIN")


def _encodable(name: str) -> str:
    """Escapes bytes that are not UTF-8, because they cannot be hashed or written."""
    return name.encode("utf-8", "backslashreplace").decode()


def _here() -> str:
    return f"the working directory is {os.getcwd()!r}"
