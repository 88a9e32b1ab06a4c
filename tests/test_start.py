"""The first steps of runs, against the loop's own, and what is said of them."""

import json
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from experiments import first_steps
from tests.conftest import ROOT
from tests.runs import lines, run


@pytest.mark.slow
def test_its_steps_are_those_of_a_run(tiny_config, cache_folder, tmp_path):
    """Dropout and crops included: an epoch's mean loss and error, whatever a chunk is."""
    tiny_config.update_from_flattened_dict({
        "model.dropout_rate": 0.3, "optimizer.bias_correction": True, "seed": 3, "num_epochs": 1,
        "batch_size": 2, "eval.precise_examples": 0,
    })  # fmt: skip
    run(tiny_config, tmp_path, cache_folder)
    (epoch,) = lines(tmp_path)
    steps = epoch["step"]
    found = first_steps.make_runner(tiny_config, cache_folder, steps)(3)
    assert found["seed"] == 3
    assert len(found["loss"]) == steps
    assert np.mean(found["loss"]) == pytest.approx(epoch["train/loss"], rel=1e-5)
    assert np.mean(found["error_rate"]) == pytest.approx(epoch["train/error_rate"], abs=1e-6)
    assert 0 <= found["dead_units"] <= 1


def record(norm, seed, error, bias_correction=False, steps=40):
    return {
        "norm": norm, "bias_correction": bias_correction, "variant": "full", "source": "p.zip",
        "hardware": {"device": "a processor"}, "commit": "c0ffee", "command": "python …",
        "seed": seed, "loss": [0.7] * steps, "error_rate": [0.5] * (steps - 20) + [error] * 20,
        "dead_units": 0.5 + 0.1 * seed,
    }  # fmt: skip


def test_the_page_counts_runs_by_their_last_20_steps():
    records = [record("mean_only", seed, error) for seed, error in enumerate([0.46, 0.48, 0.3])]
    page = first_steps.page([*records, record("none", 0, 0.2, bias_correction=True)])
    assert "| mean_only, the recipe | 2 of 3 | 46%, 48%, 30% | 60% | 50% to 70% |" in page
    assert "| none, bias correction | 1 of 1 | 20% | 50% | 50% to 50% |" in page


@pytest.mark.slow
def test_the_command_goes_on_where_it_was_stopped(cache_folder, tmp_path):
    command = [
        sys.executable, "-m", "experiments.start", "--variant=demo", "--norms=mean_only",
        "--steps=20", f"--output={tmp_path}", f"--cache_dir={cache_folder}",
        "--source=cartoons:2000",
    ]  # fmt: skip
    done = subprocess.run([*command, "--seeds=1"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before = (tmp_path / "start.jsonl").read_text()
    done = subprocess.run([*command, "--seeds=2"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    after = (tmp_path / "start.jsonl").read_text()
    assert after.startswith(before)
    runs = [json.loads(line) for line in after.splitlines()]
    assert [(each["bias_correction"], each["seed"]) for each in runs] == [
        (False, 0), (True, 0), (False, 1), (True, 1)
    ]  # fmt: skip
    assert {"start.md", "start.png"} <= {path.name for path in tmp_path.iterdir()}
    done = subprocess.run([*command, "--steps=40"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "holds runs of {'variant': 'demo'" in done.stderr
