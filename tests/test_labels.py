"""Labels, keys and fingerprints of images in files."""

import os
import shutil
import zipfile

import numpy as np
import pytest

from bn_vgg.data.labels import labelled_files
from bn_vgg.errors import UserError
from tests.conftest import SHARED
from tests.image_files import KAGGLE, KEYS, MICROSOFT, keys, picture, write_folder, write_zip


def layouts(root):
    """Returns one spec for each way to hold the same six images."""
    classes = {name.removeprefix("PetImages/"): data for name, data in MICROSOFT.items()}
    both = {f"train/{n[6:9]}s/{n[6:]}": data for n, data in KAGGLE.items()}
    for half in (0, 1):
        write_zip(root / f"part{half}of2.zip", dict(list(KAGGLE.items())[half::2]))
    folder = write_folder(root / "classes", classes)
    (root / "links").mkdir()
    (root / "links" / "cat").symlink_to(folder / "Cat")
    (root / "links" / "dog").symlink_to(folder / "Dog")
    return {
        "kaggle zip": write_zip(root / "kaggle.zip", KAGGLE),
        "kaggle root": write_zip(root / "flat.zip", {n[6:]: d for n, d in KAGGLE.items()}),
        "parts": f"{root}/part*of2.zip",
        "microsoft zip": write_zip(root / "microsoft.zip", MICROSOFT, zipfile.ZIP_DEFLATED),
        "kaggle folder": write_folder(root / "kaggle", KAGGLE),
        "split": write_folder(root / "split", {n.replace("train/dog", "val/dog"): d
                                               for n, d in KAGGLE.items()}),
        "names and folders agree": write_folder(root / "agree", both),
        "microsoft folder": write_folder(root / "microsoft", MICROSOFT),
        "classes": folder,
        "linked classes": root / "links",
        "one path each": f"{folder}/Dog,{folder}/Cat",
    }  # fmt: skip


def test_every_layout_gives_the_same_records(tmp_path, capsys):
    prints = {}
    for layout, spec in layouts(tmp_path).items():
        source = labelled_files(str(spec))
        assert source.class_names == ("cat", "dog"), layout
        assert keys(source) == KEYS, layout
        assert [record.label for record in source.records] == [0, 0, 0, 1, 1, 1], layout
        reds = [np.asarray(read())[0, 0, 0] for read in source.readers()]
        assert reds == [0, 2, 10, 0, 2, 10], layout
        prints[layout] = source.fingerprint
    archives = ("kaggle zip", "kaggle root", "parts", "microsoft zip")
    assert len({prints[layout] for layout in archives}) == 1
    moved = shutil.move(tmp_path / "kaggle.zip", tmp_path / "moved.zip")
    assert labelled_files(str(moved)).fingerprint == prints["kaggle zip"]
    assert capsys.readouterr().err == ""


def test_the_fingerprint_follows_the_content(tmp_path):
    def fingerprint(members):
        return labelled_files(str(write_zip(tmp_path / "x.zip", members))).fingerprint

    renamed = {name.replace("cat.10", "cat.11"): data for name, data in KAGGLE.items()}
    relabelled = {name.replace("cat.10", "dog.11"): data for name, data in KAGGLE.items()}
    changed = KAGGLE | {"train/cat.2.png": KAGGLE["train/cat.2.png"][:-1] + b"!"}  # same size
    fewer = {name: data for name, data in KAGGLE.items() if "cat.10" not in name}
    contents = [KAGGLE, renamed, relabelled, changed, fewer]
    assert len({fingerprint(members) for members in contents}) == 5
    assert fingerprint(dict(reversed(KAGGLE.items()))) == fingerprint(KAGGLE)

    folder = write_folder(tmp_path / "x", MICROSOFT)
    before = labelled_files(str(folder)).fingerprint
    folder = folder.rename(tmp_path / "y")
    assert labelled_files(str(folder)).fingerprint == before
    os.utime(folder / "PetImages" / "Cat" / "2.png", ns=(0, 1))
    assert labelled_files(str(folder)).fingerprint != before


def test_equal_keys_get_the_files_name_added(tmp_path):
    sets = {f"{part}/{kind}/1.png": picture() for part in "ba" for kind in ("dog", "cat")}
    expected = ["cat/1.png", "cat/1.png@b/cat/1.png", "dog/1.png", "dog/1.png@b/dog/1.png"]
    assert keys(labelled_files(str(write_zip(tmp_path / "sets.zip", sets)))) == expected
    one, two = (write_zip(tmp_path / f"{name}.zip", KAGGLE) for name in ("one", "two"))
    both = labelled_files(f"{two},{one}")
    assert keys(both)[:2] == ["cat/0.png", "cat/0.png@two.zip/train/cat.0.png"]
    assert len(set(keys(both))) == 12
    assert both.fingerprint == labelled_files(f"{one},{two}").fingerprint


def test_an_at_sign_in_a_name_is_no_copys(tmp_path):
    """The part before a key's `@` decides the split."""
    paths = [f"{name}/frame@{i}.png" for name in ("cat", "dog") for i in range(9)]
    source = labelled_files(str(write_folder(tmp_path / "x", dict.fromkeys(paths, b"x"))))
    assert len({key.partition("@")[0] for key in keys(source)}) == 18


