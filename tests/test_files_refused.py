"""Files that cannot be used: what is said of them."""

import errno
import os
import zipfile

import pytest

from bn_vgg.data.files import list_images
from bn_vgg.data.labelled_files import LabelledFiles
from tests.image_files import KAGGLE, directory_field, message, names, write_folder, write_zip


def test_paths_that_lead_nowhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = message(list_images, "nowhere.zip")
    assert "'nowhere.zip' does not exist" in text
    assert repr(str(tmp_path)) in text
    real = write_zip(tmp_path / "a.zip", {"a.png": b"x"})
    assert "'b.zip' does not exist" in message(list_images, f"{real},b.zip")
    assert "does not exist" in message(list_images, real / "inside.png")
    assert "'*.tar' matches nothing" in message(list_images, "*.tar")
    (tmp_path / "x.tar").touch()
    assert "'*.tar' matches no folder, zip archive or image" in message(list_images, "*.tar")
    assert "matches nothing" in message(list_images, "a\0*")
    assert "cannot read" in message(list_images, "a\0.zip")
    assert "too long" in message(list_images, "a" * 5000)
    for nothing in ("", " , ,"):
        assert "no images given" in message(list_images, nothing)


def test_what_is_neither_file_nor_folder(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    assert "neither a file nor a folder" in message(list_images, tmp_path / "pipe")


@pytest.mark.parametrize("function", ["scandir", "stat"])
def test_no_permission(tmp_path, monkeypatch, function):
    folder = write_folder(tmp_path / "x", {"a.png": b"x"})

    def refuse(path, *args, **kwargs):  # the tests may run as root, whom no mode keeps out
        raise PermissionError(errno.EACCES, "Permission denied", path)

    with monkeypatch.context() as patch:
        patch.setattr(os, function, refuse)
        patch.setattr(os.path, "exists", lambda path: True)
        text = message(list_images, folder)
    assert f"no permission to read '{folder}" in text


def test_no_permission_for_an_archive(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "x.zip", {"a.png": b"x"})

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(zipfile, "ZipFile", refuse)
    assert f"no permission to read '{path}'" in message(list_images, path)


def test_archives_that_are_none(tmp_path):
    whole = write_zip(tmp_path / "whole.zip", KAGGLE).read_bytes()
    (tmp_path / "short.zip").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "page.zip").write_bytes(b"<html>log in</html>")
    (tmp_path / "nothing.zip").touch()
    for name in ("short.zip", "page.zip", "nothing.zip"):
        text = message(list_images, tmp_path / name)
        assert f"{tmp_path / name}' is not a complete zip archive" in text
        assert "again" in text
    future = write_zip(tmp_path / "future.zip", KAGGLE)
    directory_field(future, 6, b"\x63\0")  # the version needed: zipfile has no word for it
    assert "not a complete zip archive (zip file version 9.9)" in message(list_images, future)
    text = message(list_images, write_folder(tmp_path, {"x.tar": b"x"}) / "x.tar")
    assert "x.tar' is not a folder, zip archive or image" in text
    assert ".jpg, .jpeg, .png" in text


def test_places_without_images(tmp_path):
    for path in (
        write_zip(tmp_path / "empty.zip", {}),
        write_zip(tmp_path / "notes.zip", {"notes.txt": b"x"}),
        write_folder(tmp_path / "notes", {"notes.txt": b"x"}),
    ):
        assert f"'{path}' holds no images: their names end in .jpg" in message(list_images, path)


def test_archives_within(tmp_path):
    inner = write_zip(tmp_path / "in" / "train.zip", KAGGLE).read_bytes()
    outer = write_zip(tmp_path / "dogs.zip", {"test1.zip": inner, "train.zip": inner, "x.csv": b""})
    text = message(LabelledFiles, outer)
    assert "(test1.zip, train.zip)" in text
    assert "unzip it once" in text
    text = message(LabelledFiles, tmp_path / "in")
    assert "(train.zip)" in text
    assert f"give '{tmp_path}/in/*.zip'" in text
    assert len(LabelledFiles(f"{tmp_path}/in/*.zip").records) == 6


def test_one_class_or_none(tmp_path):
    cats = {name: data for name, data in KAGGLE.items() if "cat" in name}
    text = message(LabelledFiles, write_zip(tmp_path / "cats.zip", cats))
    assert "cats.zip' holds only one class, 'cat'" in text
    assert "cat.1.jpg, dog.1.jpg" in text
    assert "folder" in text
    test = write_zip(tmp_path / "test1.zip", {"test1/1.png": b"x", "test1/2.png": b"x"})
    assert "only one class, 'test1'" in message(LabelledFiles, test)
    root = write_zip(tmp_path / "root.zip", {"1.png": b"x", "2.png": b"x"})
    text = message(LabelledFiles, root)
    assert "nothing says what '1.png'" in text
    assert "root.zip" in text
    assert names(root) == ["1.png", "2.png"]  # without labels they are as good as any


def test_labelled_and_unlabelled_images_together(tmp_path):
    write_zip(tmp_path / "train.zip", KAGGLE)
    write_zip(tmp_path / "test1.zip", {"test1/1.png": b"x", "test1/2.png": b"x"})
    text = message(LabelledFiles, tmp_path / "*.zip")
    assert "'cat.0.png'" in text
    assert "'test1/1.png'" in text
    assert "only one kind" in text
