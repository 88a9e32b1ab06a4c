"""Images decoded and scaled once, then read from disk by any number of runs.

A cache is a folder named by what it was made of: the source's content and the settings. It holds

  images.bin   all pixels, uint8 RGB, one image after the other;
  index.npz    `sizes` (height, width), `labels`, `keys`, `splits`, one row an image;
  about.json   the source, classes, settings, and which images were left out and why.

It is built under another name and renamed when complete, so one that is there is whole. One
process builds it, others wait.
"""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bn_vgg import locking
from bn_vgg.data import images, sources
from bn_vgg.data.source import Source
from bn_vgg.errors import NotThereError, UserError, one_line

# Part of every cache's name: raise it when the same source and settings give other bytes.
_FORMAT = 1
# A source of which more than this is unreadable is not the data that was meant.
_MAX_UNREADABLE = 0.05


def choose_folder(named: str | None = None) -> Path:
    """Returns `named` (`--cache_dir`), else `$BN_VGG_CACHE`, else bn_vgg in the user's cache."""
    if named:
        return Path(named)
    if os.environ.get("BN_VGG_CACHE"):
        return Path(os.environ["BN_VGG_CACHE"]).expanduser()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bn_vgg"
    except RuntimeError as error:
        raise UserError(
            "there is no home folder to keep decoded images in: name one with --cache_dir or "
            "BN_VGG_CACHE"
        ) from error


@dataclass(frozen=True)
class ImageCache:
    """Decoded images, read from disk as they are used.

    Attributes:
      pixels: all images' pixels one after the other, uint8, memory-mapped.
      starts: where each image begins in `pixels`, int64, (N,).
      sizes: height and width of each, int64, (N, 2).
      labels: int32, (N,).
      keys: one per image, unique.
      splits: `train`, `validation`, `test` or empty, as published.
      about: the content of `about.json`.
    """

    pixels: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    keys: list[str]
    splits: list[str]
    about: dict[str, Any]

    def __len__(self):
        return len(self.labels)

    def image(self, index: int) -> np.ndarray:
        """Returns (height, width, 3), uint8, a view."""
        height, width = self.sizes[index]
        start = self.starts[index]
        return self.pixels[start : start + height * width * 3].reshape(height, width, 3)

    @property
    def class_names(self) -> list[str]:
        """One per label."""
        return self.about["class_names"]

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of the source's content and the settings."""
        return self.about["fingerprint"]


def open_or_build(spec: str, *, min_side: int, folder: Path, quiet: bool = False) -> ImageCache:
    """Opens the cache for a source, building it where there is none.

    A TFDS source is not looked at again once its cache is there, nor are files that are gone
    since: training then needs neither TensorFlow nor the archive.

    Args:
      spec: `config.data.source`.
      min_side: what the shorter side is scaled to, in pixels.
      folder: where caches are kept; made where it is missing.
      quiet: without a progress bar.

    Raises:
      UserError: the source cannot be used, or the folder cannot be read or written.
    """
    settings = f"{spec}\0{min_side}\0{_FORMAT}".encode("utf-8", "backslashreplace")
    note = folder / "sources" / hashlib.blake2b(settings, digest_size=16).hexdigest()
    known = _recall(note)
    try:
        if known is not None and sources.kind(spec) == "tfds":
            return _open(known)
        source = sources.open_source(spec)
    except NotThereError as error:
        if known is None:
            raise
        tqdm.write(f"{error}; using the cache made from it earlier, {known}", file=sys.stderr)
        return _open(known)
    content = f"{source.fingerprint} {min_side} {_FORMAT}".encode()
    name = f"images-{min_side}px-{hashlib.blake2b(content, digest_size=12).hexdigest()}"
    try:
        if not (folder / name).is_dir():
            _make_readable(folder)
            with locking.held(folder / f".{name}.lock", wait=_say_who_builds):
                if not (folder / name).is_dir():
                    _build(source, min_side, folder, name, quiet)
    except OSError as error:
        reason = ": ".join(str(x) for x in (error.strerror or error, error.filename) if x)
        raise UserError(
            f"cannot write the image cache in {folder}, of at least "
            f"{len(source.records) * min_side**2 * 3:,} bytes: {reason}; "
            "set --cache_dir or BN_VGG_CACHE to a folder with room that this user may write"
        ) from error
    if known != folder / name:
        with contextlib.suppress(OSError):  # who may only read a shared cache does without
            _make_readable(note.parent)
            _write_text(note, name)
    return _open(folder / name)


def _recall(note: Path) -> Path | None:
    """Returns the cache that a spec led to last time, for when its source cannot be asked."""
    with contextlib.suppress(OSError, ValueError):
        name = note.read_text().strip()  # empty where the machine died while it was written
        if name and (note.parent.parent / name).is_dir():
            return note.parent.parent / name
    return None


