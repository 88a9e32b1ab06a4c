"""Which example is for training, validation or test: one fixed shuffle of their keys."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bn_vgg.errors import UserError


class Splits(NamedTuple):
    """Indices of examples, int64, disjoint; each in the fixed shuffle's order."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def shuffled(keys: Sequence[str]) -> np.ndarray:
    """Orders examples by a digest of their keys.

    Unlike a permutation drawn for a number of examples, this keeps a file where it is
    when others are added, left out or listed in another order.

    Returns:
      Indices into `keys`, int64.
    """

    def place(index: int) -> tuple[bytes, str]:
        # Copies of one image differ only after the `@`, and stay together.
        image = keys[index].partition("@")[0]
        return hashlib.blake2b(image.encode(), digest_size=16).digest(), keys[index]

    return np.asarray(sorted(range(len(keys)), key=place), np.int64)


def split(
    keys: Sequence[str], published: Sequence[str], *, valid_examples: int, test_examples: int
) -> Splits:
    """Holds out the last `test_examples` for test and those before them for validation.

    Where the data's publisher brings a `validation` or `test` split, it is used whole
    and only the missing one is held out of the training examples.

    Args:
      keys: one per example, unique.
      published: `train`, `validation`, `test` or empty, one per example.
      valid_examples: how many to hold out for validation.
      test_examples: how many to hold out for test.

    Raises:
      UserError: fewer than one example is left for training.
    """
    order = shuffled(keys)
    names = np.asarray(published)[order]
    rest, valid, test = (
        order[np.isin(names, ["", "train"])],
        order[names == "validation"],
        order[names == "test"],
    )
    wanted = (0 if len(test) else test_examples) + (0 if len(valid) else valid_examples)
    if len(rest) <= wanted:
        raise UserError(
            f"config.data: {len(rest)} images cannot leave any for training after {wanted} are "
            "held out; lower config.data.valid_examples and config.data.test_examples"
        )
    if not len(test):
        rest, test = np.split(rest, [len(rest) - test_examples])
    if not len(valid):
        rest, valid = np.split(rest, [len(rest) - valid_examples])
    return Splits(rest, valid, test)
