"""Damaged images through the importer and `predict`: a reason for each, and bounded memory."""

import collections
import csv
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_vgg import predict, trained
from bn_vgg.checkpoint import Checkpoints, Progress
from bn_vgg.data import cache, files, images
from bn_vgg.errors import UserError
from bn_vgg.models import make_model
from bn_vgg.optimizer import rmsprop
from bn_vgg.run_dir import Workdir
from bn_vgg.state import jit_init
from tests import rubbish_archives, rubbish_configs
from tests.conftest import ROOT
from tests.image_files import picture
from tests.rubbish_images import damaged_images, largest_images
from tests.tiny_config import get_config

RUBBISH = list(damaged_images())
# Over that of the program before it begins, for any input: see test_memory_is_bounded.
BOUND_IN_MIB = 1536


def snapshot(folder):
    """Everything under a folder, with what would change if somebody wrote there."""
    found = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        found[str(path)] = (status.st_mode, status.st_size, status.st_mtime_ns)
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder as after training, without the training."""
    config, folder = get_config(), tmp_path_factory.mktemp("run")
    model, optimizer = make_model(**config.model), rmsprop(**config.optimizer)
    side = config.data.crop_size
    state = jit_init(model, optimizer)(jax.random.key(0), jnp.zeros((1, side, side, 3)))
    workdir = Workdir(str(folder))
    workdir.claim(config.to_dict(), {"fingerprint": "0", "class_names": ["cat", "dog"]})
    progress = Progress().after_epoch(step=1, valid_error_rate=0.5, seconds=1)
    with Checkpoints(workdir.checkpoints, set_aside=workdir.damaged) as checkpoints:
        checkpoints.save(jax.device_get(state), progress)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All damaged images, half of them as cats."""
    place = tmp_path_factory.mktemp("rubbish")
    for i, rubbish in enumerate(RUBBISH):
        path = place / "images" / ("cat", "dog")[i % 2] / rubbish.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rubbish.data)
    return place / "images"


def is_reason(text):
    return bool(text) and len(text.splitlines()) == 1


def why_not(file):
    """Why a file cannot be decoded, empty if it can."""
    try:
        file.decode()
    except images.UnreadableImage as error:
        return str(error)
    return ""


def test_there_are_more_than_2000_inputs():
    counts = collections.Counter(rubbish.category for rubbish in RUBBISH)
    assert len({rubbish.name for rubbish in RUBBISH}) == len(RUBBISH)
    counts.update(r.category for r in rubbish_archives.damaged_archives("/outside"))
    fields = len(rubbish_configs.fields())
    counts["overrides"] = fields * len(rubbish_configs.TEXTS)
    counts["values"] = fields * len(rubbish_configs.VALUES)
    counts["normalizers"] = len(rubbish_configs.KWARGS) + len(rubbish_configs.NORMS)
    counts["config files"] = len(rubbish_configs.FILES)
    least = {
        "truncated": 450, "flipped": 600, "header": 200, "mislabelled": 140, "spliced": 60,
        "bomb": 45, "empty": 30, "cut archive": 60, "flipped archive": 200, "archive's fields": 100,
        "hostile names": 60, "hostile archive": 20, "overrides": 1000, "values": 1000,
        "normalizers": 40, "config files": 40,
    }  # fmt: skip
    assert counts.keys() == least.keys()
    assert {category: n for category, n in least.items() if counts[category] < n} == {}
    images_and_archives = sum(list(counts.values())[:12])
    assert images_and_archives > 2000


def test_they_are_the_same_each_time():
    assert list(damaged_images()) == RUBBISH


