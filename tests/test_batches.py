"""Epoch coverage, five windows and padding: properties over sizes and batches."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bn_vgg.data import batches, windows
from bn_vgg.data.batches import Images
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


def all_of(cache):
    return Images.of(cache, np.arange(len(cache)))


def cut(images, batch, crop=5):
    """The windows of stacked batches, (S, N, W, crop, crop, 3)."""
    return batches.cut_windows(images.pixels, batch["first_SNW"], batch["stride_SN"], crop)


image_sizes = st.lists(st.tuples(st.integers(5, 9), st.integers(5, 9)), min_size=1, max_size=40)


@given(image_sizes, st.integers(1, 12), st.integers(0, 99), st.integers(0, 9))
def test_an_epoch_has_every_example_at_most_once_and_full_batches(sizes, batch, seed, epoch):
    images = all_of(make_cache(sizes))
    found = batches.train_batches(images, seed=seed, epoch=epoch, batch_size=batch, crop_size=5)
    count = len(sizes) // batch
    assert count == batches.num_train_batches(len(sizes), batch)
    windows = cut(images, found)
    assert windows.shape == (count, batch, 1, 5, 5, 3)
    assert windows.dtype == np.uint8
    seen = windows[..., 0, 0, 0].ravel()
    assert (windows == seen.reshape(count, batch, 1, 1, 1, 1)).all()  # of one image each
    assert len(seen) == len(set(seen.tolist())) == count * batch
    np.testing.assert_array_equal(found["labels_SN"].ravel(), seen % 2)
    np.testing.assert_array_equal(found["positions_SN"].ravel(), np.arange(count * batch))


@given(image_sizes, st.integers(1, 13))
def test_evaluation_counts_every_example_exactly_once(sizes, batch_size):
    images = all_of(make_cache(sizes))
    found = batches.eval_batches(images, batch_size=batch_size, crop_size=5)
    assert found["mask_SN"].shape[1] == batch_size
    assert set(np.unique(found["mask_SN"])) <= {0, 1}
    seen = cut(images, found)[found["mask_SN"] == 1]
    assert seen[:, 0, 0, 0, 0].tolist() == list(range(len(sizes)))


@given(image_sizes)
def test_evaluation_windows_are_the_corners_and_the_centre(sizes):
    cache = make_cache(sizes)
    cache.pixels[:] = np.random.default_rng(0).integers(0, 255, cache.pixels.size)
    images = all_of(cache)
    found = cut(images, batches.eval_batches(images, batch_size=len(sizes), crop_size=5))[0]
    for index, windows_W in enumerate(found):
        expected = windows.five_windows(cache.image(index), 5)
        np.testing.assert_array_equal(windows_W, expected[: len(windows_W)])


def test_five_windows_are_the_corners_and_the_centre():
    image = np.random.default_rng(0).integers(0, 255, (9, 12, 3), np.uint8)
    expected = [image[:5, :5], image[:5, 7:], image[4:, :5], image[4:, 7:], image[2:7, 3:8]]
    np.testing.assert_array_equal(windows.five_windows(image, 5), expected)


def test_images_of_one_windows_size_come_once():
    images = all_of(make_cache([(5, 5)] * 4))
    found = batches.eval_batches(images, batch_size=4, crop_size=5)
    assert found["first_SNW"].shape == (1, 4, 1)
    images = all_of(make_cache([(5, 5)] * 3 + [(5, 6)]))
    found = batches.eval_batches(images, batch_size=4, crop_size=5)
    assert found["first_SNW"].shape == (1, 4, 5)


def test_windows_are_cut_where_they_were_drawn():
    cache = make_cache([(9, 8)] * 6)
    cache.pixels[:] = np.random.default_rng(0).integers(0, 255, cache.pixels.size)
    images = all_of(cache)
    found = batches.train_batches(images, seed=5, epoch=2, batch_size=6, crop_size=5)
    order = windows.epoch_order(5, 2, 6)
    corners = windows.random_corners(5, 2, cache.sizes[order], 5)
    for (window,), example, (top, left) in zip(cut(images, found)[0], order, corners, strict=True):
        expected = cache.image(example)[top : top + 5, left : left + 5]
        np.testing.assert_array_equal(window, expected)


@given(image_sizes, st.data())
def test_packing_keeps_every_pixel(sizes, data):
    cache = make_cache(sizes)
    cache.pixels[:] = np.random.default_rng(0).integers(0, 255, cache.pixels.size)
    chosen = data.draw(st.lists(st.integers(0, len(sizes) - 1), min_size=1, unique=True))
    images = Images.of(cache, np.asarray(chosen))
    packed = images.packed()
    assert packed.pixels.size == images.lengths.sum()
    for one in (images, packed):
        draw = batches.train_batches(one, seed=1, epoch=0, batch_size=1, crop_size=5)
        np.testing.assert_array_equal(
            cut(one, draw),
            cut(images, batches.train_batches(images, seed=1, epoch=0, batch_size=1, crop_size=5)),
        )
