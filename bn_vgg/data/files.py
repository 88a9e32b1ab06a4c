"""Image files in zip archives and folders on this machine.

Nothing is extracted: members of an archive are read into memory one at a time.
"""

import glob
import itertools
import os
import re
import stat
import threading
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from PIL import Image

from bn_vgg.data import images
from bn_vgg.data.images import UnreadableImage
from bn_vgg.errors import NotThereError, UserError, one_line

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")

# Of one image file. It bounds what a hostile archive can make a read allocate.
MAX_BYTES = 256 * 2**20
# Files of more bytes are read one at a time: an archive may be full of the largest.
_LARGE = 16 * 2**20

_ENDINGS = ", ".join(EXTENSIONS)
# What breaks a line or steers a terminal.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class ImageFile(NamedTuple):
    """An image file in a folder or in a zip archive.

    Attributes:
      name: path within the folder or archive that was given, with forward slashes; see
        `list_images` for what happens when two of those hold equal ones.
      parent: name of the folder that holds the file, empty at an archive's root.
      size: in bytes, uncompressed.
      stamp: changes with the content: an archive's CRC-32, a folder's modification time in ns.
      container: what holds the file; its `path` is absolute, without symbolic links.
      inner: the container's own name for it.
    """

    name: str
    parent: str
    size: int
    stamp: int
    container: "_Folder | _Archive"
    inner: str

    def decode(self) -> Image.Image:
        """Reads and decodes the file, from any thread; large ones wait for each other.

        Raises:
          UnreadableImage: as for `read_bytes` and `images.decode`.
        """
        with images.large_image_lock(self.size > _LARGE):
            return images.decode(self.read_bytes())

    def read_bytes(self) -> bytes:
        """Reads the file, from any thread.

        Raises:
          UnreadableImage: the file is gone, damaged, encrypted or larger than MAX_BYTES.
        """
        _check_size(self.size)
        try:
            return self.container.read(self.inner)
        except UnreadableImage:
            raise
        except Exception as error:  # a damaged archive makes zipfile raise a dozen types
            raise UnreadableImage(one_line(error)) from error


def list_images(spec: str) -> list[ImageFile]:
    """Lists the images that a path, a pattern or several of them with commas between name.

    Each path is a folder, a zip archive or an image file; `~` and the patterns of `glob` (`**`
    too) are expanded, and a comma that belongs to an existing path is part of it. A pattern
    passes over files that are neither archives nor images by their extensions. Folders are
    searched to the bottom; links to folders, hidden files and archives inside are not followed.
    What is named twice is listed once.

    The order is that of the names, numbers by their value. Where two folders or archives hold
    equal names, every name starts with the folder's or archive's own, and with as many folders
    above it as tell them apart.

    Raises:
      UserError: a path does not exist, cannot be read or holds no image.
    """
    found: dict[str, ImageFile] = {}
    for path in _expand(spec):
        for file in _list_input(path):
            found.setdefault(f"{file.container.path}{os.sep}{file.inner}", file)
    files = list(found.values())
    if len({file.name for file in files}) < len(files):
        prefixes = _distinct_ends({file.container.path for file in files})
        files = [f._replace(name=f"{prefixes[f.container.path]}/{f.name}") for f in files]
    return sorted(files, key=lambda file: natural_key(file.name))


class _Folder:
    def __init__(self, path: str):
        self.path = os.path.realpath(path)

    def files(self) -> Iterator[ImageFile]:
        pending = [""]
        while pending:
            above = pending.pop()
            with os.scandir(os.path.join(self.path, above)) as entries:
                for entry in entries:
                    inner = os.path.join(above, entry.name)
                    if _is_hidden(entry.name):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(inner)
                    elif _is_image(entry.name) and entry.is_file():
                        yield self.file(inner, entry.stat())

    def file(self, inner: str, status: os.stat_result) -> ImageFile:
        parent = os.path.basename(os.path.dirname(os.path.join(self.path, inner)))
        name = _printable(inner.replace(os.sep, "/"))
        return ImageFile(name, _printable(parent), status.st_size, status.st_mtime_ns, self, inner)

    def zips(self) -> list[str]:
        return [name for name in os.listdir(self.path) if _is_zip(name)]

    def read(self, inner: str) -> bytes:
        with open(os.path.join(self.path, inner), "rb") as file:
            _check_size(os.fstat(file.fileno()).st_size)  # it may have grown since it was listed
            return file.read()


class _Archive:
    def __init__(self, path: str):
        self.path = os.path.realpath(path)
        self._zip = zipfile.ZipFile(self.path)
        # ZipFile counts its open members without a lock of its own.
        self._lock = threading.Lock()

    def files(self) -> Iterator[ImageFile]:
        members = {}  # of two members with one name the later counts, as when extracting
        for info in self._zip.infolist():
            # Some programs write backslashes, and some a leading "./".
            parts = [p for p in info.filename.replace("\\", "/").split("/") if p not in ("", ".")]
            wanted = parts and _is_image(parts[-1]) and not info.is_dir()
            if wanted and not any(map(_is_hidden, parts)):
                members["/".join(parts)] = (parts, info)
        for name, (parts, info) in members.items():
            parent = parts[-2] if len(parts) > 1 else ""
            yield ImageFile(
                _printable(name), _printable(parent), info.file_size, info.CRC, self, info.filename
            )

    def zips(self) -> list[str]:
        return [info.filename for info in self._zip.infolist() if _is_zip(info.filename)]

    def read(self, inner: str) -> bytes:
        info = self._zip.getinfo(inner)
        # zipfile bounds what one step unpacks for these two methods alone.
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UnreadableImage("compressed with neither of the methods stored and deflated")
        with self._lock, self._zip.open(info) as member:
            # With a bound zipfile unpacks no more than it; without, up to 2 GiB at once.
            return member.read(info.file_size + 1)


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise UnreadableImage(f"{size:,} bytes: more than {MAX_BYTES:,}")


