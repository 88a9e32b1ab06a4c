"""The cache: built once, whole or not at all, never mixed up, readable without its source."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from bn_vgg.data import cache as image_cache
from bn_vgg.data import sources
from bn_vgg.data.cache import open_or_build
from bn_vgg.data.images import UnreadableImage
from bn_vgg.data.source import Record
from bn_vgg.errors import NotThereError, UserError


class FakeSource:
    """Images of one grey value each; index 3 can be made unreadable."""

    def __init__(self, count=10, fingerprint="f", unreadable=()):
        self.description, self.fingerprint = "fake", fingerprint
        self.class_names = ("cat", "dog")
        self.records = [Record(f"cat/{i}", i % 2, ("", "test")[i % 2]) for i in range(count)]
        self.unreadable, self.reads = unreadable, 0

    def read(self, index):
        self.reads += 1
        if index in self.unreadable:
            raise UnreadableImage("broken")
        return Image.new("RGB", (20 + index, 40), (index,) * 3)


@pytest.fixture
def fake(monkeypatch):
    def use(source):
        monkeypatch.setattr(sources, "open_source", lambda spec: source)
        return source

    return use


def build(folder, spec="./fake", min_side=8):
    return open_or_build(spec, min_side=min_side, folder=folder, quiet=True)


def test_images_labels_keys_and_splits(fake, tmp_path):
    fake(FakeSource())
    cache = build(tmp_path)
    assert len(cache) == 10
    for i in range(10):
        image = cache.image(i)
        assert image.shape == (round(40 * 8 / (20 + i)), 8, 3)
        assert (image == i).all()
        assert cache.labels[i] == i % 2
    assert cache.keys == [f"cat/{i}" for i in range(10)]
    assert cache.splits[:2] == ["", "test"]
    assert cache.class_names == ["cat", "dog"]


def test_a_second_opening_reads_no_image(fake, tmp_path):
    source = fake(FakeSource())
    first = build(tmp_path)
    assert source.reads == 10
    second = build(tmp_path)
    assert source.reads == 10
    np.testing.assert_array_equal(first.pixels, second.pixels)


def test_content_and_settings_never_mix(fake, tmp_path):
    fake(FakeSource())
    caches = [build(tmp_path), build(tmp_path, min_side=9)]
    fake(FakeSource(fingerprint="g", count=11))
    caches.append(build(tmp_path))
    assert len({cache.fingerprint for cache in caches}) == 3
    assert [cache.sizes.min() for cache in caches] == [8, 9, 8]
    assert len(caches[2]) == 11


def test_an_interrupted_build_leaves_nothing_to_use(fake, tmp_path):
    source = fake(FakeSource())
    read = source.read

    def die(index):
        if index == 7:
            raise KeyboardInterrupt
        return read(index)

    source.read = die
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path)
    assert [path.name for path in tmp_path.glob("[!.]*")] == []
    source.read = read
    assert len(build(tmp_path)) == 10


def test_a_few_unreadable_images_are_left_out_and_listed(fake, tmp_path):
    fake(FakeSource(count=40, unreadable={3, 30}))
    cache = build(tmp_path)
    assert len(cache) == 38
    assert "cat/3" not in cache.keys
    assert cache.labels.tolist() == [i % 2 for i in range(40) if i not in (3, 30)]
    (folder,) = tmp_path.glob("images-*")
    about = json.loads((folder / "about.json").read_text())
    assert about["unreadable"] == {"cat/3": "broken", "cat/30": "broken"}


def test_many_unreadable_images_are_an_error(fake, tmp_path):
    fake(FakeSource(count=40, unreadable={3, 4, 5}))
    with pytest.raises(UserError, match=r"3 of 40 images cannot be read, .* cat/3: broken"):
        build(tmp_path)
    assert list(tmp_path.glob("images-*")) == []


def test_a_source_that_is_gone_is_replaced_by_its_cache_and_no_other(fake, tmp_path, monkeypatch):
    fake(FakeSource())
    build(tmp_path)

    def gone(spec):
        raise NotThereError(f"{spec} is gone")

    monkeypatch.setattr(sources, "open_source", gone)
    assert len(build(tmp_path)) == 10
    with pytest.raises(UserError, match="is gone"):
        build(tmp_path, min_side=9)
    with pytest.raises(UserError, match="is gone"):
        build(tmp_path, spec="./other")


def test_who_may_only_read_a_shared_cache_uses_it(fake, tmp_path, monkeypatch):
    fake(FakeSource())
    build(tmp_path)
    shutil.rmtree(tmp_path / "sources")

    def refused(path, text):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(image_cache, "_write_text", refused)
    assert len(build(tmp_path).labels) == 10


def test_an_empty_note_of_what_a_source_held_names_no_cache(fake, tmp_path, monkeypatch):
    """As a machine leaves one that dies while it is written."""
    fake(FakeSource())
    build(tmp_path)
    (note,) = (tmp_path / "sources").iterdir()
    note.write_text("")
    monkeypatch.setattr(sources, "kind", lambda spec: "tfds")
    assert len(build(tmp_path).labels) == 10
    assert note.read_text()


def test_a_source_that_is_there_but_wrong_is_an_error(fake, tmp_path, monkeypatch):
    fake(FakeSource())
    build(tmp_path)

    def wrong(spec):
        raise UserError("one class only")

    monkeypatch.setattr(sources, "open_source", wrong)
    with pytest.raises(UserError, match="one class only"):
        build(tmp_path)


def test_a_tfds_cache_is_opened_without_tfds(fake, tmp_path, monkeypatch):
    fake(FakeSource())
    build(tmp_path, spec="cats_vs_dogs")

    def imported(spec):
        raise AssertionError("TFDS was asked")

    monkeypatch.setattr(sources, "open_source", imported)
    assert len(build(tmp_path, spec="cats_vs_dogs")) == 10


def test_a_cut_off_file_is_noticed(fake, tmp_path):
    fake(FakeSource())
    build(tmp_path)
    (folder,) = tmp_path.glob("images-*")
    pixels = (folder / "images.bin").read_bytes()
    (folder / "images.bin").write_bytes(pixels[:-1])
    with pytest.raises(UserError, match="delete that folder"):
        build(tmp_path)
    shutil.rmtree(folder)
    assert len(build(tmp_path)) == 10


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("cartoons", "cartoons"), ("cartoons:25000", "cartoons"), ("cats_vs_dogs", "tfds"),
        ("cifar10:3.*.*", "tfds"),
        ("imagenet_resized/32x32", "tfds"), ("./cats_vs_dogs", "files"), ("/a/b", "files"),
        ("~/x", "files"), ("a/*.zip", "files"), ("a.zip,b.zip", "files"),
    ],
)  # fmt: skip
def test_what_a_spec_names(spec, kind):
    assert sources.kind(spec) == kind


@pytest.mark.parametrize("spec", ["", "data/train.zip", "a b"])
def test_a_spec_that_names_nothing_says_what_there_is(spec):
    with pytest.raises(UserError, match=r"a TFDS name .* a path or glob .* or cartoons"):
        sources.kind(spec)


def test_cartoons_come_in_any_number():
    assert len(sources.open_source("cartoons").records) == 4000
    assert len(sources.open_source("cartoons:6").records) == 6
    with pytest.raises(UserError, match="give at least 2"):
        sources.open_source("cartoons:1")
