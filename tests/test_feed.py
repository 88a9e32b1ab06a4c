"""Where windows are cut changes nothing: not a pixel, not the order, not the padding."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bn_vgg import feed as feeding
from bn_vgg.data import batches
from bn_vgg.data.batches import Images
from bn_vgg.data.prepared import prepare
from bn_vgg.errors import UserError
from bn_vgg.feed import Feed, choose_placement, cut_on_device, scan_batches
from bn_vgg.parallel import Devices
from bn_vgg.run_data import RunData
from tests.test_batches import image_sizes, make_cache


def images_of(sizes):
    cache = make_cache(sizes)
    cache.pixels[:] = np.random.default_rng(0).integers(0, 255, cache.pixels.size)
    return Images.of(cache, np.arange(len(cache))[::-1])


def windows_of(feed, wanted):
    """All windows and labels that jitted steps see, in order."""

    @jax.jit
    def look(stacked, pixels):
        size, rest = stacked["labels_SN"].shape[0], wanted["first_SNW"].shape[1:]
        seen = (
            jax.numpy.zeros((size, *rest, 5, 5, 3), "uint8"),
            jax.numpy.zeros((size, rest[0]), "int32"),
        )

        def update(carry, batch):
            index, seen = carry
            found = (batch["windows_NWHWC"], batch["labels_N"])
            return index + 1, tuple(s.at[index].set(f) for s, f in zip(seen, found, strict=True))

        return scan_batches(update, (0, seen), stacked, pixels, 5)[1]

    found = [look(dispatch.batches, feed.pixels) for dispatch in feed.dispatches(wanted)]
    return [np.concatenate(part) for part in zip(*found, strict=True)]


@settings(max_examples=10, deadline=None)
@given(image_sizes, st.integers(1, 5), st.booleans())
def test_device_and_host_cut_the_same_windows(sizes, batch_size, training):
    images = images_of(sizes)
    batch_size = min(batch_size, len(sizes))

    def found(on_device):
        feed = Feed(images, Devices(), crop_size=5, on_device=on_device)
        if training:
            wanted = batches.train_batches(
                feed.images, seed=3, epoch=1, batch_size=batch_size, crop_size=5
            )
        else:
            wanted = batches.eval_batches(feed.images, batch_size=batch_size, crop_size=5)
        pixels = images.packed().pixels if on_device else images.pixels
        expected = batches.cut_windows(pixels, wanted["first_SNW"], wanted["stride_SN"], 5)
        windows, labels = windows_of(feed, wanted)
        np.testing.assert_array_equal(windows, expected)
        np.testing.assert_array_equal(labels, wanted["labels_SN"])
        return windows

    np.testing.assert_array_equal(found(on_device=True), found(on_device=False))


@given(st.integers(1, 500))
def test_a_dispatch_has_one_of_two_sizes_and_often_of_one(num_batches):
    at_once = feeding.batches_per_dispatch(num_batches)
    assert 1 <= at_once <= min(10, num_batches)
    assert at_once == num_batches or at_once >= 5
    if num_batches % 10 == 0:
        assert at_once == 10


@pytest.mark.parametrize("on_device", [True, False])
def test_every_batch_comes_in_some_dispatch(on_device):
    images = images_of([(6, 7)] * 23)
    feed = Feed(images, Devices(), crop_size=5, on_device=on_device)
    wanted = batches.eval_batches(feed.images, batch_size=1, crop_size=5)
    found = list(feed.dispatches(wanted))
    assert [dispatch.size for dispatch in found] == [10, 10, 3]
    labels = np.concatenate([dispatch.batches["labels_SN"] for dispatch in found])
    np.testing.assert_array_equal(labels, wanted["labels_SN"])


def test_an_error_in_a_thread_arrives(monkeypatch):
    images = images_of([(6, 7)] * 4)
    feed = Feed(images, Devices(), crop_size=5, on_device=False)
    wanted = batches.eval_batches(images, batch_size=2, crop_size=5)

    def broken(*_):
        raise OSError("the disk is gone")

    monkeypatch.setattr(feeding, "cut_windows", broken)
    with pytest.raises(OSError, match="the disk is gone"):
        list(feed.dispatches(wanted))


def test_windows_are_cut_near_the_end_of_the_largest_array():
    """Positions are int32; a split of 2 GiB is cut at its very end."""
    size = 2**31 - 1
    pixels = np.zeros(size, np.uint8)
    pixels[-75:] = np.arange(75)
    first = np.asarray([[size - 75]])
    on_device = cut_on_device(
        jax.device_put(pixels), first.astype(np.int32), np.asarray([15], np.int32), 5
    )
    np.testing.assert_array_equal(on_device[0, 0].ravel(), np.arange(75))
    np.testing.assert_array_equal(
        on_device, batches.cut_windows(pixels, first, np.asarray([15]), 5)
    )


class TestPlacement:
    @pytest.fixture
    def splits(self):
        return [images_of([(6, 7)] * 4), images_of([(5, 5)])]

    def test_auto_is_the_device_where_they_fit(self, splits, monkeypatch):
        assert choose_placement("auto", splits)
        needed = 4 * 6 * 7 * 3 + 5 * 5 * 3
        monkeypatch.setattr(feeding, "_room", lambda: needed)
        assert choose_placement("auto", splits)
        monkeypatch.setattr(feeding, "_room", lambda: needed - 1)
        assert not choose_placement("auto", splits)

    def test_the_device_is_refused_where_they_do_not(self, splits, monkeypatch):
        monkeypatch.setattr(feeding, "_MOST_BYTES", 100)
        with pytest.raises(UserError, match=r"placement.* do not fit .* set it to host"):
            choose_placement("device", splits)
        assert not choose_placement("auto", splits)

    def test_test_images_without_room_beside_the_others_stay_on_the_host(
        self, tiny_config, open_cache, monkeypatch
    ):
        data = prepare(open_cache(tiny_config), tiny_config)
        splits = [batches.Images.of(data.cache, examples) for examples in data.splits]
        sizes = [int(images.lengths.sum()) for images in splits]
        sizing = {"seed": 0, "batch_size": 8, "eval_batch_size": 8, "crop_size": 8}
        for room, where in ((sum(sizes), "device"), (sum(sizes[:2]), "host")):
            monkeypatch.setattr(feeding, "_room", lambda room=room: room)
            placed = RunData(data, Devices(), placement="auto", **sizing)
            assert placed.train.pixels is not None
            assert (placed.test.pixels is not None) == (where == "device")
            assert ("those for the test on the host" in placed.about) == (where == "host")
        with pytest.raises(UserError, match="do not fit"):
            RunData(data, Devices(), placement="device", **sizing)

    def test_the_host_is_always_possible(self, splits):
        assert not choose_placement("host", splits)