def _expand(spec: str) -> list[str]:
    paths: list[str] = []
    parts = spec.split(",")
    while parts:
        for count in range(len(parts), 0, -1):  # the longest first: paths may hold commas
            path = os.path.expanduser(",".join(parts[:count]).strip())
            if path and os.path.exists(path):
                paths.append(path)
                break
        else:
            count, path = 1, os.path.expanduser(parts[0].strip())
            if re.search(r"[*?[]", path):
                paths += _matches(path)
            elif path:
                paths.append(path)  # `_list_input` says what is wrong with it
        parts = parts[count:]
    if not paths:
        raise UserError("no images given: name a zip archive, a folder or a pattern such as *.zip")
    return paths


def _matches(pattern: str) -> list[str]:
    paths = sorted(_glob(pattern))
    useful = [p for p in paths if os.path.isdir(p) or _is_zip(p) or _is_image(p)]
    if not useful:
        what = "no folder, zip archive or image" if paths else "nothing"
        raise NotThereError(f"{pattern!r} matches {what}{_where(pattern)}")
    return useful


def _glob(pattern: str) -> set[str]:
    """Like `glob.glob`, but `**` follows no links: they may lead back up, without end."""
    parts = pattern.split(os.sep)
    if "**" not in parts:
        return set(glob.glob(pattern))
    at = parts.index("**")
    tail = list(itertools.dropwhile(lambda part: part == "**", parts[at:]))
    found: set[str] = set()
    for top in glob.glob(os.sep.join([*parts[:at], ""])) if at else [os.curdir]:
        for folder, folders, names in os.walk(top):
            folders[:] = [name for name in folders if not name.startswith(".")]
            if tail:
                found |= _glob(os.path.join(glob.escape(folder), *tail))
            else:
                found.add(folder)
                found |= {os.path.join(folder, x) for x in names if not x.startswith(".")}
    return found


def _list_input(path: str) -> list[ImageFile]:
    try:
        status = os.stat(path)
        if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path!r} is neither a file nor a folder: give one of these")
        if stat.S_ISREG(status.st_mode) and _is_image(path):
            folder = _Folder(os.path.dirname(path))
            return [folder.file(os.path.basename(path), status)]
        container: _Folder | _Archive
        container = _Folder(path) if stat.S_ISDIR(status.st_mode) else _open_archive(path)
        files = list(container.files())
    except PermissionError as error:
        where = error.filename or path
        raise UserError(f"no permission to read {where!r}: chmod it, or use a copy") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        where = error.filename or path
        raise NotThereError(f"{where!r} does not exist{_where(path)}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path!r}: {one_line(error)}") from error
    if not files:
        raise UserError(_why_empty(path, container))
    return files


def _open_archive(path: str) -> _Archive:
    try:
        return _Archive(path)
    except PermissionError:
        raise
    except Exception as error:  # zipfile raises a dozen types on a damaged directory
        kind = "a complete zip archive" if _is_zip(path) else "a folder, zip archive or image"
        advice = "copy or download it again" if _is_zip(path) else f"images end in {_ENDINGS}"
        raise UserError(f"{path!r} is not {kind} ({one_line(error)}): {advice}") from error


def _why_empty(path: str, container: "_Folder | _Archive") -> str:
    zips = container.zips()
    if not zips:
        return f"{path!r} holds no images: their names end in {_ENDINGS}"
    if isinstance(container, _Folder):
        advice = f"give {os.path.join(path, '*.zip')!r}, or one of them"
    else:
        advice = "unzip it once, and give one of those"
    return f"{path!r} holds no images but zip archives ({_some(zips)}): {advice}"


def _distinct_ends(paths: Iterable[str]) -> dict[str, str]:
    """Returns the last parts of each path, the same number of each, and as few as suffice."""
    parts = {path: path.split(os.sep) for path in paths}
    for count in itertools.count(1):
        ends = {path: "/".join(split[-count:]) for path, split in parts.items()}
        if len(set(ends.values())) == len(ends):
            break
    return {path: _printable(end) for path, end in ends.items()}


def natural_key(text: str) -> tuple[list, str]:
    """Returns a sort key by which 2 comes before 10; the text itself decides ties."""
    parts: list = re.split("([0-9]+)", text.casefold())
    # By the number of digits, then by the digits: int() refuses more than 4,300 of them.
    parts[1::2] = [(len(digits), digits) for digits in (p.lstrip("0") for p in parts[1::2])]
    return parts, text


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _is_zip(name: str) -> bool:
    return name.lower().endswith(".zip")


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _printable(name: str) -> str:
    """Escapes control characters, and bytes that are no UTF-8: hashing them would fail."""
    visible = _CONTROL.sub(lambda match: repr(match[0])[1:-1], name)
    return visible.encode("utf-8", "backslashreplace").decode()


def _where(path: str) -> str:
    return f"{'' if os.path.isabs(path) else f' in {os.getcwd()!r}'}: check the path"


def _some(names: Sequence[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (", ..." if len(names) > 5 else "")
