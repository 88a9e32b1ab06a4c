"""The command of the named experiments, around a run that is made up."""

import json
import os
import shlex
import subprocess
import sys

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("quick_compilation")

FAKE = """
import json, pathlib, sys
from experiments import questions
from bn_vgg import cli

def execute(line):
    fields = dict(part.lstrip("-").split("=", 1) for part in line if "=" in part)
    folder = pathlib.Path(fields["workdir"])
    if "batch400" in str(folder) and pathlib.Path("fails").exists():
        return 7
    folder.mkdir(parents=True, exist_ok=True)
    with open("made.txt", "a") as made:
        made.write(f"{folder}\\n")
    epochs = int(fields["config.num_epochs"])
    config = {"num_epochs": epochs, "data": {"valid_examples": 2500}}
    (folder / "config.json").write_text(json.dumps(config))
    line = {"valid/error_rate": 0.4, "train/error_rate": 0.4, "valid/error_rate_running": 0.4,
            "valid/error_rate_precise": 0.3, "train/loss": 0.5}
    lines = [{"epoch": i + 1, "step": 200 * i + 200} | line for i in range(epochs)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + chr(10) for line in lines))
    (folder / "result.json").write_text(json.dumps({
        "command": "python -m bn_vgg.main", "commit": "c0ffee", "versions": {"jax": "0.10"},
        "hardware": {"num_devices": 1, "device": "a processor", "cpu_cores": 2}}))
    (folder / "checkpoints").mkdir(exist_ok=True)
    return 0

questions.run_all.__defaults__ = (execute,)
questions.mechanism.step_seconds = lambda config: {
    setting: {"none": [1.0] * 5, "mean_only": [1.1] * 5, "full": [1.3] * 5}
    for setting in questions.mechanism.SETTINGS}
cli.run(questions.main, positional=("NAME",))
"""