def test_names_that_are_no_text_can_be_hashed(tmp_path):
    folder = os.fsencode(write_folder(tmp_path / "x", {"Dog/1.png": picture()}))
    os.mkdir(folder + b"/Cat")
    with open(folder + b"/Cat/\xff.png", "wb") as file:
        file.write(picture())
    assert keys(labelled_files(os.fsdecode(folder))) == ["cat/\\udcff.png", "dog/1.png"]


def opened(folder, paths):
    return labelled_files(str(write_folder(folder / "x", dict.fromkeys(paths, picture()))))


@pytest.mark.parametrize(
    ("paths", "classes"),
    [
        (["b/img.1.jpg", "A/img.2.jpg", "c/img.3.jpg"], ("a", "b", "c")),  # one class by name
        (["a/cat.1.jpg", "b/dog 1.jpg", "b/dog.2.jpg"], ("a", "b")),  # not all like Kaggle's
        (["bus/1.jpg", "train/1.jpg"], ("bus", "train")),  # a vehicle, not a split
    ],
)
def test_folders_are_the_classes_where_names_make_none(tmp_path, paths, classes):
    assert opened(tmp_path, paths).class_names == classes


@pytest.mark.parametrize(
    ("paths", "by_name", "by_folder"),
    [
        ([f"{f}s/cam{n}.000{n}.jpg" for f in ("cat", "dog") for n in (1, 2)], "cam1, cam2",
         "cats, dogs"),
        (["cats/cat.1.jpg", "cats/dog.2.jpg", "dogs/dog.1.jpg"], "cat, dog", "cats, dogs"),
        (["a/cat.1.jpg", "a/dog.1.jpg", "b/x.jpg", "b/y.jpg"], "cat, dog", "a, b"),
        (["train/cat.1.jpg", "train/dog.1.jpg", "more/x.jpg"], "cat, dog", "more, train"),
    ],
)  # fmt: skip
def test_names_and_folders_that_disagree_are_refused(tmp_path, paths, by_name, by_folder):
    message = rf"by file names: {by_name}[; ].*by folders: {by_folder}; .*they must agree"
    with pytest.raises(UserError, match=message):
        opened(tmp_path, paths)


def test_unlabelled_images_are_left_out_and_named(tmp_path, capsys):
    kaggle = [f"train/{kind}.{n}.jpg" for kind in ("cat", "dog") for n in range(1, 11)]
    tests = [f"test1/{n}.jpg" for n in range(1, 31)]
    source = opened(tmp_path, [*kaggle, *tests])
    assert source.class_names == ("cat", "dog")
    assert keys(source) == [f"{kind}/{n}.jpg" for kind in ("cat", "dog") for n in range(1, 11)]
    message = f"{tmp_path}/x: left out 30 images without labels, such as 'test1/1.jpg'\n"
    assert capsys.readouterr().err == message
    source = opened(tmp_path / "folders", ["Cat/1.jpg", "Dog/2.jpg", "test/3.jpg"])
    assert keys(source) == ["cat/1.jpg", "dog/2.jpg"]
    assert "left out 1 images without labels, such as 'test/3.jpg'" in capsys.readouterr().err
    for test in ("test/all/3.jpg", "test_set/3.jpg"):  # the last folder is no third class
        source = opened(tmp_path / test, ["train/Cat/1.jpg", "train/Dog/2.jpg", test])
        assert keys(source) == ["cat/1.jpg", "dog/2.jpg"]
        assert f"without labels, such as '{test}'" in capsys.readouterr().err
    labelled = ["train/cat/1.jpg", "train/dog/2.jpg", "test/cat/3.jpg", "test/dog/4.jpg"]
    assert len(keys(opened(tmp_path / "labelled", labelled))) == 4
    assert opened(tmp_path / "alone", labelled[2:]).class_names == ("cat", "dog")


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["train/1.jpg", "train/2.jpg", "test/3.jpg"], r"names: none; by folders: train;"),
        (["t/cat.1.jpg", "t/dog.1.jpg", "t/3.jpg"], r"'t/3.jpg' has no label; .*cat, dog;"),
        (["t/cat.1.jpg", "t/cat.2.jpg"], r"names: cat; by folders: t;"),
        (["test1/1.jpg", "test1/2.jpg"], r"names: none; by folders: none;"),
        (["train/1.jpg", "valid/2.jpg"], r"by folders: train, valid;"),
    ],
)  # fmt: skip
def test_what_has_no_two_classes_is_refused(tmp_path, paths, message):
    with pytest.raises(UserError, match=message):
        opened(tmp_path, paths)


def test_a_stray_at_an_archives_root_is_named(tmp_path):
    path = write_zip(tmp_path / "x.zip", MICROSOFT | {"1.png": b"x"})
    with pytest.raises(UserError, match=r"'1.png' has no label; .*by folders: cat, dog;"):
        labelled_files(str(path))


def test_25000_images():
    spec = SHARED / "data" / "dogs_vs_cats_200px.part*of4.zip"
    if len(list(spec.parent.glob(spec.name))) < 4:
        pytest.skip(f"no {spec}")
    source = labelled_files(str(spec))
    assert [record.label for record in source.records] == [0] * 12_500 + [1] * 12_500
    assert keys(source)[12_498:12_501] == ["cat/12498.jpg", "cat/12499.jpg", "dog/0.jpg"]
    assert next(iter(source.readers()))().size == (200, 200)
    # Part of the name of every cache that was made from them.
    assert source.fingerprint == "5523b60efd86efbd6136f99aa200d105"
