"""The cache: built once, whole or not at all, never mixed up, readable without its source."""

import errno
import json
import os
import shutil
from functools import partial
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from bn_vgg.data import cache as image_cache
from bn_vgg.data import sources
from bn_vgg.data.cache import open_or_build
from bn_vgg.data.images import UnreadableImage
from bn_vgg.data.sources import Record, Source
from bn_vgg.errors import NotFoundError, UserError


@pytest.fixture
def fake(monkeypatch):
    """Puts a source of images of one grey value each in place; returns the list of its reads."""

    def use(count=10, fingerprint="f", unreadable=(), error=None):
        reads = []

        def read(index):
            reads.append(index)
            if index in unreadable:
                raise UnreadableImage("broken")
            if error and index == 7:
                raise error
            return Image.new("RGB", (20 + index, 40), (index,) * 3)

        records = [Record(f"cat/{i}", i % 2, ("", "test")[i % 2]) for i in range(count)]
        readers = [partial(read, i) for i in range(count)]
        source = Source("fake", fingerprint, ("cat", "dog"), records, lambda: readers)
        monkeypatch.setattr(sources, "open_source", lambda spec: source)
        return reads

    return use


@pytest.fixture
def refuse(monkeypatch):
    """From then on no source can be opened."""
    return lambda error: monkeypatch.setattr(sources, "open_source", Mock(side_effect=error))


def build(folder, spec="./fake", min_side=8):
    return open_or_build(spec, min_side=min_side, folder=folder, quiet=True)


def test_images_labels_keys_and_splits(fake, tmp_path):
    reads = fake()
    cache = build(tmp_path)
    assert cache.keys == build(tmp_path).keys == [f"cat/{i}" for i in range(10)]
    assert sorted(reads) == list(range(10))  # the second time nothing was read
    for i in range(10):
        image = cache.image(i)
        assert image.shape == (round(40 * 8 / (20 + i)), 8, 3)
        assert (image == i).all()
        assert cache.labels[i] == i % 2
    assert cache.splits[:2] == ["", "test"]
    assert cache.class_names == ["cat", "dog"]
    # The name and the files of caches that were made before.
    (folder,) = tmp_path.glob("images-*")
    assert folder.name == "images-8px-92e2e1213e02b504238a2e55"
    with np.load(folder / "index.npz") as index:
        kinds = {name: array.dtype.kind for name, array in index.items()}
    assert kinds == {"sizes": "i", "labels": "i", "keys": "U", "splits": "U"}


def test_content_and_settings_never_mix(fake, tmp_path):
    fake()
    caches = [build(tmp_path), build(tmp_path, min_side=9)]
    fake(fingerprint="g", count=11)
    caches.append(build(tmp_path))
    assert len({cache.fingerprint for cache in caches}) == 3
    assert [cache.sizes.min() for cache in caches] == [8, 9, 8]
    assert len(caches[2].keys) == 11


def test_an_interrupted_build_leaves_nothing_to_use(fake, tmp_path):
    fake(error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path)
    assert [path.name for path in tmp_path.glob("[!.]*")] == []
    fake()
    assert len(build(tmp_path).keys) == 10


def test_a_few_unreadable_images_are_left_out_and_listed(fake, tmp_path):
    fake(count=40, unreadable={3, 30})
    cache = build(tmp_path)
    assert cache.keys == [f"cat/{i}" for i in range(40) if i not in (3, 30)]
    assert cache.labels.tolist() == [i % 2 for i in range(40) if i not in (3, 30)]
    (about,) = tmp_path.glob("images-*/about.json")
    assert json.loads(about.read_text())["unreadable"] == {"cat/3": "broken", "cat/30": "broken"}

    fake(count=40, fingerprint="g", unreadable={3, 4, 5})
    with pytest.raises(UserError, match=r"3 of 40 images cannot be read, .* cat/3: broken"):
        build(tmp_path)
    assert len(list(tmp_path.glob("images-*"))) == 1


def test_a_source_that_is_gone_is_replaced_by_its_cache_and_no_other(fake, refuse, tmp_path):
    fake()
    build(tmp_path)
    refuse(NotFoundError("it is gone"))
    assert len(build(tmp_path).keys) == 10
    for other in ({"min_side": 9}, {"spec": "./other"}):
        with pytest.raises(UserError, match="it is gone"):
            build(tmp_path, **other)
    refuse(UserError("one class only"))
    with pytest.raises(UserError, match="one class only"):
        build(tmp_path)


