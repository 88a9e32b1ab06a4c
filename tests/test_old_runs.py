"""Runs that earlier versions of the code have left: gone on with, or refused in a line."""

import json
import shutil

import pytest

from bn_vgg.checkpoint import steps
from bn_vgg.errors import UserError
from bn_vgg.run_dir import FORMAT, Workdir
from bn_vgg.trained import load
from tests.conftest import ROOT
from tests.tiny_config import get_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

OLD_RUNS = sorted((ROOT / "tests" / "old_runs").glob("format*"))
COMMAND = (
    "--config=tests/tiny_config.py", "--config.data.source=cartoons:72",
    "--config.model.dropout_rate=0.3", "--config.seed=2", "--notensorboard",
)  # fmt: skip


def test_there_is_one_of_every_format():
    assert [path.name for path in OLD_RUNS] == [f"format{n}" for n in range(1, FORMAT + 1)]
    for path in OLD_RUNS[1:]:
        assert Workdir(str(path)).read("format.json")["format"] == int(path.name[-1])


@pytest.mark.slow
@pytest.mark.parametrize("path", OLD_RUNS, ids=lambda path: path.name)
def test_it_goes_on(path, run_command, tmp_path):
    copy = shutil.copytree(path, tmp_path / "run")
    before = (copy / "metrics.jsonl").read_text()
    assert run_command("main", *COMMAND, f"--workdir={copy}").stdout.startswith("this run is fin")
    done = run_command("main", *COMMAND, "--config.num_epochs=3", f"--workdir={copy}")
    assert "resuming after epoch 2 (step 12)" in done.stdout
    assert (copy / "metrics.jsonl").read_text().startswith(before)
    assert json.loads((copy / "format.json").read_text())["format"] == FORMAT
    assert steps(Workdir(str(copy)).checkpoints)[0] == 18


@pytest.mark.parametrize("path", OLD_RUNS, ids=lambda path: path.name)
def test_its_weights_can_be_read(path):
    best, latest = load(str(path)), load(str(path), "latest")
    assert (best.step, latest.step) == (6, 12)
    assert latest.class_names == ["cat", "dog"]
    assert best.state.params["block0"]["conv"]["kernel"].shape == (3, 3, 3, 4)


def test_a_later_one_is_refused(tmp_path):
    workdir = Workdir(str(tmp_path))
    workdir.claim(get_config().to_dict(), {"source": "s", "fingerprint": "f"})
    (tmp_path / "format.json").write_text('{"format": 99, "bn_vgg": "7.0"}')
    for use in (
        lambda: workdir.claim(get_config().to_dict(), {"source": "s", "fingerprint": "f"}),
        lambda: load(str(tmp_path)),
    ):
        with pytest.raises(UserError, match=r"of format 99, written by bn_vgg 7.0; this is "):
            use()
