"""The files of a run: whole or absent, and none of another run's."""

import pytest

from bn_vgg import provenance
from bn_vgg.errors import UserError
from bn_vgg.run_dir import Workdir, flatten

DATA = {"source": "s", "fingerprint": "f"}


def test_flatten():
    assert flatten({"a": {"b": (1, 2), "c": {"d": None}}, "e": "x"}) == {
        "a.b": [1, 2], "a.c.d": None, "e": "x",
    }  # fmt: skip


def test_a_tuple_read_back_as_a_list_is_the_same_config(tmp_path):
    workdir = Workdir(str(tmp_path))
    config = {"num_epochs": 1, "model": {"features": (1, 2)}}
    workdir.claim(config, DATA)
    workdir.claim(config, DATA)


def test_all_differing_fields_are_named_also_new_and_missing_ones(tmp_path):
    workdir = Workdir(str(tmp_path))
    workdir.claim({"num_epochs": 2, "seed": 0, "old": 1}, DATA)
    with pytest.raises(UserError) as raised:
        workdir.claim({"num_epochs": 3, "seed": 1, "new": 2}, DATA)
    message = str(raised.value)
    assert "seed was 0 and is 1" in message
    assert "old was 1 and is (not there)" in message
    assert "new was (not there) and is 2" in message
    assert "num_epochs was" not in message


def test_a_failed_write_keeps_the_old_file(tmp_path):
    workdir = Workdir(str(tmp_path))
    workdir.write("result.json", {"a": 1})
    with pytest.raises(TypeError):
        workdir.write("result.json", {"a": object()})
    assert workdir.read("result.json") == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_metrics_are_read_as_written_and_none_where_nothing_was(tmp_path):
    workdir = Workdir(str(tmp_path))
    assert workdir.read_metrics() == []
    workdir.write_metrics([{"epoch": 1}, {"epoch": 2}])
    assert workdir.read_metrics() == [{"epoch": 1}, {"epoch": 2}]


def test_damaged_and_missing_files_are_named(tmp_path):
    workdir = Workdir(str(tmp_path))
    with pytest.raises(UserError, match=r"holds no run: there is no result.json"):
        workdir.read("result.json")
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(UserError, match=r"result.json is damaged"):
        workdir.read("result.json")
    (workdir.path / "result.json").write_bytes(b"{\xb5")
    with pytest.raises(UserError, match=r"result.json is damaged: 'utf-8'"):
        workdir.read("result.json")
    (workdir.path / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"cannot read .*metrics.jsonl: Is a directory"):
        workdir.read_metrics()


def test_an_own_normalizer_that_was_edited_is_another_one(tmp_path):
    config = {"num_epochs": 1, "model": {"norm": "mine:Norm"}}
    workdir = Workdir(str(tmp_path))
    workdir.claim(config, DATA, "before")
    workdir.claim(config, DATA, "before")
    with pytest.raises(UserError, match="another version of mine:Norm: its file has changed"):
        workdir.claim(config, DATA, "after")
    assert not workdir.norm_changed("before")
    assert not workdir.norm_changed("")
    # Of a run that began when that was not kept nothing is known.
    workdir.write("format.json", {"format": 2, "bn_vgg": "0"})
    assert not workdir.norm_changed("after")


def test_what_a_normalizers_file_is_known_by(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "edited_norms.py"
    path.write_text("gain = 1")
    before = provenance.norm_digest("edited_norms:Norm")
    path.write_text("gain = 2")
    assert before
    # What was imported is what was there before.
    assert provenance.norm_digest("edited_norms:Norm") == before
    provenance.norm_digest.cache_clear()
    assert provenance.norm_digest("edited_norms:Norm") not in ("", before)
    (tmp_path / "failing_norms").mkdir()
    (tmp_path / "failing_norms" / "__init__.py").write_text("1 / 0")
    others = ("full", "flax.linen:RMSNorm", "sys:x", "nowhere.norms:Norm", "failing_norms.a:Norm")
    assert [provenance.norm_digest(norm) for norm in others] == [""] * 5


def test_other_hosts_write_nothing(tmp_path):
    workdir = Workdir(str(tmp_path), writes=False)
    workdir.claim({"num_epochs": 1}, DATA)
    workdir.write_metrics([{"epoch": 1}])
    assert list(tmp_path.iterdir()) == []


def test_buckets_stay_buckets():
    workdir = Workdir("gs://bucket/runs/a")
    assert str(workdir.path) == "gs://bucket/runs/a"
    assert str(workdir.checkpoints) == "gs://bucket/runs/a/checkpoints"
    assert Workdir("runs/a").checkpoints.is_absolute()
