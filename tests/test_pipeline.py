"""Order, crops and chunks: properties over odd sizes, and that they are what they are for good."""

import itertools
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bn_vgg.data import crops, pipeline
from bn_vgg.data.cache import ImageCache
from bn_vgg.data.pipeline import Data, Split, eval_batches, train_batches
from bn_vgg.data.splits import Splits
from bn_vgg.devices import Devices
from bn_vgg.errors import UserError
from tests.runs import same

seeds, epochs = st.integers(0, 2**63 - 1), st.integers(0, 10**6)
image_sizes = st.lists(st.tuples(st.integers(5, 9), st.integers(5, 9)), min_size=1, max_size=40)
CROP = 5


def make_cache(sizes):
    """Images of noise whose first channel is the image's own number everywhere."""
    sizes = np.asarray(sizes, np.int64).reshape(-1, 2)
    lengths = sizes.prod(axis=1) * 3
    pixels = np.random.default_rng(0).integers(0, 256, lengths.sum(), np.uint8).reshape(-1, 3)
    pixels[:, 0] = np.repeat(np.arange(len(sizes)), lengths // 3)
    return ImageCache(
        pixels=pixels.ravel(), starts=np.cumsum(lengths) - lengths, sizes=sizes,
        labels=np.arange(len(sizes), dtype=np.int32) % 2, keys=[str(i) for i in range(len(sizes))],
        splits=[""] * len(sizes), class_names=["cat", "dog"], fingerprint="f",
    )  # fmt: skip


def split_of(cache):
    return Split(cache.pixels, cache.starts, cache.sizes, cache.labels)


def cut(split, batches):
    """The crops of batches, (S, N, K, CROP, CROP, 3)."""
    return crops.cut_crops(split.pixels, batches["crop_start"], batches["row_stride"], CROP)


def make_data(cache, placement="auto", batch_size=2, valid=1, test=1, mixup=0.0):
    """Data whose training split is the cache but for the last images."""
    config = {
        "seed": 3, "batch_size": batch_size, "data": {"crop_size": CROP, "placement": placement},
        "eval": {"batch_size": 4, "precise_examples": 3, "compared_examples": 3},
        "augment": {"mixup": mixup},
    }  # fmt: skip
    order = np.arange(len(cache.labels))[::-1]
    splits = Splits(order[valid + test :], order[:valid], order[valid : valid + test])
    return Data(config, cache, splits, Devices())


class TestCrops:
    @given(seeds, epochs, st.integers(0, 300))
    def test_an_epoch_visits_every_example_once(self, seed, epoch, count):
        order = crops.epoch_order(seed, epoch, count)
        np.testing.assert_array_equal(np.sort(order), np.arange(count))

    def test_random_crops_are_uniform_over_all_that_fit(self):
        """150 to 128 pixels leaves 23 x 23 positions; 52,900 draws put 2,300 on each row."""
        corners = crops.random_corners(0, 0, np.full((52_900, 2), 150), 128)
        for axis in (0, 1):
            counts = np.bincount(corners[:, axis], minlength=23)
            assert len(counts) == 23
            # Chi-square with 22 degrees of freedom: 48.3 is its 0.999 quantile.
            assert ((counts - 2300) ** 2 / 2300).sum() < 48.3
        assert abs(np.corrcoef(corners.T)[0, 1]) < 0.02

    def test_golden_draws(self):
        """Any change here changes every run: raise the version and say so in the README."""
        assert crops.epoch_order(0, 0, 8).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
        assert crops.epoch_order(0, 1, 8).tolist() != crops.epoch_order(0, 0, 8).tolist()
        sizes = np.array([[150, 150], [150, 200], [128, 131]])
        assert crops.random_corners(1, 2, sizes, 128).tolist() == [[8, 3], [17, 2], [0, 3]]
        assert crops.random_corners(2**32, 2, sizes, 128)[0].tolist() != [8, 3]

    @given(st.integers(1, 50), st.integers(0, 50), st.integers(0, 50))
    def test_five_crops_are_the_corners_and_the_centre(self, crop, more_height, more_width):
        corners = crops.five_corners(crop + more_height, crop + more_width, crop)
        expected = set(itertools.product((0, more_height), (0, more_width)))
        assert {tuple(corner) for corner in corners[:4]} == expected
        # Centred to within half a pixel.
        assert (np.abs(2 * corners[4] - [more_height, more_width]) <= 1).all()


class TestBatches:
    @given(image_sizes, st.integers(1, 12), st.integers(0, 99), st.integers(0, 9))
    def test_an_epoch_has_each_example_at_most_once_in_full_batches(
        self, sizes, batch, seed, epoch
    ):
        """And each crop is cut out of its image, where it was drawn."""
        split = split_of(make_cache(sizes))
        found = train_batches(split, seed, epoch, batch, CROP)
        images, count = cut(split, found), len(sizes) // batch
        assert images.shape == (count, batch, 1, CROP, CROP, 3)
        order = crops.epoch_order(seed, epoch, len(sizes))[: count * batch]
        assert images[..., 0, 0, 0].ravel().tolist() == order.tolist()
        assert (images[..., 0] == images[..., :1, :1, 0]).all()  # of one image each
        np.testing.assert_array_equal(found["label"].ravel(), order % 2)
        np.testing.assert_array_equal(found["position"].ravel(), np.arange(count * batch))

    @given(image_sizes, st.integers(1, 13))
    def test_evaluation_counts_each_example_once_by_its_five_crops(self, sizes, batch_size):
        cache = make_cache(sizes)
        found = eval_batches(split_of(cache), batch_size, CROP)
        assert found["mask"].shape[1] == batch_size
        of_examples = cut(split_of(cache), found)[found["mask"] == 1]
        assert len(of_examples) == len(sizes)
        for i, images in enumerate(of_examples):
            expected = crops.five_crops(cache.image(i), CROP)
            # Images that are all as large as a crop come once.
            one = all(size == (CROP, CROP) for size in sizes)
            np.testing.assert_array_equal(images, expected[-1:] if one else expected)


class TestChunks:
    def test_device_and_host_give_the_same_crops(self):
        cache = make_cache(np.random.default_rng(1).integers(CROP, 9, (23, 2), endpoint=True))
        cut_on_device = jax.jit(jax.vmap(lambda b, p: crops.gather_crops(b, p, CROP), (0, None)))

        def batches_of(chunks):
            found = []
            for chunk in chunks:
                images = cut_on_device(chunk.batches, chunk.pixels)
                rest = {k: x for k, x in chunk.batches.items() if k not in PLACES}
                found.append(jax.device_get(rest | {"crops": images}))
                assert len(found[-1]["label"]) == chunk.num_steps
            return {k: np.concatenate([each[k] for each in found]) for k in found[0]}

        device, host = (make_data(cache, placement) for placement in ("auto", "host"))
        for of_run in (
            lambda data: data.train(1),
            lambda data: data.precise(1),
            lambda data: data.evaluation(data.test_split),
            lambda data: data.compared(),
        ):
            same(*(batches_of(of_run(data)) for data in (device, host)))
        rest, whole = batches_of(device.train(1, skip=1)), batches_of(host.train(1))
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[1:]), rest, whole)

    @given(st.integers(1, 500))
    def test_a_chunk_has_one_of_two_lengths_and_often_one(self, num_batches):
        length = pipeline.chunk_length(num_batches, 1)
        assert 1 <= length <= min(10, num_batches)
        assert length == num_batches or length >= 5
        if num_batches % 10 == 0:
            assert length == 10
        # On a CPU a chunk of large batches is short: it is what a signal waits for.
        assert pipeline.chunk_length(num_batches, pipeline._MAX_CPU_PIXELS) == 1

    @pytest.mark.parametrize("placement", ["auto", "host"])
    def test_with_mixup_each_example_brings_its_partner(self, placement):
        cache = make_cache([(5 + i, 9 - i % 4) for i in range(12)])
        plain, mixed = (
            next(make_data(cache, placement, batch_size=5, mixup=mixup).train(0))
            for mixup in (0.0, 0.2)
        )
        one, both = (
            np.stack([
                crops.gather_crops({k: x[i] for k, x in chunk.batches.items()}, chunk.pixels, CROP)
                for i in range(chunk.num_steps)
            ])
            for chunk in (plain, mixed)
        )  # fmt: skip
        np.testing.assert_array_equal(both[:, :, :1], one)
        np.testing.assert_array_equal(both[:, :, 1:], np.roll(one, 1, axis=1))
        partner, label = mixed.batches["partner_label"], plain.batches["label"]
        np.testing.assert_array_equal(partner, np.roll(label, 1, axis=1))

    def test_an_error_in_a_thread_arrives(self, monkeypatch):
        data = make_data(make_cache([(6, 7)] * 8), "host")
        gone = OSError("the disk is gone")
        monkeypatch.setattr(pipeline, "cut_crops", Mock(side_effect=gone))
        with pytest.raises(OSError, match="the disk is gone"):
            list(data.train(0))


PLACES = ("crop_start", "row_stride")


def test_images_are_on_the_device_where_they_fit(monkeypatch):
    cache, every = make_cache([(6, 7)] * 8), 8 * 126

    def placed(room, placement="auto", most=10**9):
        monkeypatch.setattr(pipeline, "_room", lambda: room)
        monkeypatch.setattr(pipeline, "_MAX_BYTES", most)
        return not make_data(cache, placement).on_host

    assert placed(every)
    assert not placed(every, placement="host")
    for room, most in ((every - 1, 10**9), (every, 100)):
        assert not placed(room, most=most)
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert not placed(every)


def test_too_few_images_for_a_batch():
    with pytest.raises(UserError, match="6 training images do not fill a batch of 7"):
        make_data(make_cache([(6, 7)] * 8), batch_size=7)
