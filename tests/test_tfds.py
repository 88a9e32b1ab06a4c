from unittest.mock import Mock

import numpy as np
import pytest
import requests
import tensorflow_datasets as tfds
from urllib3.connection import HTTPSConnection
from urllib3.exceptions import MaxRetryError, NameResolutionError

from bn_vgg import locking
from bn_vgg.data import sources
from bn_vgg.data.cache import open_or_build
from bn_vgg.data.images import UnreadableImage
from bn_vgg.data.sources import Record
from bn_vgg.data.splits import split
from bn_vgg.data.tfds import tfds_images
from bn_vgg.errors import UserError
from tests.tfds_builders import GREYS, TinyPets


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where TFDS keeps the sets that the tests share."""
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="module")
def pets(folder):
    return tfds_images("tiny_pets", data_dir=folder)


def failure(name, data_dir):
    """Returns the message of the UserError, which must be one line."""
    with pytest.raises(UserError) as info:
        tfds_images(name, data_dir=str(data_dir))
    message = str(info.value)
    assert len(message.splitlines()) == 1
    return message


def read_all(source):
    return [np.asarray(read()) for read in source.readers()]


def test_one_split(pets):
    assert pets.description == "TFDS tiny_pets/1.0.0"
    assert pets.class_names == ("cat", "dog")
    cats = [Record(f"cat/{i}.png", 0, "") for i in range(2)]
    assert sorted(pets.records) == cats + [Record(f"dog/{i}.png", 1, "") for i in range(3)]
    for record, pixels in zip(pets.records, read_all(pets), strict=True):
        grey = GREYS[record.key.capitalize()]
        np.testing.assert_array_equal(pixels, np.full((6, grey, 3), grey, np.uint8), record.key)


def test_published_splits_reach_the_run(folder, tmp_path, monkeypatch):
    """From TFDS through the cache, by the name alone, to what is trained on."""

    def open_source(name):
        # TFDS lets several processes prepare a set at once, and all but one fail.
        (lock,) = tmp_path.glob(".*.lock")
        with pytest.raises(UserError, match="in use by process"), locking.hold_lock(lock):
            pass
        return tfds_images(name, data_dir=folder)

    monkeypatch.setattr(sources, "open_source", open_source)
    cache = open_or_build("tiny_splits", min_side=8, folder=tmp_path, quiet=True)
    splits = split(cache.keys, cache.splits, valid_examples=1, test_examples=99)
    assert [len(part) for part in splits] == [2, 1, 3]
    assert cache.class_names == ["0", "1", "2"]
    assert {cache.splits[i] for i in splits.test} == {"test"}
    greys = {40 * (label + 1) + len("test") for label in range(3)}
    assert {int(cache.image(i)[0, 0, 0]) for i in splits.test} == greys
    assert cache.image(0).shape == (8, 10, 3)


@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_sets_of_either_format_and_several_files_are_read_in_one_order(pets, tmp_path, file_format):
    builder = tfds.builder("tiny_pets", data_dir=str(tmp_path))
    builder.download_and_prepare(
        file_format=file_format, download_config=tfds.download.DownloadConfig(num_shards=2)
    )
    files = sorted(builder.data_path.glob(f"*.{file_format}*"))
    assert len(files) == 2
    source = tfds_images("tiny_pets", data_dir=str(tmp_path))
    assert source.records == pets.records
    assert source.fingerprint == pets.fingerprint
    for image, expected in zip(read_all(source), read_all(pets), strict=True):
        np.testing.assert_array_equal(image, expected)
    files[1].write_bytes(b"")
    assert f"delete {builder.data_dir}" in failure("tiny_pets", tmp_path)


def test_opens_again_without_preparing(pets, folder, monkeypatch):
    prepared = AssertionError("prepared again")
    monkeypatch.setattr(TinyPets, "_generate_examples", Mock(side_effect=prepared))
    again = tfds_images("tiny_pets", data_dir=folder)
    assert again.records == pets.records
    assert again.fingerprint == pets.fingerprint
    by_version = tfds_images("tiny_pets:1.*.*", data_dir=folder)
    assert by_version.fingerprint == pets.fingerprint


def test_fingerprint_changes_with_version_and_records(pets, tmp_path, monkeypatch):
    monkeypatch.setattr(TinyPets, "VERSION", tfds.core.Version("1.0.2"))
    version = tfds_images("tiny_pets", data_dir=str(tmp_path / "version"))
    assert version.records == pets.records
    monkeypatch.setitem(GREYS, "Dog/3.png", 210)
    more = tfds_images("tiny_pets", data_dir=str(tmp_path / "more"))
    assert len({pets.fingerprint, version.fingerprint, more.fingerprint}) == 3


def test_unreadable_image(folder):
    source = tfds_images("tiny_broken", data_dir=folder)
    assert source.records == [Record("train/00000000", 0)]
    with pytest.raises(UnreadableImage):
        read_all(source)


def test_unknown_name(tmp_path):
    message = failure("cats_vs_dog", tmp_path)
    assert "no TFDS set 'cats_vs_dog'; did you mean cats_vs_dogs? write a folder as" in message
    assert "zip files or folders, or cartoons" in message


@pytest.mark.parametrize("name", ["tiny_pets:9.9.9", "tiny_pets/large", "no such:name:", "a:b"])
def test_wrong_version_configuration_or_spelling(name, tmp_path):
    assert repr(name) in failure(name, tmp_path)


def test_not_for_image_classification(tmp_path):
    message = failure("tiny_texts", tmp_path)
    assert "not for image classification" in message
    assert "text (Text), label (ClassLabel)" in message
    assert list(tmp_path.iterdir()) == []  # nothing was prepared for that


def test_no_labels(tmp_path):
    assert "no labelled images" in failure("tiny_unlabelled", tmp_path)


def test_no_network(tmp_path, monkeypatch):
    def get(session, url, **_):
        # What requests raised in this place on a machine without a network.
        host = "download.microsoft.com"
        error = OSError(-2, "Name or service not known")
        reason = NameResolutionError(host, HTTPSConnection(host), error)
        raise requests.ConnectionError(MaxRetryError(None, url, reason))

    monkeypatch.setattr(requests.Session, "get", get)
    # A set of TFDS's own, because those alone need importlib_resources, which TFDS 4.9.10
    # forgets to require (https://github.com/tensorflow/datasets/issues/11212).
    message = failure("cats_vs_dogs", tmp_path)
    assert "cats_vs_dogs/4" in message
    assert "Failed to resolve 'download.microsoft.com'" in message
    assert "check the network" in message
    # TFDS must still have the knob that `_prepare` turns, or it retries for minutes.
    assert tfds.core.download.downloader.MAX_RETRIES == 5


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ModuleNotFoundError("No module", name="tensorflow.io"), "; pip install tensorflow"),
        (ModuleNotFoundError("No module", name="scipy"), "; pip install scipy"),
        (OSError("Not enough disk space.\nNeeded: 1 GiB"), "has room"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_whatever_stops_the_preparation(error, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(TinyPets, "_generate_examples", Mock(side_effect=error))
    assert expected in failure("tiny_pets", tmp_path)
