"""Splits examples into training, validation and test sets by a fixed shuffle of their keys."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bn_vgg.errors import UserError


class Splits(NamedTuple):
    """Disjoint indices of examples, int64, in the order of the fixed shuffle."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def split(
    keys: Sequence[str], published: Sequence[str], *, valid_examples: int, test_examples: int
) -> Splits:
    """Holds out the last `test_examples` for test, and `valid_examples` before them for validation.

    A `validation` or `test` split by the data's publisher is used as it is; only a missing one is
    held out of the training examples. `published` is each example's `Record.split`.

    Raises:
      UserError: no example is left for training.
    """
    order = shuffled(keys)
    names = np.asarray(published)[order]
    rest = order[np.isin(names, ["", "train"])]
    valid, test = order[names == "validation"], order[names == "test"]
    num_held_out = (0 if len(test) else test_examples) + (0 if len(valid) else valid_examples)
    if len(rest) <= num_held_out:
        raise UserError(
            f"config.data: no images are left for training: {num_held_out} of {len(rest)} would be "
            "held out; lower config.data.valid_examples and config.data.test_examples"
        )
    if not len(test):
        rest, test = np.split(rest, [len(rest) - test_examples])
    if not len(valid):
        rest, valid = np.split(rest, [len(rest) - valid_examples])
    return Splits(rest, valid, test)


def shuffled(keys: Sequence[str]) -> np.ndarray:
    """Orders examples by a digest of their keys; returns indices, int64.

    The order of two files does not depend on which other files there are.
    """

    def sort_key(index: int) -> tuple[bytes, str]:
        # The keys of copies of one image differ only after the `@`; keep them together.
        image = keys[index].partition("@")[0]
        return hashlib.blake2b(image.encode(), digest_size=16).digest(), keys[index]

    return np.asarray(sorted(range(len(keys)), key=sort_key), np.int64)


def class_counts(labels: np.ndarray, class_names: Sequence[str]) -> str:
    """Returns how many examples each class has, such as `cat 12500, dog 12500`."""
    counts = np.bincount(labels, minlength=len(class_names))
    return ", ".join(f"{name} {n}" for name, n in zip(class_names, counts, strict=True))
