"""Which images a spec names, in which order."""

import itertools
import os
import random
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bn_vgg.data import files
from bn_vgg.data.files import list_images
from bn_vgg.data.labelled_files import LabelledFiles
from tests.image_files import KEYS, MICROSOFT, keys, names, picture, write_folder, write_zip


@pytest.mark.parametrize("write", [write_folder, write_zip])
def test_order_is_natural_and_not_the_file_systems(tmp_path, write):
    # 2 and 02 have one value; what follows decides: "jpeg" before "jpg".
    ordered = ["cat.1.jpg", "cat.02.JPEG", "cat.2.jpg", "cat.10.jpg", "sub/a.webp", "sub/B.Tiff"]
    for seed in range(5):
        shuffled = random.Random(seed).sample(ordered, len(ordered))
        path = write(tmp_path / str(seed), dict.fromkeys(shuffled, b"x"))
        assert names(path) == ordered


@given(st.lists(st.integers(0, 10**30), unique=True))
def test_numbers_sort_by_value(numbers):
    texts = sorted((f"cat.{number}.jpg" for number in numbers), key=files.natural_key)
    assert texts == [f"cat.{number}.jpg" for number in sorted(numbers)]


@given(st.lists(st.text(alphabet="aB1²٣0./é", max_size=8), unique=True), st.randoms())
def test_natural_order_is_total(texts, rng):
    shuffled = rng.sample(texts, len(texts))
    assert sorted(texts, key=files.natural_key) == sorted(shuffled, key=files.natural_key)


def test_ties_are_decided_by_the_text():
    tied = ["a.01", "A.1", "a.1"]  # equal but for case and zeros
    for order in itertools.permutations(tied):
        assert sorted(order, key=files.natural_key) == ["A.1", "a.01", "a.1"]


def test_a_number_of_any_length_sorts():
    huge = "9" * 5000  # int() refuses more than 4,300 digits
    assert sorted([huge, "10", "9"], key=files.natural_key) == ["9", "10", huge]


@pytest.mark.parametrize("write", [write_folder, write_zip])
def test_only_visible_images_count(tmp_path, write):
    kept = ["a.BMP", "b.gif", "c/d.png", "c/e.tif", "c/f.Jpeg"]
    ignored = [".DS_Store", "Thumbs.db", "notes.txt", "._a.jpg", ".git/a.png", "c/.d/e.jpg"]
    ignored += ["__MACOSX/a.jpg", "c/__MACOSX/._a.jpg", "jpg", "a.jpg.part"]
    assert names(write(tmp_path / "x", dict.fromkeys(ignored + kept, b"x"))) == kept


def test_a_hidden_folder_can_be_given_itself(tmp_path):
    assert names(write_folder(tmp_path / ".cache" / "x", {"a.png": b"x"})) == ["a.png"]


def test_links(tmp_path):
    folder = write_folder(tmp_path / "x", {"sub/a.png": b"x"})
    (folder / "loop").symlink_to(folder)
    (folder / "sub" / "up").symlink_to(folder)
    (folder / "b.png").symlink_to(folder / "sub" / "a.png")
    (folder / "broken.png").symlink_to(folder / "nothing.png")
    os.mkfifo(folder / "pipe.png")
    assert names(folder) == ["b.png", "sub/a.png"]
    (tmp_path / "link").symlink_to(folder)
    assert names(tmp_path / "link") == ["b.png", "sub/a.png"]


def test_odd_names_in_archives(tmp_path):
    path = write_zip(tmp_path / "x.zip", {"./train/a.png": b"1", "/b.png": b"2", "d.png/": b""})
    with zipfile.ZipFile(path, "a") as archive:
        info = zipfile.ZipInfo("x")
        info.filename = "Cat\\c.png"  # the constructor would change it on Windows alone
        archive.writestr(info, b"3")
    found = {file.name: (file.parent, file.read_bytes()) for file in list_images(str(path))}
    expected = {"train/a.png": ("train", b"1"), "b.png": ("", b"2"), "Cat/c.png": ("Cat", b"3")}
    assert found == expected


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_written_twice_counts_once(tmp_path):
    path = write_zip(tmp_path / "x.zip", {"a.png": b"old"})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("a.png", b"new")
    (only,) = list_images(str(path))
    assert only.read_bytes() == b"new"


