"""Hugging Face sets: made here, in folders of three kinds; without a network."""

import sys

import numpy as np
import pytest
from PIL import Image

from bn_vgg.data.cache import open_or_build
from bn_vgg.data.hugging_face import hugging_face_images
from bn_vgg.data.splits import split
from bn_vgg.errors import NotFoundError, UserError
from tests.image_files import encode, write_folder

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def its_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))


def picture(grey):
    return Image.fromarray(np.full((8, 10, 3), grey, np.uint8))


def dataset(greys, labels):
    features = datasets.Features(
        {"note": datasets.Value("string"), "img": datasets.Image(),
         "kind": datasets.ClassLabel(names=["cat", "dog"])}
    )  # fmt: skip
    columns = {"note": ["x"] * len(greys), "img": [*map(picture, greys)], "kind": labels}
    return datasets.Dataset.from_dict(columns, features)


def greys_of(source):
    return [np.asarray(read())[0, 0, 0] for read in source.readers()]


def test_published_splits_reach_the_run(tmp_path):
    parts = {
        "test": dataset([70, 80], [1, 0]),
        "train": dataset([10, 20, 30, 40], [0, 1, -1, 1]),
        "valid": dataset([50, 60], [0, 1]),
        "extra": dataset([90], [0]),
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "pets")
    spec = f"hf:{tmp_path}/pets"
    cache = open_or_build(spec, min_side=8, folder=tmp_path / "cache", quiet=True)
    splits = split(cache.keys, cache.splits, valid_examples=1, test_examples=1)
    found = [
        sorted((int(cache.image(i)[0, 0, 0]), int(cache.labels[i])) for i in part)
        for part in splits
    ]
    assert found == [[(10, 0), (20, 1), (40, 1)], [(50, 0), (60, 1)], [(70, 1), (80, 0)]]
    assert cache.class_names == ["cat", "dog"]
    # Another image leads to another cache; without the folder the last one serves.
    parts["train"] = dataset([11, 20, 30, 40], [0, 1, -1, 1])
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "pets")
    changed = open_or_build(spec, min_side=8, folder=tmp_path / "cache", quiet=True)
    assert changed.fingerprint != cache.fingerprint
    (tmp_path / "pets").rename(tmp_path / "elsewhere")
    again = open_or_build(spec, min_side=8, folder=tmp_path / "cache", quiet=True)
    assert again.fingerprint == changed.fingerprint


def test_one_split_in_files_of_three_kinds(tmp_path):
    """Saved, Parquet and image files have the same images and so the same fingerprint."""
    files = {"cat/1.png": 10, "cat/2.png": 20, "dog/1.png": 30}
    write_folder(tmp_path / "files", {name: encode(picture(grey)) for name, grey in files.items()})
    whole = dataset([10, 20, 30], [0, 0, 1])
    whole.save_to_disk(tmp_path / "saved")
    (tmp_path / "parquet").mkdir()
    whole.to_parquet(tmp_path / "parquet" / "train.parquet")
    found = [hugging_face_images(str(tmp_path / x)) for x in ("saved", "parquet", "files")]
    for source in found:
        assert [tuple(x) for x in source.records] == [
            ("train/00000000", 0, ""), ("train/00000001", 0, ""), ("train/00000002", 1, ""),
        ]  # fmt: skip
        assert greys_of(source) == [10, 20, 30]
    assert found[0].description == f"Hugging Face {tmp_path}/saved (img, kind: train)"
    assert len({source.fingerprint for source in found}) == 1


def test_what_cannot_be_used_is_told_in_a_line(tmp_path, monkeypatch):
    datasets.Dataset.from_dict({"text": ["a"], "label": [1]}).save_to_disk(tmp_path / "texts")
    datasets.DatasetDict({"all": dataset([1], [0])}).save_to_disk(tmp_path / "splits")
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    for name, message in {
        f"{tmp_path}/texts": r"not for image classification.*text \(Value\), label \(Value\)",
        f"{tmp_path}/splits": "needs a split train, .*; it has: all",
        f"{tmp_path}/empty": "data files; check the name",
        "uoft-cs/cifar10": "'uoft-cs/cifar10'.*check the name and the network",
        "no such:name": "a folder is written hf:./folder",
    }.items():
        with pytest.raises(UserError, match=message):
            hugging_face_images(name)
    with pytest.raises(NotFoundError, match=r"no folder '\./pets'"):
        hugging_face_images("./pets")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[hf\]'"):
        hugging_face_images("uoft-cs/cifar10")
