"""Order and windows: properties over odd sizes, and that they are what they are for good."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bn_vgg.data import windows
from bn_vgg.data.batches import cut_windows

seeds = st.integers(0, 2**63 - 1)
epochs = st.integers(0, 10**6)


@given(seeds, epochs, st.integers(0, 300))
def test_an_epoch_visits_every_example_once(seed, epoch, count):
    order = windows.epoch_order(seed, epoch, count)
    np.testing.assert_array_equal(np.sort(order), np.arange(count))


@given(seeds, epochs, st.integers(1, 40), st.data())
def test_windows_lie_inside(seed, epoch, crop, data):
    sizes = data.draw(st.lists(st.tuples(*[st.integers(crop, crop + 60)] * 2), min_size=1))
    sizes = np.asarray(sizes, np.int64)
    corners = windows.random_corners(seed, epoch, sizes, crop)
    assert corners.shape == sizes.shape
    assert (corners >= 0).all()
    assert (corners + crop <= sizes).all()


def test_windows_are_uniform_over_all_that_fit():
    """150 to 128 pixels leaves 23 x 23 positions; 52,900 draws put 2,300 on each row."""
    sizes = np.full((52_900, 2), 150)
    corners = windows.random_corners(0, 0, sizes, 128)
    for axis in (0, 1):
        counts = np.bincount(corners[:, axis], minlength=23)
        assert len(counts) == 23
        # Chi-square with 22 degrees of freedom: 48.3 is its 0.999 quantile.
        assert ((counts - 2300) ** 2 / 2300).sum() < 48.3
    assert abs(np.corrcoef(corners.T)[0, 1]) < 0.02


def test_seed_epoch_and_purpose_all_matter():
    sizes = np.full((50, 2), 150)
    draws = [
        windows.random_corners(seed, epoch, sizes, 128).tolist()
        for seed, epoch in ((0, 0), (1, 0), (0, 1))
    ] + [windows.random_corners(2**32, 0, sizes, 128).tolist()]
    assert len({str(draw) for draw in draws}) == 4
    orders = [windows.epoch_order(seed, epoch, 50).tolist() for seed, epoch in ((0, 0), (0, 1))]
    assert orders[0] != orders[1]


def test_golden_draws():
    """Any change here changes every run: raise the version and say so in the README."""
    assert windows.epoch_order(0, 0, 8).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    sizes = np.array([[150, 150], [150, 200], [128, 131]])
    assert windows.random_corners(1, 2, sizes, 128).tolist() == [[8, 3], [17, 2], [0, 3]]


@given(st.integers(1, 50), st.integers(0, 50), st.integers(0, 50))
def test_five_corners_touch_the_rims_and_the_centre(crop, more_height, more_width):
    height, width = crop + more_height, crop + more_width
    corners = windows.five_corners(height, width, crop)
    assert corners.shape == (5, 2)
    assert (corners >= 0).all()
    assert (corners + crop <= [height, width]).all()
    assert {tuple(corner) for corner in corners[:4]} == {
        (top, left) for top in (0, more_height) for left in (0, more_width)
    }
    # Centred to within half a pixel.
    assert (np.abs(2 * corners[4] - [more_height, more_width]) <= 1).all()


def test_cut_is_the_window_at_its_place():
    """Of the second of two images in flat pixels."""
    pixels = np.arange(11 + 5 * 7 * 3).astype(np.uint8)
    image = pixels[11:].reshape(5, 7, 3)
    first, stride = windows.place(np.array([2, 3]), np.int64(11), np.int64(7))
    np.testing.assert_array_equal(cut_windows(pixels, first[None], stride, 3)[0], image[2:5, 3:6])
