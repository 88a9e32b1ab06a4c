"""Which images a spec names, in which order, and what is said of files that cannot be used."""

import errno
import os
import random
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bn_vgg.data import files
from bn_vgg.data.files import list_images
from bn_vgg.data.images import UnreadableImage
from bn_vgg.errors import UserError
from tests.image_files import KAGGLE, names, picture, write_folder, write_zip


@pytest.mark.parametrize("write", [write_folder, write_zip])
def test_order_is_natural_and_not_the_file_systems(tmp_path, write):
    # 2 and 02 have one value; what follows decides: "jpeg" before "jpg".
    ordered = ["cat.1.jpg", "cat.02.JPEG", "cat.2.jpg", "cat.10.jpg", "sub/a.webp", "sub/B.Tiff"]
    for seed in range(5):
        shuffled = random.Random(seed).sample(ordered, len(ordered))
        assert names(write(tmp_path / str(seed), dict.fromkeys(shuffled, b"x"))) == ordered
    huge = "9" * 5000  # int() refuses more than 4,300 digits
    assert sorted([huge, "10", "9"], key=files.natural_key) == ["9", "10", huge]


@pytest.mark.parametrize("write", [write_folder, write_zip])
def test_only_visible_images_count(tmp_path, write):
    kept = ["a.BMP", "b.gif", "c/d.png", "c/e.tif", "c/f.Jpeg", "c/g.jfif"]
    ignored = [".DS_Store", "Thumbs.db", "notes.txt", "._a.jpg", ".git/a.png", "c/.d/e.jpg"]
    ignored += ["__MACOSX/a.jpg", "c/__MACOSX/._a.jpg", "jpg", "a.jpg.part", "more.zip"]
    ignored += ["@eaDir/a.jpg", ".@__thumb/a.jpg", "c/@eaDir/b/c.jpg"]
    assert names(write(tmp_path / "x", dict.fromkeys(ignored + kept, b"x"))) == kept


def test_linked_folders_are_followed_each_once(tmp_path):
    folder = write_folder(tmp_path / "pets", {"cat/1.png": b"x", "cat/2.png": b"x"})
    dogs = write_folder(tmp_path / "elsewhere" / "photos", {"3.png": b"x", "4.png": b"x"})
    (folder / "a dog").symlink_to(dogs)
    (folder / "z dog").symlink_to(dogs)
    (folder / "loop").symlink_to(folder)
    (dogs / "up").symlink_to(folder)
    (folder / "5.png").symlink_to(dogs / "3.png")
    assert names(folder) == ["5.png", "a dog/3.png", "a dog/4.png", "cat/1.png", "cat/2.png"]
    assert [file.parent for file in list_images(str(folder))][1] == "a dog"
    (tmp_path / "link").symlink_to(folder)
    assert names(tmp_path / "link") == names(folder)
    (folder / "Bird").symlink_to(tmp_path / "disk that is not mounted")
    with pytest.raises(UserError, match=r"pets/Bird' does not exist, or links to nothing"):
        list_images(str(folder))


def test_odd_names_in_archives(tmp_path):
    path = write_zip(tmp_path / "x.zip", {"./train/a.png": b"1", "/b.png": b"2", "d.png/": b""})
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("x")
        info.filename = "Cat\\c.png"  # the constructor would change it on Windows alone
        archive.writestr(info, b"3")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("/b.png", b"4")
    found = {file.name: (file.parent, file.read()) for file in list_images(str(path))}
    assert found == {
        "train/a.png": ("train", b"1"),
        "b.png": ("", b"4"),
        "Cat/c.png": ("Cat", b"3"),
    }


