"""Splits: disjoint, complete, and the same file always in the same one."""

import random

import numpy as np
import pytest

from bn_vgg.data.splits import class_counts, shuffled, split
from bn_vgg.errors import UserError


def names(count):
    return [f"{kind}/{i}.jpg" for i in range(count) for kind in ("cat", "dog")]


@pytest.mark.parametrize(("train", "valid", "test"), [(1, 1, 1), (60, 7, 40), (3, 40, 2)])
def test_held_out_splits_are_disjoint_complete_and_sized(train, valid, test):
    keys = [f"cat/{i}.jpg" for i in range(valid + test + train)]
    splits = split(keys, [""] * len(keys), valid_examples=valid, test_examples=test)
    assert [len(part) for part in splits] == [train, valid, test]
    np.testing.assert_array_equal(np.sort(np.concatenate(splits)), np.arange(len(keys)))


def test_the_assignment_is_that_of_recorded_runs():
    keys = names(4)
    splits = split(keys, [""] * 8, valid_examples=2, test_examples=2)
    assert [[keys[i] for i in part] for part in splits] == [
        ["dog/0.jpg", "cat/3.jpg", "cat/2.jpg", "dog/1.jpg"],
        ["dog/2.jpg", "cat/1.jpg"],
        ["cat/0.jpg", "dog/3.jpg"],
    ]


def test_the_same_file_lands_in_the_same_split_however_listed():
    def held_out(keys):
        splits = split(keys, [""] * len(keys), valid_examples=5, test_examples=4)
        return [{keys[i] for i in part} for part in splits]

    for seed in range(5):
        assert held_out(random.Random(seed).sample(names(12), 24)) == held_out(names(12))


def test_a_missing_file_moves_only_the_boundaries():
    keys = names(500)
    order = [keys[i] for i in shuffled(keys)]
    fewer = [key for key in keys if key != "dog/17.jpg"]
    order.remove("dog/17.jpg")
    assert [fewer[i] for i in shuffled(fewer)] == order


def test_copies_of_an_image_stay_together():
    keys = [copy for key in names(50) for copy in (key, f"{key}@other.zip/{key}")]
    ordered = [keys[i] for i in shuffled(keys)]
    assert all(b == f"{a}@other.zip/{a}" for a, b in zip(ordered[::2], ordered[1::2], strict=True))


def test_published_splits_are_used_whole_and_the_missing_one_is_held_out():
    keys = names(30)
    published = ["test" if i % 3 == 0 else "train" for i in range(60)]
    splits = split(keys, published, valid_examples=7, test_examples=99)
    assert set(splits.test) == {i for i in range(60) if i % 3 == 0}
    assert [len(splits.train), len(splits.valid)] == [33, 7]

    published = [("train", "validation", "test")[i % 3] for i in range(60)]
    splits = split(keys, published, valid_examples=99, test_examples=99)
    assert [len(part) for part in splits] == [20, 20, 20]
    assert set(splits.valid) == {i for i in range(60) if i % 3 == 1}


def test_too_few_images_is_an_error_that_counts_them():
    with pytest.raises(UserError, match="no images are left for training: 10 of 10 would be"):
        split(names(5), [""] * 10, valid_examples=5, test_examples=5)


def test_classes_are_said_with_their_counts():
    assert class_counts(np.array([0, 2, 0], np.int32), ["cat", "cow", "dog"]) == (
        "cat 2, cow 0, dog 1"
    )
