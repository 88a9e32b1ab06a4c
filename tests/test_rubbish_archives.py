"""Damaged and hostile archives and folders: what they hold, or one line, and nothing written."""

import pytest

from bn_vgg import launch
from bn_vgg.data import cache, files
from bn_vgg.errors import UserError
from tests.image_files import write_zip
from tests.rubbish_archives import SOUND, damaged_archives, damaged_folders, many_entries
from tests.test_rubbish_images import is_reason, snapshot, why_not


@pytest.fixture
def place(tmp_path):
    for name in ("in", "outside"):
        (tmp_path / name).mkdir()
    return tmp_path


def import_it(spec, place):
    """Returns the cache, or why there is none."""
    try:
        return cache.open_or_build(spec, min_side=16, folder=place / "cache", quiet=True)
    except UserError as error:
        reason = str(error)
    assert is_reason(reason), ascii(spec)
    return reason


def read_all(spec):
    """Reads every image that a spec names, as `predict` does; returns how many were none."""
    try:
        found = files.list_images(spec)
    except UserError as error:
        found, refused = [], str(error)
    else:
        refused = ""
    assert bool(found) == (refused == "")
    assert len(refused.splitlines()) <= 1, ascii(spec)
    assert all(is_reason(file.name) for file in found)
    reasons = [reason for reason in map(why_not, found) if reason]
    assert all(map(is_reason, reasons))
    return len(reasons)


def unchanged(place):
    """A snapshot of all but the cache, which is what the importer may write."""
    return {p: s for p, s in snapshot(place).items() if not p.startswith(f"{place}/cache")}


def test_damaged_archives(place):
    specs = {}
    for rubbish in damaged_archives(str(place / "outside")):
        path = place / "in" / rubbish.name
        path.write_bytes(rubbish.data)
        specs[str(path)] = rubbish.category
    before, above = unchanged(place), set(place.parent.iterdir())
    reasons = {}
    for spec in specs:
        result = import_it(spec, place)
        if isinstance(result, str):
            assert spec in result
            reasons[spec] = result
        read_all(spec)
    assert 100 < len(reasons) < len(specs) - 100
    assert unchanged(place) == before
    assert set(place.parent.iterdir()) == above
    assert not [path for path in (place / "cache").iterdir() if path.name.startswith("building-")]


def test_damaged_folders(place):
    specs = damaged_folders(place / "in", place / "outside")
    before = unchanged(place)
    results = {what: import_it(spec, place) for what, spec in specs.items()}
    for what, spec in specs.items():
        assert what in ("class", "many") or read_all(spec) <= 1
    assert unchanged(place) == before
    # A link to a file counts as that file, and is none of these images.
    assert "cat/passwd.png: not a JPEG" in results["links"]
    assert "loop.png" in results["loop"]
    readable = {what: len(made) for what, made in results.items() if not isinstance(made, str)}
    assert readable == {"pipes": 12, "names": 30, "deep": 13, "nested": 12, "stars": 12}
    assert r"z\udcffbra\n" in results["names"].class_names


def test_100_000_entries(place):
    (place / "in" / "many.zip").write_bytes(many_entries())
    before = unchanged(place)
    assert len(import_it(str(place / "in" / "many.zip"), place)) == 1000
    assert unchanged(place) == before


def test_classes_that_the_network_does_not_know(place, tiny_config):
    members = SOUND | {name.replace("cat", "zebra"): data for name, data in SOUND.items()}
    tiny_config.data.source = str(write_zip(place / "in" / "zebra.zip", members))
    with pytest.raises(UserError, match=r"num_classes is 2, but .*zebra.zip has 3 classes"):
        launch.prepare_data(tiny_config, place / "cache", quiet=True)


def test_a_pattern_follows_no_links_that_lead_back(place):
    for i in range(4):
        (place / "in" / str(i)).mkdir()
        for j in range(4):
            (place / "in" / str(i) / f"up{j}").symlink_to(place / "in")
    path = write_zip(place / "in" / "1" / "x.zip", SOUND)
    found = files.list_images(f"{place}/**/**/**/*.zip")
    assert {file.container.path for file in found} == {str(path)}
    assert len(found) == len(SOUND)