def test_what_a_spec_names(tmp_path, monkeypatch):
    for n in range(3):
        write_zip(tmp_path / f"part{n}.zip", {f"{n}.png": b"x"})
    write_folder(tmp_path / "more", {"deep/9.png": b"x", "8.JPG": b"x", "notes.txt": b""})
    comma = write_zip(tmp_path / "cats, dogs [1]*.zip", {"7.png": b"x"})
    parts = ["0.png", "1.png", "2.png"]
    assert names(tmp_path / "part*.zip") == parts
    assert names(f"{tmp_path}/part[12].zip, {tmp_path}/part0.zip,") == parts
    assert names(comma) == ["7.png"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert names("~/part*.zip,~/more") == [*parts, "8.JPG", "deep/9.png"]
    assert names("~/**/9.png") == ["9.png"]
    monkeypatch.chdir(tmp_path / "more")
    assert names("*") == ["8.JPG", "9.png"]
    (tmp_path / "again.zip").symlink_to(tmp_path / "part0.zip")
    assert names(f"{tmp_path}/part0.zip,{tmp_path}/again.zip") == ["0.png"]
    assert names("../more,../more/**") == ["8.JPG", "deep/9.png"]
    write_folder(tmp_path / "cats, dogs", {"6.png": b"x"})
    assert names(f"{tmp_path}/cats, dogs/*.png") == ["6.png"]


def test_equal_names_are_told_apart(tmp_path):
    for part in ("a/x/t.zip", "b/x/t.zip", "b/x/u.zip"):
        write_zip(tmp_path / part, {"1.png": part})
    both = list_images(f"{tmp_path}/b/x/t.zip,{tmp_path}/a/x/t.zip")
    assert {file.name: file.read() for file in both} == {
        "a/x/t.zip/1.png": b"a/x/t.zip", "b/x/t.zip/1.png": b"b/x/t.zip",
    }  # fmt: skip
    assert names(tmp_path / "b" / "x" / "*.zip") == ["t.zip/1.png", "u.zip/1.png"]


def refused(spec):
    with pytest.raises(UserError) as caught:
        list_images(str(spec))
    return str(caught.value)


def test_what_cannot_be_listed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = write_zip(tmp_path / "whole.zip", KAGGLE).read_bytes()
    (tmp_path / "short.zip").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "x.tar").touch()
    for path in ("nowhere.zip", "./nowhere", "nowhere.png", "whole.zip/1.png"):
        assert f"{path!r} does not exist" in refused(path)
        assert repr(str(tmp_path)) in refused(f"whole.zip,{path}")
    assert "'*.tar' matches no folder, zip archive or image" in refused("*.tar")
    # "null byte" or, from Python 3.13 on, "null character".
    assert "embedded null" in refused("a\0.zip")
    assert "no images given" in refused(" , ,")
    assert "'short.zip' is not a folder, an image or a complete zip archive" in refused("short.zip")
    assert "'x.tar' is not a folder, an image or a complete zip archive" in refused("x.tar")
    nested = {"test1.zip": whole, "train.zip": whole, "notes.txt": b"x"}
    for path in (write_zip(tmp_path / "all.zip", nested), write_folder(tmp_path / "all", nested)):
        assert f"'{path}' holds no images, whose names end in .jpg" in refused(path)
        assert "unzip nested archives" in refused(path)


@pytest.mark.parametrize(
    ("write", "module", "opens"), [(write_folder, os, "scandir"), (write_zip, zipfile, "ZipFile")]
)
def test_a_missing_permission_is_called_so(tmp_path, monkeypatch, write, module, opens):
    def refuse(path, *args, **kwargs):  # the tests may run as root, whom no mode keeps out
        raise PermissionError(errno.EACCES, "Permission denied", path)

    path = write(tmp_path / "x", KAGGLE)
    with monkeypatch.context() as patch:
        patch.setattr(module, opens, refuse)
        text = refused(path)
    assert f"this user may not read '{path}'" in text


def test_unreadable_files_say_why(tmp_path, monkeypatch):
    members = {f"{n}.png": picture(n) for n in range(3)}
    path = write_zip(tmp_path / "x.zip", members)
    path.write_bytes(path.read_bytes().replace(members["1.png"], members["1.png"][::-1]))
    folder = write_folder(tmp_path / "x", members | {"4.png": b"<html>"})
    found = list_images(f"{path},{folder}")
    (folder / "2.png").unlink()
    monkeypatch.setattr(files, "MAX_BYTES", found[0].size)
    (folder / "0.png").write_bytes(bytes(found[0].size))
    reasons = {}
    for file in found:
        try:
            assert file.decode().size == (4, 3)
        except UnreadableImage as error:
            reasons[file.name] = str(error)
    assert reasons.keys() == {"x.zip/1.png", "x/0.png", "x/2.png", "x/4.png"}
    assert "Bad CRC-32" in reasons["x.zip/1.png"]
    assert "No such file" in reasons["x/2.png"]
    assert "not a JPEG" in reasons["x/4.png"]
    monkeypatch.setattr(files, "MAX_BYTES", 50)
    with pytest.raises(UnreadableImage, match="bytes: more than 50"):
        found[0].decode()


def test_threads_read_what_one_reads(tmp_path):
    rng = np.random.default_rng(0)
    members = {f"{n}.png": rng.bytes(int(rng.integers(1, 20_000))) for n in range(200)}
    found = list_images(str(write_zip(tmp_path / "x.zip", members, zipfile.ZIP_DEFLATED)))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda f: f.read(), found * 3)) == [members[f.name] for f in found] * 3
