"""Caches of decoded and scaled images, which are made once and read by any number of runs.

A cache is a folder, named by a digest of the source's content and the settings. It holds

  images.bin   all pixels, uint8 RGB, one image after the other;
  index.npz    `sizes` (height, width), `labels`, `keys`, `splits`, one row for each image;
  about.json   the source, classes, settings, and which images were left out and why.

It is built under another name and renamed when it is complete. One process builds it while others
wait.
"""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from bn_vgg import locking
from bn_vgg.data import sources
from bn_vgg.data.images import UnreadableImage, scale_shorter_side
from bn_vgg.data.sources import Source
from bn_vgg.errors import (
    NotFoundError,
    UserError,
    wrap_errors,
    wrap_read_errors,
    wrap_write_errors,
)

# Part of every cache's digest. Increase it when the same source and settings give other bytes.
_FORMAT = 1
# With a larger share of unreadable images the source is refused.
_MAX_UNREADABLE = 0.05


def choose_folder(cache_dir: str | None = None) -> Path:
    """Returns `cache_dir` (the flag), else `$BN_VGG_CACHE`, else bn_vgg in the user's cache."""
    if chosen := cache_dir or os.environ.get("BN_VGG_CACHE"):
        return Path(chosen).expanduser()
    with wrap_errors("no home folder for the image cache", "; set --cache_dir or BN_VGG_CACHE"):
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bn_vgg"


@dataclass(frozen=True)
class ImageCache:
    """Decoded images, memory-mapped from disk."""

    pixels: np.ndarray  # of all images one after the other, uint8, memory-mapped
    starts: np.ndarray  # where each image begins in `pixels`, int64, (N,)
    sizes: np.ndarray  # height and width of each, int64, (N, 2)
    labels: np.ndarray  # int32, (N,)
    keys: list[str]
    splits: list[str]  # as published, see `Record`
    class_names: list[str]
    fingerprint: str  # hexadecimal digest of the source's content and the settings

    def image(self, index: int) -> np.ndarray:
        """Returns (height, width, 3), uint8, a view."""
        height, width = self.sizes[index]
        start = self.starts[index]
        return self.pixels[start : start + height * width * 3].reshape(height, width, 3)


def open_or_build(spec: str, *, min_side: int, folder: Path, quiet: bool = False) -> ImageCache:
    """Opens the cache of a source, or builds it if there is none.

    If there is a cache of `spec`, names on TFDS and the Hub are not looked up again. Local files
    are checked for changes, unless they no longer exist.

    Args:
      spec: `config.data.source`.
      min_side: length of each image's shorter side after scaling, in pixels.
      folder: the folder that contains all caches.
      quiet: whether to hide progress and messages about unreadable images.

    Raises:
      UserError: the source cannot be used, or the folder cannot be read or written.
    """
    kind = ""
    with contextlib.suppress(NotFoundError):
        kind = sources.source_kind(spec)
    # A relative path depends on the current folder.
    location = spec if kind in ("tfds", "hf", "cartoons") else _absolute(spec)
    settings = f"{location}\0{min_side}\0{_FORMAT}".encode("utf-8", "backslashreplace")
    # This file holds the name of the cache that was last built from `spec`.
    pointer_file = folder / "sources" / hashlib.blake2b(settings, digest_size=16).hexdigest()
    last_cache = None
    with contextlib.suppress(OSError, ValueError):
        name = pointer_file.read_text().strip()  # empty if the machine crashed while writing it
        last_cache = folder / name if name and (folder / name).is_dir() else None
    try:
        if last_cache and kind in ("tfds", "hf"):
            return _open(last_cache)
        with contextlib.ExitStack() as stack:
            if kind == "tfds":  # TFDS fails if two processes prepare the same set
                with wrap_write_errors(f"the image cache in {folder} (--cache_dir names another)"):
                    stack.enter_context(_exclusive(folder, pointer_file.name))
            source = sources.open_source(spec)
    except NotFoundError as error:
        if not last_cache:
            raise
        _print(f"{error}; using the cache made from it earlier, {last_cache}")
        return _open(last_cache)
    content = f"{source.fingerprint} {min_side} {_FORMAT}".encode()
    cache = folder / f"images-{min_side}px-{hashlib.blake2b(content, digest_size=12).hexdigest()}"
    try:
        if not cache.is_dir():
            with _exclusive(folder, cache.name):
                if not cache.is_dir():
                    _build(source, min_side, cache, quiet)
        if last_cache != cache:
            with contextlib.suppress(OSError):  # the folder may be read-only
                pointer_file.parent.mkdir(exist_ok=True)
                pointer_file.write_text(cache.name)
    except OSError as error:
        reason = ": ".join(str(x) for x in (error.strerror or error, error.filename) if x)
        raise UserError(
            f"cannot write the image cache in {folder}, of at least "
            f"{len(source.records) * min_side**2 * 3:,} bytes: {reason}; "
            "set --cache_dir or BN_VGG_CACHE to a folder with room that this user may write"
        ) from error
    return _open(cache)