def test_a_tfds_cache_is_opened_without_tfds(fake, refuse, tmp_path):
    fake()
    build(tmp_path, spec="cats_vs_dogs")
    (note,) = (tmp_path / "sources").iterdir()
    note.write_text("")  # as a machine leaves it that dies while it is written
    build(tmp_path, spec="cats_vs_dogs")
    refuse(AssertionError("TFDS was asked"))
    assert len(build(tmp_path, spec="cats_vs_dogs").keys) == 10


@pytest.mark.parametrize("damage", ["cut", "gone", "pickled", "about"])
def test_damage_is_noticed(fake, tmp_path, damage):
    fake()
    build(tmp_path)
    (folder,) = tmp_path.glob("images-*")
    if damage == "cut":
        os.truncate(folder / "images.bin", (folder / "images.bin").stat().st_size - 1)
    elif damage == "gone":
        (folder / "index.npz").unlink()
    elif damage == "pickled":
        with np.load(folder / "index.npz") as index:
            np.savez(folder / "index.npz", **(dict(index) | {"keys": np.array([{}] * 10)}))
    else:
        (folder / "about.json").write_text(json.dumps({"class_names": []})[:-3])
    with pytest.raises(UserError, match=rf"{folder} is damaged: .*; delete that folder"):
        build(tmp_path)
    shutil.rmtree(folder)
    assert len(build(tmp_path).keys) == 10


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_system_error_is_not_called_damage(fake, tmp_path, monkeypatch, number):
    fake()
    build(tmp_path)
    (folder,) = tmp_path.glob("images-*")
    error = OSError(number, os.strerror(number), str(folder / "images.bin"))
    monkeypatch.setattr(np, "memmap", Mock(side_effect=error))
    with pytest.raises(UserError, match=f"cannot read {folder}: {os.strerror(number)};") as raised:
        build(tmp_path)
    assert "damaged" not in str(raised.value)


@pytest.mark.parametrize("spec", ["./fake", "fake.zip", "*.zip,b.zip"])
def test_a_relative_path_is_another_in_another_folder(spec, fake, refuse, tmp_path, monkeypatch):
    fake()
    build(tmp_path, spec)
    refuse(NotFoundError(f"no {spec}"))
    build(tmp_path, spec)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFoundError):
        build(tmp_path, spec)


def test_who_may_only_read_a_shared_cache_uses_it(fake, tmp_path, monkeypatch):
    fake()
    build(tmp_path)
    shutil.rmtree(tmp_path / "sources")
    denied = PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr(image_cache.Path, "write_text", Mock(side_effect=denied))
    assert len(build(tmp_path).keys) == 10


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("cartoons", "cartoons"), ("cartoons:25000", "cartoons"), ("cats_vs_dogs", "tfds"),
        ("cifar10:3.*.*", "tfds"), ("imagenet_resized/32x32", "tfds"), ("./cats_vs_dogs", "files"),
        ("imagenet_resized/32x32:0.*.*", "tfds"),
        ("/a/b", "files"), ("~/x", "files"), ("a/*.zip", "files"), ("a.zip,b.zip", "files"),
        ("hf:mnist", "hf"), ("hf:a/b:c", "hf"), ("hf:./b", "hf_folder"), ("hf:tests", "hf_folder"),
    ],
)  # fmt: skip
def test_what_a_spec_names(spec, kind):
    assert sources.source_kind(spec) == kind


def test_without_a_home_folder_another_one_is_asked_for(monkeypatch):
    for name in ("BN_VGG_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    no_home = RuntimeError("Could not determine home directory.")
    monkeypatch.setattr(image_cache.Path, "home", Mock(side_effect=no_home))
    with pytest.raises(UserError, match=r"no home folder .* --cache_dir or BN_VGG_CACHE"):
        image_cache.choose_folder()


@pytest.mark.parametrize("spec", ["", "data/train.zip", "a b", "data/PetImags"])
def test_a_spec_that_names_nothing_says_what_there_is(spec, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"a TFDS name .* a path or glob .* or cartoons"):
        sources.source_kind(spec)
