"""Batches of windows, on the host, for training and for evaluation."""

import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np

from bn_vgg.data import windows
from bn_vgg.data.cache import ImageCache

T = TypeVar("T")
Batch = dict[str, np.ndarray]


def train_batches(
    cache: ImageCache,
    examples: np.ndarray,
    *,
    seed: int,
    epoch: int,
    batch_size: int,
    crop_size: int,
    rows: slice = slice(None),
) -> Iterator[Batch]:
    """Yields one epoch: every example once, the last incomplete batch dropped.

    Args:
      cache: the decoded images.
      examples: indices of the training examples.
      seed: of the run; with `epoch` it decides order and windows.
      epoch: counted from 0.
      batch_size: over all hosts.
      crop_size: side of the windows in pixels.
      rows: those of each batch that this host feeds.

    Yields:
      `images_NHWC` uint8, `labels_N` int32, `positions_N` int32 (in the epoch).
    """
    order = examples[windows.epoch_order(seed, epoch, len(examples))]
    corners = windows.random_corners(seed, epoch, cache.sizes[order], crop_size)
    for first in range(0, len(order) - batch_size + 1, batch_size):
        positions = np.arange(first, first + batch_size, dtype=np.int32)[rows]
        images = [
            windows.cut(cache.image(order[position]), corners[position], crop_size)
            for position in positions
        ]
        yield {
            "images_NHWC": np.stack(images),
            "labels_N": cache.labels[order[positions]],
            "positions_N": positions,
        }


def num_train_batches(num_examples: int, batch_size: int) -> int:
    """Counts an epoch's batches."""
    return num_examples // batch_size


def eval_batches(
    cache: ImageCache,
    examples: np.ndarray,
    *,
    batch_size: int,
    crop_size: int,
    rows: slice = slice(None),
) -> Iterator[Batch]:
    """Yields every example's five windows exactly once; the last batch is padded.

    Where every image is exactly one window large, the five are one and it comes once.

    Yields:
      `windows_NWHWC` uint8, `labels_N` int32, `mask_N` float32 (0 for padding).
    """
    only_one = bool((cache.sizes[examples] == crop_size).all())
    for first in range(0, len(examples), batch_size):
        chosen = examples[first : first + batch_size]
        padded = np.resize(chosen, batch_size)[rows]
        yield {
            "windows_NWHWC": np.stack(
                [_windows(cache.image(index), crop_size, only_one) for index in padded]
            ),
            "labels_N": cache.labels[padded],
            "mask_N": (np.arange(batch_size) < len(chosen)).astype(np.float32)[rows],
        }


def five_windows(image_HWC: np.ndarray, crop_size: int) -> np.ndarray:
    """Returns (5, crop, crop, C): the four corners and the centre."""
    height, width, _ = image_HWC.shape
    corners = windows.five_corners(height, width, crop_size)
    return np.stack([windows.cut(image_HWC, corner, crop_size) for corner in corners])


def _windows(image_HWC: np.ndarray, crop_size: int, only_one: bool) -> np.ndarray:
    return image_HWC[None] if only_one else five_windows(image_HWC, crop_size)


def prefetch(items: Iterable[T], ahead: int = 2) -> Iterator[T]:
    """Makes items in a thread, up to `ahead` of them before they are asked for.

    What the thread raises is raised here; the thread ends when the iterator is closed.
    """
    made: queue.Queue = queue.Queue(ahead)
    closed = threading.Event()

    def put(entry) -> bool:
        while not closed.is_set():
            try:
                made.put(entry, timeout=0.1)
                return True
            except queue.Full:
                pass
        return False

    def produce():
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((None, StopIteration()))
        except BaseException as error:  # re-raised in the consumer's thread
            put((None, error))

    threading.Thread(target=produce, daemon=True).start()
    try:
        while True:
            item, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        closed.set()