def _open(folder: Path) -> ImageCache:
    try:
        return _read(folder)
    except PermissionError as error:
        raise UserError(
            f"this user may not read {error.filename}: its owner can allow it with "
            f"chmod -R a+rX {folder}, or set --cache_dir to another folder"
        ) from error
    except (FileNotFoundError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{folder} is damaged ({one_line(error)}); delete that folder and it is made again"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {folder}: {one_line(error)}") from error


def _read(folder: Path) -> ImageCache:
    about = json.loads((folder / "about.json").read_text())
    with np.load(folder / "index.npz", allow_pickle=False) as index:
        arrays = {name: index[name] for name in ("sizes", "labels", "keys", "splits")}
    sizes = arrays["sizes"].astype(np.int64)
    lengths = sizes.prod(axis=1) * 3
    pixels = _map(folder / "images.bin")
    if pixels.size != lengths.sum():
        raise ValueError(f"images.bin has {pixels.size} bytes, not {lengths.sum()}")
    return ImageCache(
        pixels=pixels,
        starts=np.cumsum(lengths) - lengths,
        sizes=sizes,
        labels=arrays["labels"],
        keys=arrays["keys"].tolist(),
        splits=arrays["splits"].tolist(),
        about=about,
    )


def _map(path: Path) -> np.ndarray:
    try:
        return np.memmap(path, np.uint8, "r")
    except OSError as error:
        if error.errno != errno.ENODEV:  # of file systems in user space that map no files
            raise
        tqdm.write(f"{path} cannot be mapped and is read into memory", file=sys.stderr)
        return np.fromfile(path, np.uint8)


def _say_who_builds(owner: str) -> None:
    tqdm.write(f"waiting for {owner}, which builds the image cache", file=sys.stderr)


def _build(source: Source, min_side: int, folder: Path, name: str, quiet: bool) -> None:
    for left in folder.glob(f"building-{name}-*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    building = Path(tempfile.mkdtemp(prefix=f"building-{name}-", dir=folder))
    try:
        records, sizes, unreadable = _write_images(source, min_side, building / "images.bin", quiet)
        np.savez(
            building / "index.npz",
            sizes=np.asarray(sizes, np.int32).reshape(-1, 2),
            labels=np.asarray([record.label for record in records], np.int32),
            keys=np.asarray([record.key for record in records]),
            splits=np.asarray([record.split for record in records]),
        )
        about = {
            "source": source.description,
            "fingerprint": name.rsplit("-", 1)[1],
            "class_names": list(source.class_names),
            "min_side": min_side,
            "images": len(records),
            "unreadable": unreadable,
            "built": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        _write_text(building / "about.json", json.dumps(about, indent=1))
        for path in building.iterdir():
            path.chmod(0o644)
        building.chmod(0o755)
        building.rename(folder / name)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    if unreadable and not quiet:
        tqdm.write(
            f"left out {len(unreadable)} unreadable images, see {folder / name}/about.json",
            file=sys.stderr,
        )


def _write_images(source: Source, min_side: int, path: Path, quiet: bool):
    """Returns the records of the images written, their sizes, and why others were not, by key."""
    count = len(source.records)
    kept, sizes, unreadable = [], [], {}
    bar = tqdm(
        _decoded(source, min_side), f"decoding {source.description}", count, unit=" images",
        disable=quiet or None, leave=False,
    )  # fmt: skip
    with bar, path.open("wb") as file:
        for record, result in zip(source.records, bar, strict=True):
            if isinstance(result, images.UnreadableImage):
                unreadable[record.key] = str(result)
                continue
            kept.append(record)
            sizes.append(result.shape[:2])
            file.write(np.ascontiguousarray(result).data)
        file.flush()
        os.fsync(file.fileno())
    if len(unreadable) > _MAX_UNREADABLE * count:
        key, why = next(iter(unreadable.items()))
        raise UserError(
            f"{source.description}: {len(unreadable)} of {count} images cannot be read, more than "
            f"{_MAX_UNREADABLE:.0%}; the first is {key}: {why}"
        )
    return kept, sizes, unreadable


def _decoded(source: Source, min_side: int) -> Iterator[np.ndarray | images.UnreadableImage]:
    """Yields each record's pixels, in order, decoded in as many threads as there are cores."""

    def read(index: int) -> np.ndarray | images.UnreadableImage:
        return images.read_scaled(lambda: source.read(index), min_side)

    indices = iter(range(len(source.records)))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # So few at a time bound what is decoded but not yet written.
        while some := list(itertools.islice(indices, 256)):
            yield from pool.map(read, some)


def _make_readable(folder: Path) -> None:
    """Makes a folder that others may read, whatever this process's umask."""
    if not folder.is_dir():
        _make_readable(folder.parent)
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            folder.chmod(0o755)


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text)
    partial.chmod(0o644)
    partial.replace(path)
