"""Reading images from files, damaged ones too."""

import pathlib
import time
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bn_vgg.data import files
from bn_vgg.data.files import list_images
from bn_vgg.data.images import UnreadableImage
from bn_vgg.data.labelled_files import LabelledFiles
from bn_vgg.errors import UserError
from tests.image_files import KAGGLE, directory_field, keys, why, write_folder, write_zip

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"


def test_bytes_from_a_folder(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "x", {"a.png": b"123", "b.png": b"1"})
    a, b = list_images(str(folder))
    assert a.read_bytes() == b"123"
    (folder / "b.png").unlink()
    assert "No such file" in why(b)
    monkeypatch.setattr(files, "MAX_BYTES", 3)
    assert a.read_bytes() == b"123"
    (folder / "a.png").write_bytes(b"1234")
    assert "more than 3" in why(a)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_member_is_unreadable(tmp_path, compression):
    content = {"a.png": bytes(range(256)) * 4, "b.png": b"sound"}
    path = write_zip(tmp_path / "x.zip", content, compression)
    data = bytearray(path.read_bytes())
    data[60] ^= 1  # within the first member's data, which starts at 30 + len("a.png")
    path.write_bytes(data)
    a, b = list_images(str(path))
    why(a)
    assert b.read_bytes() == b"sound"


def test_a_crc_error_is_named(tmp_path):
    path = write_zip(tmp_path / "x.zip", {"a.png": b"content"})
    path.write_bytes(path.read_bytes().replace(b"content", b"CONTENT"))
    assert "Bad CRC-32" in why(list_images(str(path))[0])


def test_an_encrypted_member_is_unreadable(tmp_path):
    path = write_zip(tmp_path / "x.zip", {"a.png": b"x"})
    directory_field(path, 8, b"\1\0")
    assert "encrypted" in why(list_images(str(path))[0])


def test_large_members_are_not_unpacked(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "x.zip", {"a.png": bytes(1001)}, zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(files, "MAX_BYTES", 1000)
    assert "1,001 bytes: more than 1,000" in why(list_images(str(path))[0])


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_a_bomb_with_a_false_size_stays_small(tmp_path, compression):
    path = write_zip(tmp_path / "x.zip", {"a.png": bytes(40_000_000)}, compression)
    directory_field(path, 24, (100).to_bytes(4, "little"))
    (bomb,) = list_images(str(path))
    assert bomb.size == 100
    tracemalloc.start()
    try:
        text = why(bomb)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000
    assert ("CRC" if compression == zipfile.ZIP_DEFLATED else "compressed") in text


def test_threads_read_what_one_reads(tmp_path):
    rng = np.random.default_rng(0)
    members = {f"{n}.png": rng.bytes(int(rng.integers(1, 20_000))) for n in range(200)}
    path = write_zip(tmp_path / "x.zip", members, zipfile.ZIP_DEFLATED)
    found = list_images(str(path))
    with ThreadPoolExecutor(8) as pool:
        parallel = list(pool.map(lambda file: file.read_bytes(), found * 3))
    assert parallel == [members[file.name] for file in found] * 3


def test_an_image_that_does_not_decode(tmp_path):
    path = write_zip(tmp_path / "x.zip", KAGGLE | {"train/cat.2.png": b"<html>"})
    source = LabelledFiles(str(path))
    assert source.read(0).size == (4, 3)
    with pytest.raises(UnreadableImage, match="not a JPEG"):
        source.read(1)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    patches=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=4)), max_size=5),
    keep=st.floats(0.5, 1),
)
def test_a_damaged_archive_raises_nothing_else(tmp_path, patches, keep):
    data = bytearray(write_zip(tmp_path / "x.zip", KAGGLE, zipfile.ZIP_DEFLATED).read_bytes())
    for where, patch in patches:
        start = round(where * (len(data) - len(patch)))
        data[start : start + len(patch)] = patch
    (tmp_path / "x.zip").write_bytes(data[: round(keep * len(data))])
    try:
        found = list_images(str(tmp_path / "x.zip"))
    except UserError as error:
        found, text = [], str(error)
        assert "\n" not in text
    for file in found:
        try:
            file.read_bytes()
        except UnreadableImage as error:
            text = str(error)
            assert "\n" not in text


# --- The real images, where they are ---


def test_25000_images_list_in_a_moment():
    spec = SHARED / "dogs_vs_cats_200px.part*of4.zip"
    if len(list(SHARED.glob(spec.name))) < 4:
        pytest.skip(f"no {spec}")
    started = time.process_time()
    source = LabelledFiles(str(spec))
    seconds = time.process_time() - started
    assert len(source.records) == 25_000
    assert [record.label for record in source.records] == [0] * 12_500 + [1] * 12_500
    assert keys(source)[12_498:12_501] == ["cat/12498.jpg", "cat/12499.jpg", "dog/0.jpg"]
    assert source.read(24_999).size == (200, 200)
    assert seconds < 5  # 0.5 on one core of the machine this was written on


def test_originals():
    path = SHARED / "dogs_vs_cats_originals_sample.zip"
    if not path.exists():
        pytest.skip(f"no {path}")
    source = LabelledFiles(str(path))
    assert len(source.records) == 400
    sizes = [source.read(index).size for index in range(0, 400, 10)]
    assert min(min(size) for size in sizes) >= 80
    assert max(max(size) for size in sizes) <= 500