def test_names_that_are_no_text_can_be_printed(tmp_path):
    folder = os.fsencode(write_folder(tmp_path / "x", {"Dog/1.png": picture()}))
    os.mkdir(folder + b"/Cat")
    with open(folder + b"/Cat/\xff.png", "wb") as file:
        file.write(picture())
    source = LabelledFiles(os.fsdecode(folder))
    assert keys(source) == ["cat/\\udcff.png", "dog/1.png"]
    assert source.read(0).size == (4, 3)


# --- What a spec names ---


def test_single_images(tmp_path, monkeypatch):
    write_folder(tmp_path, {"b10.png": b"1", "b9.JPG": b"2", "notes.txt": b""})
    assert names(tmp_path / "b9.JPG") == ["b9.JPG"]
    monkeypatch.chdir(tmp_path)
    assert names("b10.png, b9.JPG,") == ["b9.JPG", "b10.png"]
    assert names("*") == ["b9.JPG", "b10.png"]
    assert [file.read_bytes() for file in list_images("b9.JPG,b10.png")] == [b"2", b"1"]


def test_patterns_home_and_commas(tmp_path, monkeypatch):
    for n in range(3):
        write_zip(tmp_path / f"part{n}.zip", {f"{n}.png": b"x"})
    write_folder(tmp_path / "more", {"deep/9.png": b"x"})
    expected = ["0.png", "1.png", "2.png"]
    assert names(tmp_path / "part*.zip") == expected
    assert names(f"{tmp_path}/part[12].zip,{tmp_path}/part0.zip") == expected
    monkeypatch.setenv("HOME", str(tmp_path))
    assert names("~/part*.zip,~/more") == [*expected, "deep/9.png"]
    assert names("~/**/9.png") == ["9.png"]
    assert names("~/m*") == ["deep/9.png"]


def test_a_comma_or_bracket_in_a_path(tmp_path):
    plain = write_zip(tmp_path / "z.zip", {"4.png": b"x"})
    comma = write_zip(tmp_path / "cats, dogs,x.zip", {"1.png": b"x"})
    bracket = write_zip(tmp_path / "part[1]*.zip", {"2.png": b"x"})
    assert names(comma) == ["1.png"]
    assert names(bracket) == ["2.png"]
    assert names(f"{plain},{comma},{bracket}") == ["1.png", "2.png", "4.png"]
    assert names(f"{comma},{plain}") == ["1.png", "4.png"]


def test_what_is_named_twice_is_listed_once(tmp_path):
    folder = write_folder(tmp_path / "x", MICROSOFT)
    archive = write_zip(tmp_path / "a.zip", {"b.png": b"x"})
    (tmp_path / "again.zip").symlink_to(archive)
    assert names(f"{archive},{tmp_path}/*.zip") == ["b.png"]
    cat = folder / "PetImages" / "Cat"
    assert len(names(f"{cat}/0.png,{folder},{cat},{folder}/**")) == 6
    assert keys(LabelledFiles(f"{folder},{cat}")) == keys(LabelledFiles(f"{cat},{folder}")) == KEYS


def test_members_with_absolute_names_stay_apart(tmp_path):
    for name in "ab":
        write_zip(tmp_path / f"{name}.zip", {"/1.png": name})
    assert names(tmp_path / "*.zip") == ["a.zip/1.png", "b.zip/1.png"]


def test_equal_names_are_told_apart(tmp_path):
    for part in ("a/x/t.zip", "b/x/t.zip"):
        write_zip(tmp_path / part, {"1.png": part})
    write_zip(tmp_path / "b/u.zip", {"2.png": b"x"})
    found = {
        f.name: f.read_bytes() for f in list_images(f"{tmp_path}/b/x/t.zip,{tmp_path}/a/x/t.zip")
    }
    assert found == {"a/x/t.zip/1.png": b"a/x/t.zip", "b/x/t.zip/1.png": b"b/x/t.zip"}
    assert names(f"{tmp_path}/b/x/t.zip,{tmp_path}/b/u.zip") == ["1.png", "2.png"]
    write_zip(tmp_path / "b/u.zip", {"1.png": b"x"})
    assert names(f"{tmp_path}/b/x/t.zip,{tmp_path}/b/u.zip") == ["t.zip/1.png", "u.zip/1.png"]
