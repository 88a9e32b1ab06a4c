"""That the benchmark runs: its numbers are measured, and tested nowhere."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.usefixtures("quick_compilation")
def test_it_says_what_it_does_and_writes_all_parts(tmp_path, cache_folder, cartoon_folder):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.benchmark", f"--output={tmp_path}", "--sizes=16",
         "--norms=none", "--rounds=1", "--epochs=2", "--run=tests/tiny_config.py",
         "--set=model.norm=none", f"--set=data.source={cartoon_folder}",
         f"--cache_dir={cache_folder}"],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "compiling none, 16x16, dropout 0 ..." in done.stdout
    about = json.loads((tmp_path / "benchmark.json").read_text())
    (row,) = about["rows"]
    low, high = row["jax_spread"]
    assert low <= row["jax_images_per_second"] <= high
    assert row["seconds_of_none"] == 1
    training = about["training"]
    assert training["train_images"] == 48
    assert 0 < training["training_share_of_epoch"] < 1