@contextlib.contextmanager
def _exclusive(folder: Path, name: str) -> Iterator[None]:
    """Waits while another process builds `name`, and keeps others waiting meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)

    def wait(owner: str) -> None:
        _print(f"waiting for {owner}, which builds the image cache")

    with locking.hold_lock(folder / f".{name}.lock", wait=wait):
        yield


def _absolute(spec: str) -> str:
    return ",".join(os.path.abspath(os.path.expanduser(part.strip())) for part in spec.split(","))


def _print(text: str) -> None:
    tqdm.write(text, file=sys.stderr)


def _open(folder: Path) -> ImageCache:
    advice = "; delete that folder and it is made again"
    with wrap_errors(f"{folder} is damaged", advice), wrap_read_errors(folder):
        return _read(folder)


def _read(folder: Path) -> ImageCache:
    about = json.loads((folder / "about.json").read_text())
    with np.load(folder / "index.npz", allow_pickle=False) as index:
        arrays = {name: index[name] for name in ("sizes", "labels", "keys", "splits")}
    sizes = arrays["sizes"].astype(np.int64)
    lengths = sizes.prod(axis=1) * 3
    pixels: np.ndarray = np.memmap(folder / "images.bin", np.uint8, "r")
    if pixels.size != lengths.sum():
        raise ValueError(f"images.bin has {pixels.size} bytes, not {lengths.sum()}")
    return ImageCache(
        pixels=pixels,
        starts=np.cumsum(lengths) - lengths,
        sizes=sizes,
        labels=arrays["labels"],
        keys=arrays["keys"].tolist(),
        splits=arrays["splits"].tolist(),
        class_names=about["class_names"],
        fingerprint=about["fingerprint"],
    )


def _build(source: Source, min_side: int, cache: Path, quiet: bool) -> None:
    building = cache.with_name(f"building-{cache.name}")
    shutil.rmtree(building, ignore_errors=True)  # left by a killed process
    try:
        building.mkdir()
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
            "fingerprint": cache.name.rsplit("-", 1)[1],
            "class_names": list(source.class_names),
            "min_side": min_side,
            "images": len(records),
            "unreadable": unreadable,
            "built": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        (building / "about.json").write_text(json.dumps(about, indent=1))
        building.rename(cache)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    if unreadable and not quiet:
        _print(f"left out {len(unreadable)} unreadable images, see {cache}/about.json")


def _write_images(source: Source, min_side: int, path: Path, quiet: bool):
    """Writes the readable images to `path`; returns their records and sizes, and errors by key."""
    count = len(source.records)
    kept, sizes, unreadable = [], [], {}
    bar = tqdm(
        _decoded(source, min_side), f"decoding {source.description}", count, unit=" images",
        disable=quiet or None, leave=False,
    )  # fmt: skip
    with bar, path.open("wb") as file:
        for record, result in zip(source.records, bar, strict=True):
            if isinstance(result, str):
                unreadable[record.key] = result
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


def _decoded(source: Source, min_side: int) -> Iterator[np.ndarray | str]:
    """Yields each image's pixels, or the reason why it cannot be read; in order, by threads."""

    def scaled(read: Callable[[], Image.Image]) -> np.ndarray | str:
        try:
            return np.asarray(scale_shorter_side(read(), min_side))
        except UnreadableImage as error:
            return str(error)

    readers = iter(source.readers())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # Batches bound the memory of images that are decoded but not yet written.
        while some := list(itertools.islice(readers, 256)):
            yield from pool.map(scaled, some)
