"""What a stretch of time on an accelerator is used for, and what it leaves behind."""

import json

import pytest

from experiments.accelerator import plan_runs
from tests.sweep_runs import finish, start

pytestmark = pytest.mark.usefixtures("quick_compilation")

FIVE_WAY = {
    "meanonly", "meanonly_crop", "full_crop", "meanonly_crop_dropout", "full_crop_dropout",
    "baseline",
}  # fmt: skip


def test_what_matters_most_comes_first():
    runs = plan_runs("full", [0, 1, 2], {})
    assert len({run.folder for run in runs}) == len(runs) == 27
    assert [(run.name, run.seed) for run in runs[:6]] == [
        (name, seed) for seed in range(3) for name in ("meanonly_crop", "full_crop")
    ]
    assert {run.name for run in runs[:18]} == FIVE_WAY
    assert [run.seed for run in runs[6:18]] == [0] * 4 + [1] * 4 + [2] * 4
    assert FIVE_WAY.isdisjoint(run.name for run in runs[18:])
    assert all(run.num_epochs == 60 for run in runs)


@pytest.mark.slow
def test_it_stops_in_time_and_goes_on_from_there(tmp_path, cache_folder):
    """Tiny networks, many epochs: one run at most is done when the time is up."""
    flags = [
        f"--out={tmp_path / 'out'}", f"--cache_dir={cache_folder}", "--seeds=1", "--variant=demo",
        "--set=data.source=cartoons:72", "--set=data.valid_examples=13",
        "--set=data.test_examples=11", "--set=batch_size=8", "--set=model.features=(2, 2)",
        "--set=model.hidden_units=4", "--set=data.min_side=36", "--set=data.crop_size=16",
    ]  # fmt: skip
    flags.append("--set=num_epochs=100000")
    # Time for the first epoch: how soon it comes depends on the machine.
    short, _ = finish(start(*flags, "--budget_minutes=0.75", module="accelerator"))
    first = tmp_path / "out" / "meanonly_crop-demo" / "seed0"
    assert short.splitlines()[-1].startswith("9 runs: 9 to do")
    kept = tmp_path / "out_results" / "meanonly_crop-demo" / "seed0"
    assert (tmp_path / "out_results" / "sweep.json").exists()
    assert (kept / "metrics.jsonl").read_text() == (first / "metrics.jsonl").read_text()
    assert json.loads((kept / "config.json").read_text())["name"] == "meanonly_crop-demo"
    again = start(*flags, "--budget_minutes=60", module="accelerator")
    for line in again.stdout:
        if "meanonly_crop-demo/seed0: resuming after epoch" in line:
            break
    again.terminate()
    finish(again, status=143)


def test_data_that_cannot_be_had_leave_no_plan_behind(tmp_path):
    """Which would refuse the same command with the name put right."""
    out = tmp_path / "out"
    flags = ["--budget_minutes=1", "--variant=demo", "--set=data.source=nowhere.zip"]
    _, errors = finish(start(*flags, f"--out={out}", module="accelerator"), status=2)
    assert "nowhere.zip" in errors
    assert not out.exists()


def test_runs_elsewhere_are_refused():
    _, errors = finish(
        start("--budget_minutes=1", "--out=gs://b/f", module="accelerator"), status=2
    )
    assert "--out=gs://b/f is not on this machine" in errors


def test_the_budget_has_to_be_named():
    _, errors = finish(start(module="accelerator"), status=2)
    assert "--budget_minutes is missing" in errors
