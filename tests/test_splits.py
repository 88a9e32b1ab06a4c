"""Splits: disjoint, complete, and the same file always in the same one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bn_vgg.data.splits import shuffled, split
from bn_vgg.errors import UserError


def names(count):
    return [f"{kind}/{i}.jpg" for i in range(count) for kind in ("cat", "dog")]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 60))
def test_carved_splits_are_disjoint_complete_and_sized(valid, test, train):
    keys = [f"cat/{i}.jpg" for i in range(valid + test + train)]
    splits = split(keys, [""] * len(keys), valid_examples=valid, test_examples=test)
    assert [len(part) for part in splits] == [train, valid, test]
    np.testing.assert_array_equal(np.sort(np.concatenate(splits)), np.arange(len(keys)))


@given(st.permutations(names(12)))
def test_the_same_file_lands_in_the_same_split_however_listed(keys):
    def held_out(keys):
        splits = split(keys, [""] * len(keys), valid_examples=5, test_examples=4)
        return [{keys[i] for i in part} for part in splits]

    assert held_out(keys) == held_out(names(12))


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


def test_classes_are_mixed():
    """Of 1,000 held out of 20,000, half are dogs: a deviation of 15, so 5 of them."""
    keys = names(10_000)
    splits = split(keys, [""] * len(keys), valid_examples=1000, test_examples=1000)
    for part in (splits.valid, splits.test):
        assert abs(sum(keys[i].startswith("dog") for i in part) - 500) < 75


def test_published_splits_are_used_whole_and_the_missing_one_is_carved():
    keys = names(30)
    published = ["test" if i % 3 == 0 else "train" for i in range(60)]
    splits = split(keys, published, valid_examples=7, test_examples=99)
    assert set(splits.test) == {i for i in range(60) if i % 3 == 0}
    assert len(splits.valid) == 7
    assert len(splits.train) == 33

    published = [("train", "validation", "test")[i % 3] for i in range(60)]
    splits = split(keys, published, valid_examples=99, test_examples=99)
    assert [len(part) for part in splits] == [20, 20, 20]
    assert set(splits.valid) == {i for i in range(60) if i % 3 == 1}


def test_too_few_images_is_an_error_that_counts_them():
    with pytest.raises(UserError, match=r"10 images cannot leave any .* after 10 are held out"):
        split(names(5), [""] * 10, valid_examples=5, test_examples=5)
