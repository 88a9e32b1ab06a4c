"""Labels, keys and fingerprints of images in files."""

import os
import shutil
import zipfile

import numpy as np

from bn_vgg.data.labelled_files import LabelledFiles
from tests.image_files import KAGGLE, KEYS, MICROSOFT, keys, picture, write_folder, write_zip


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
