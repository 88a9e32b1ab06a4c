"""Epoch coverage, five windows and padding: properties over sizes, batches and devices."""

import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bn_vgg.data import batches, windows
from bn_vgg.data.cache import ImageCache


def make_cache(sizes):
    """Images whose every pixel is the image's own number."""
    sizes = np.asarray(sizes, np.int64).reshape(-1, 2)
    lengths = sizes.prod(axis=1) * 3
    return ImageCache(
        pixels=np.repeat(np.arange(len(sizes)), lengths).astype(np.uint8),
        starts=np.cumsum(lengths) - lengths,
        sizes=sizes,
        labels=np.arange(len(sizes), dtype=np.int32) % 2,
        keys=[str(i) for i in range(len(sizes))],
        splits=[""] * len(sizes),
        about={},
    )


image_sizes = st.lists(st.tuples(st.integers(5, 9), st.integers(5, 9)), min_size=1, max_size=40)


@given(image_sizes, st.integers(1, 12), st.integers(0, 99), st.integers(0, 9))
def test_an_epoch_has_every_example_at_most_once_and_full_batches(sizes, batch, seed, epoch):
    cache = make_cache(sizes)
    examples = np.arange(len(cache))
    found = list(
        batches.train_batches(
            cache, examples, seed=seed, epoch=epoch, batch_size=batch, crop_size=5
        )
    )
    assert len(found) == len(sizes) // batch == batches.num_train_batches(len(sizes), batch)
    seen = [int(image[0, 0, 0]) for one in found for image in one["images_NHWC"]]
    assert len(seen) == len(set(seen)) == len(found) * batch
    for one in found:
        assert one["images_NHWC"].shape == (batch, 5, 5, 3)
        assert one["images_NHWC"].dtype == np.uint8
        np.testing.assert_array_equal(one["labels_N"], one["images_NHWC"][:, 0, 0, 0] % 2)
    positions = [p for one in found for p in one["positions_N"]]
    assert positions == list(range(len(found) * batch))


@given(image_sizes, st.sampled_from([1, 2, 3, 4]), st.integers(1, 3), st.booleans())
def test_hosts_together_feed_what_one_feeds(sizes, hosts, each, training):
    cache, batch_size = make_cache(sizes), hosts * each
    examples = np.arange(len(cache))

    def feed(rows):
        if training:
            return batches.train_batches(
                cache, examples, seed=3, epoch=1, batch_size=batch_size, crop_size=5, rows=rows
            )
        return batches.eval_batches(cache, examples, batch_size=batch_size, crop_size=5, rows=rows)

    whole = list(feed(slice(None)))
    shares = [list(feed(slice(h * each, (h + 1) * each))) for h in range(hosts)]
    for i, batch in enumerate(whole):
        for key, value in batch.items():
            together = np.concatenate([share[i][key] for share in shares])
            np.testing.assert_array_equal(together, value)


@given(image_sizes, st.integers(1, 13))
def test_evaluation_counts_every_example_exactly_once(sizes, batch_size):
    cache = make_cache(sizes)
    seen = []
    for batch in batches.eval_batches(
        cache, np.arange(len(cache)), batch_size=batch_size, crop_size=5
    ):
        assert len(batch["mask_N"]) == batch_size
        real = batch["mask_N"] == 1
        assert set(np.unique(batch["mask_N"])) <= {0, 1}
        seen += batch["windows_NWHWC"][real, 0, 0, 0, 0].tolist()
    assert seen == list(range(len(sizes)))


def test_five_windows_are_the_corners_and_the_centre():
    image = np.random.default_rng(0).integers(0, 255, (9, 12, 3), np.uint8)
    expected = [image[:5, :5], image[:5, 7:], image[4:, :5], image[4:, 7:], image[2:7, 3:8]]
    np.testing.assert_array_equal(batches.five_windows(image, 5), expected)


def test_images_of_one_windows_size_come_once():
    cache = make_cache([(5, 5)] * 4)
    (batch,) = batches.eval_batches(cache, np.arange(4), batch_size=4, crop_size=5)
    assert batch["windows_NWHWC"].shape == (4, 1, 5, 5, 3)
    cache = make_cache([(5, 5)] * 3 + [(5, 6)])
    (batch,) = batches.eval_batches(cache, np.arange(4), batch_size=4, crop_size=5)
    assert batch["windows_NWHWC"].shape == (4, 5, 5, 5, 3)


def test_windows_are_cut_where_they_were_drawn():
    rng = np.random.default_rng(0)
    cache = make_cache([(9, 8)] * 6)
    cache.pixels[:] = rng.integers(0, 255, cache.pixels.size)
    (batch,) = batches.train_batches(
        cache, np.arange(6), seed=5, epoch=2, batch_size=6, crop_size=5
    )
    order = windows.epoch_order(5, 2, 6)
    corners = windows.random_corners(5, 2, cache.sizes[order], 5)
    for image, example, (top, left) in zip(batch["images_NHWC"], order, corners, strict=True):
        expected = cache.image(example)[top : top + 5, left : left + 5]
        np.testing.assert_array_equal(image, expected)


class TestPrefetch:
    def test_order_is_kept(self):
        assert list(batches.prefetch(range(50))) == list(range(50))

    def test_an_error_arrives_where_the_item_would_have(self):
        def items():
            yield 1
            raise ValueError("no second")

        found = batches.prefetch(items())
        assert next(found) == 1
        with pytest.raises(ValueError, match="no second"):
            next(found)

    def test_closing_ends_the_thread(self):
        before = threading.active_count()
        found = batches.prefetch(iter(range(10**9)))
        assert next(found) == 0
        found.close()
        deadline = time.monotonic() + 5
        while threading.active_count() > before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert threading.active_count() == before