def ask(folder, *arguments, status=0, fake=True, **environment):
    """Runs the command in `folder`; with `fake`, what it would train is made up."""
    start = ["-c", FAKE] if fake else ["-m", "experiments.questions"]
    path = os.pathsep.join([*environment.values(), str(ROOT)])
    done = subprocess.run(
        [sys.executable, *start, *map(str, arguments)],
        cwd=folder, env=os.environ | {"PYTHONPATH": path, "BN_VGG_CACHE": str(folder)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    return done


class TestCommand:
    def test_dry_run_prints_the_exact_commands(self, tmp_path):
        done = ask(tmp_path, "early", "--dry_run", "--source=a b.zip", "--cache_dir=c", fake=False)
        lines = done.stdout.splitlines()
        assert len(lines) == 8
        assert shlex.split(lines[1]) == [
            "python", "-m", "bn_vgg.main", "--config=configs/meanonly.py:small",
            "--config.data.source=a b.zip", "--config.seed=0", "--config.num_epochs=5",
            "--config.model.norm_decay=0.9", "--notensorboard",
            "--workdir=runs/questions/meanonly-small-decay0.9/seed0", "--cache_dir=c",
        ]  # fmt: skip
        assert not list(tmp_path.iterdir())

    def test_every_other_question_has_its_runs(self, tmp_path):
        lines = ask(tmp_path, "dropout", "--dry_run", "--out=o", "--variant=full", fake=False)
        assert [shlex.split(line)[-1] for line in lines.stdout.splitlines()] == [
            "--workdir=o/meanonly_crop_dropout-full/seed0",
            "--workdir=o/full_crop_dropout-full/seed0",
            "--workdir=o/meanonly_crop_dropout-full-stats_dropout/seed0",
            "--workdir=o/full_crop_dropout-full-stats_dropout/seed0",
        ]
        assert all(":full" in line for line in lines.stdout.splitlines())

    def test_it_runs_decides_records_and_reports_again(self, tmp_path):
        pytest.importorskip("matplotlib")
        (tmp_path / "fails").touch()
        done = ask(tmp_path, "early", "--out=q", "--seeds=3,", "--epochs=2", status=2)
        failed = "q/meanonly-small-batch400/seed3"
        assert done.stderr == f"error: {failed} failed with exit status 7: see above\n"
        done = ask(tmp_path, "early", "--out=q", "--seeds=3,", "--epochs=2", "--report_only")
        assert f"missing: {failed}" in done.stdout
        assert "missing: q/baseline-small/seed3" in done.stdout
        assert (tmp_path / "made.txt").read_text().count("\n") == 2
        (tmp_path / "fails").unlink()
        done = ask(tmp_path, "early", "--out=q", "--seeds=3,", "--epochs=2", "--record=kept")
        assert done.stdout.splitlines()[-2:] == ["early: not worse", "q/early.md"]
        kept = {str(path.relative_to(tmp_path / "kept")) for path in tmp_path.rglob("kept/**/*.*")}
        assert {"early.md", "early.png", "early.json"} <= kept
        assert "baseline-small/seed3/result.json" in kept
        assert not list((tmp_path / "kept").rglob("checkpoints"))
        before = json.loads((tmp_path / "kept/early.json").read_text())
        assert (before["verdict"], before["missing"]) == ("not worse", [])
        for name in ("early.md", "early.png", "early.json"):
            (tmp_path / "kept" / name).unlink()
        # As if they were asked for longer: what is there decides, and says what is not.
        asked = ("early", "--out=kept", "--seeds=3,", "--epochs=3", "--report_only")
        assert (
            "unfinished: kept/baseline-small/seed3, 2 of 3 epochs" in ask(tmp_path, *asked).stdout
        )
        after = json.loads((tmp_path / "kept/early.json").read_text())
        assert after["numbers"] == before["numbers"]
        page = (tmp_path / "kept/early.md").read_text()
        assert "`python -m bn_vgg.main`, commit c0ffee" in page
        assert "1 a processor (2 cores), jax 0.10" in page

    def test_a_run_is_not_shortened(self, tmp_path):
        folder = tmp_path / "q/full_crop-small/seed0"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"num_epochs": 60}')
        done = ask(tmp_path, "spikes", "--out=q", "--dry_run", fake=False)
        mean_only, full = done.stdout.splitlines()
        assert "--config.num_epochs=12 " in mean_only
        assert "--config.num_epochs=60 " in full

    def test_the_other_figures_are_drawn(self, tmp_path):
        pytest.importorskip("matplotlib")
        ask(tmp_path, "spikes", "--out=q", "--record=kept")
        ask(tmp_path, "cheap", "--out=q", "--record=kept")
        (tmp_path / "kept/cheap.json").unlink()
        done = ask(tmp_path, "cheap", "--out=kept", "--report_only")
        assert "cheap: mean-only 1.10, full 1.30 times none's time without dropout" in done.stdout
        assert (tmp_path / "kept/cheap.json").exists()
        assert (tmp_path / "q/cheap.png").stat().st_size > 20_000
        assert (tmp_path / "q/spikes.png").stat().st_size > 20_000

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["late"], "no question 'late'; there are: early, spikes, dropout, cheap"),
            (["cheap", "--out=gs://b/f"], "--out=gs://b/f is not on this machine"),
            (["early", "--seeds=x"], "--seeds=x: a number of seeds, or seeds with commas"),
            (["early", "--report_only"], "none of the runs is in runs/questions: see --dry_run"),
            (["cheap", "--report_only"], "nothing was timed yet: there is no "),
        ],
    )
    def test_wrong_use_ends_in_one_line(self, arguments, message, tmp_path):
        if "--report_only" in arguments:
            pytest.importorskip("matplotlib")
        done = ask(tmp_path, *arguments, status=2, fake=False)
        assert done.stderr.startswith(f"error: {message}")
        assert done.stderr.count("\n") == 1

    def test_without_matplotlib_it_ends_in_one_line(self, tmp_path):
        (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError(name='matplotlib')")
        done = ask(tmp_path, "early", status=2, fake=False, PYTHONPATH=str(tmp_path))
        assert done.stderr == "error: the picture needs matplotlib: pip install -e '.[report]'\n"
        assert [path.name for path in tmp_path.iterdir() if path.suffix != ".py"] in (
            [], ["__pycache__"],
        )  # fmt: skip
