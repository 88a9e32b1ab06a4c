"""Listing and labelling images in archives and folders, and what goes wrong there."""

import errno
import io
import itertools
import os
import pathlib
import random
import shutil
import time
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from bn_vgg.data import files
from bn_vgg.data.files import list_images
from bn_vgg.data.images import UnreadableImage
from bn_vgg.data.labelled_files import LabelledFiles
from bn_vgg.errors import UserError

SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"


def picture(number=0):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), (number % 256, number // 256 % 256, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def write_zip(path, members, compression=zipfile.ZIP_STORED):
    """Writes `members`, a mapping of names to contents, in its order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def write_folder(path, members):
    for name, data in members.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def names(spec):
    return [file.name for file in list_images(str(spec))]


def keys(source):
    return [record.key for record in source.records]


def message(call, spec):
    with pytest.raises(UserError) as caught:
        call(str(spec))
    text = str(caught.value)
    assert "\n" not in text
    return text


def why(file):
    with pytest.raises(UnreadableImage) as caught:
        file.read_bytes()
    text = str(caught.value)
    assert text
    assert "\n" not in text
    return text


KAGGLE = {f"train/{kind}.{n}.png": picture(n) for n in (0, 2, 10) for kind in ("dog", "cat")}
MICROSOFT = {f"PetImages/{k}/{n}.png": picture(n) for n in (0, 2, 10) for k in ("Dog", "Cat")}
KEYS = ["cat/0.png", "cat/2.png", "cat/10.png", "dog/0.png", "dog/2.png", "dog/10.png"]


# --- Listing ---


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


# --- Labels, keys, fingerprints ---


def layouts(root):
    """Returns one spec for each way to hold the same six images."""
    classes = {name.removeprefix("PetImages/"): data for name, data in MICROSOFT.items()}
    halves = [dict(list(KAGGLE.items())[half::2]) for half in (0, 1)]
    write_zip(root / "part1of2.zip", halves[0])
    write_zip(root / "part2of2.zip", halves[1])
    folder = write_folder(root / "classes", classes)
    upper = {name.replace("cat", "CAT"): data for name, data in KAGGLE.items()}
    return {
        "kaggle zip": write_zip(root / "kaggle.zip", KAGGLE),
        "kaggle folder": write_folder(root / "kaggle", KAGGLE),
        "kaggle root": write_zip(root / "flat.zip", {n[6:]: d for n, d in KAGGLE.items()}),
        "kaggle case": write_zip(root / "case.zip", upper),
        "parts": f"{root}/part*of2.zip",
        "microsoft zip": write_zip(root / "microsoft.zip", MICROSOFT, zipfile.ZIP_DEFLATED),
        "microsoft folder": write_folder(root / "microsoft", MICROSOFT),
        "classes": folder,
        "one path each": f"{folder}/Dog,{folder}/Cat",
    }


def test_every_layout_gives_the_same_records(tmp_path):
    for layout, spec in layouts(tmp_path).items():
        source = LabelledFiles(str(spec))
        assert source.class_names == ("cat", "dog"), layout
        assert keys(source) == KEYS, layout
        assert [record.label for record in source.records] == [0, 0, 0, 1, 1, 1], layout
        assert {record.split for record in source.records} == {""}
        reds = [np.asarray(source.read(index))[0, 0, 0] for index in range(6)]
        assert reds == [0, 2, 10, 0, 2, 10], layout
        assert source.description == str(spec)


def test_archives_of_the_same_images_have_one_fingerprint(tmp_path):
    specs = layouts(tmp_path)
    same = ["kaggle zip", "kaggle root", "kaggle case", "parts", "microsoft zip"]
    prints = {LabelledFiles(str(specs[layout])).fingerprint for layout in same}
    parts = [tmp_path / "part1of2.zip", tmp_path / "part2of2.zip"]
    prints.add(LabelledFiles(f"{parts[0]},{parts[1]}").fingerprint)
    prints.add(LabelledFiles(f"{parts[1]},{parts[0]}").fingerprint)
    moved = shutil.move(tmp_path / "kaggle.zip", write_folder(tmp_path / "m", {"x": b""}) / "n.zip")
    prints.add(LabelledFiles(str(moved)).fingerprint)
    assert len(prints) == 1
    assert set(prints.pop()) <= set("0123456789abcdef")


def test_the_fingerprint_follows_the_content(tmp_path):
    def fingerprint(members):
        return LabelledFiles(str(write_zip(tmp_path / "x.zip", members))).fingerprint

    renamed = {name.replace("cat.10", "cat.11"): data for name, data in KAGGLE.items()}
    relabelled = {name.replace("cat.10", "dog.11"): data for name, data in KAGGLE.items()}
    changed = KAGGLE | {"train/cat.2.png": KAGGLE["train/cat.2.png"][:-1] + b"!"}  # same size
    fewer = {name: data for name, data in KAGGLE.items() if "cat.10" not in name}
    contents = [KAGGLE, renamed, relabelled, changed, fewer]
    assert len({fingerprint(members) for members in contents}) == 5
    assert fingerprint(dict(reversed(KAGGLE.items()))) == fingerprint(KAGGLE)
    assert fingerprint(KAGGLE | {"train/notes.txt": b"x"}) == fingerprint(KAGGLE)


def test_the_fingerprint_of_a_folder(tmp_path):
    folder = write_folder(tmp_path / "x", MICROSOFT)
    before = LabelledFiles(str(folder)).fingerprint
    folder = folder.rename(tmp_path / "y")
    assert LabelledFiles(str(folder)).fingerprint == before
    file = folder / "PetImages" / "Cat" / "2.png"
    written = file.stat().st_mtime_ns
    os.utime(file, ns=(0, written + 1))
    touched = LabelledFiles(str(folder)).fingerprint
    file.write_bytes(file.read_bytes() + b"!")
    os.utime(file, ns=(0, written))
    grown = LabelledFiles(str(folder)).fingerprint
    assert len({before, touched, grown}) == 3


def test_equal_keys_get_the_files_name_added(tmp_path):
    sets = {f"{part}/{kind}/1.png": picture() for part in "ba" for kind in ("dog", "cat")}
    expected = ["cat/1.png", "cat/1.png@b/cat/1.png", "dog/1.png", "dog/1.png@b/dog/1.png"]
    assert keys(LabelledFiles(str(write_zip(tmp_path / "sets.zip", sets)))) == expected
    assert keys(LabelledFiles(str(write_folder(tmp_path / "sets", sets)))) == expected

    one, two = (write_zip(tmp_path / f"{name}.zip", KAGGLE) for name in ("one", "two"))
    both = LabelledFiles(f"{two},{one}")
    assert keys(both)[:2] == ["cat/0.png", "cat/0.png@two.zip/train/cat.0.png"]
    assert len(set(keys(both))) == 12
    assert both.fingerprint == LabelledFiles(f"{one},{two}").fingerprint


def test_other_classes_and_more_of_them(tmp_path):
    members = {f"{name}/cat.1.png": picture() for name in ("beagle", "Abyssinian", "zebra")}
    members["zebra/unlike kaggle.png"] = picture()
    source = LabelledFiles(str(write_folder(tmp_path, members)))
    assert source.class_names == ("abyssinian", "beagle", "zebra")
    assert keys(source)[0] == "abyssinian/cat.1.png"
    assert [record.label for record in source.records] == [0, 1, 2, 2]


# --- What goes wrong ---


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


# --- Reading ---


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


def directory_field(path, offset, value):
    """Overwrites a field of the first member's entry in the archive's central directory."""
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\1\2") + offset
    data[at : at + len(value)] = value
    path.write_bytes(data)


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