def test_the_importer_keeps_an_image_or_says_why_not(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_MAX_UNREADABLE", 1)
    before = snapshot(folder.parent)
    made = cache.open_or_build(str(folder), min_side=16, folder=tmp_path / "cache", quiet=True)
    unreadable = made.about["unreadable"]
    keys = {f"{('cat', 'dog')[i % 2]}/{rubbish.name}" for i, rubbish in enumerate(RUBBISH)}
    assert unreadable.keys() | set(made.keys) == keys
    assert len(unreadable) + len(made) == len(keys)
    assert len(unreadable) > 800
    assert all(map(is_reason, unreadable.values()))
    assert min(made.sizes.min(axis=0)) == 16
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert snapshot(folder.parent) == before


def test_too_many_are_an_error_that_names_the_first(folder, tmp_path):
    with pytest.raises(UserError) as raised:
        cache.open_or_build(str(folder), min_side=16, folder=tmp_path / "cache", quiet=True)
    text = str(raised.value)
    assert is_reason(text)
    assert f"of {len(RUBBISH)} images cannot be read" in text
    assert text.partition("the first is ")[2].startswith("cat/")
    assert [path.name for path in (tmp_path / "cache").glob("[!.]*")] == []


def test_the_command_predicts_each_or_says_why_not(folder, run, run_command, tmp_path):
    before = snapshot(folder.parent), snapshot(run)
    output = tmp_path / "out" / "out.csv"
    output.parent.mkdir()
    done = run_command(
        "predict", f"--workdir={run}", f"--images={folder}", f"--output={output}", status=3
    )
    assert "Traceback" not in done.stderr
    with output.open() as file:
        header, *rows = csv.reader(file)
    assert header == ["file", "label", "p_cat", "p_dog"]
    assert len(rows) == len(RUBBISH)
    for _, label, p_cat, p_dog in rows:
        if label in ("cat", "dog"):
            assert float(p_cat) + float(p_dog) == pytest.approx(1, abs=2e-6)
        else:
            assert is_reason(label.removeprefix("unreadable: "))
            assert label.startswith("unreadable: ")
            assert (p_cat, p_dog) == ("", "")
    assert [path.name for path in output.parent.iterdir()] == ["out.csv"]
    assert (snapshot(folder.parent), snapshot(run)) == before


def test_predict_agrees_with_the_importer(folder, run):
    found = files.list_images(str(folder))[::20]
    predictions = list(predict.predict(trained.load(str(run)), found))
    assert [prediction.name for prediction in predictions] == [file.name for file in found]
    for file, prediction in zip(found, predictions, strict=True):
        if prediction.probabilities is None:
            assert why_not(file) in (prediction.error, "")
        else:
            assert why_not(file) == ""


# What is asked for is the most that this process itself held: the other measure, of getrusage,
# begins with that of the process that started it.
IMPORT = """
import os, sys
from pathlib import Path
os.cpu_count = lambda: 8  # so many threads decode
from bn_vgg.data import cache
from bn_vgg.errors import UserError
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))
cache._MAX_UNREADABLE = 1
before = peak()
made = cache.open_or_build(sys.argv[1], min_side=16, folder=Path(sys.argv[2]), quiet=True)
print(len(made), len(made.about["unreadable"]), peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="no /proc to measure with")
def test_memory_is_bounded(tmp_path):
    """The costliest images that are decoded and 256 MiB of zeros a member, on eight threads."""
    place = tmp_path / "bombs"
    for kind in ("cat", "dog"):
        (place / kind).mkdir(parents=True)
    for i, (name, data) in enumerate(largest_images().items()):
        (place / ("cat", "dog")[i % 2] / name).write_bytes(data)
    archive = place / "zeros.zip"
    zeros = bytes(files.MAX_BYTES)
    members = {f"cat/{i}.png": zeros for i in range(2)}
    archive.write_bytes(rubbish_archives.zipped(members | {"dog/1.png": picture()}))
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, f"{place},{archive}", str(tmp_path / "cache")],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made, unreadable, grown = map(int, done.stdout.split())
    print(f"grew by {grown} MiB")
    assert (made, unreadable) == (4, 2)
    assert grown < BOUND_IN_MIB


class Trap:
    """Makes a folder where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("name", ["keys", "sizes", "labels", "splits"])
def test_an_index_is_never_unpickled(cartoon_folder, tmp_path, name):
    def open_it():
        return cache.open_or_build(
            str(cartoon_folder), min_side=16, folder=tmp_path / "cache", quiet=True
        )

    open_it()
    (made,) = (tmp_path / "cache").glob("images-*")
    with np.load(made / "index.npz") as index:
        arrays = dict(index)
    arrays[name] = np.array([Trap(tmp_path / "sprung")] * 72, object)
    np.savez(made / "index.npz", **arrays)
    with pytest.raises(UserError, match="delete that folder") as raised:
        open_it()
    assert str(made) in str(raised.value)
    assert is_reason(str(raised.value))
    assert not (tmp_path / "sprung").exists()
    (made / "about.json").write_text(json.dumps({"class_names": []})[:-3])
    with pytest.raises(UserError, match="delete that folder"):
        open_it()
