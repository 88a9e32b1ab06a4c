"""That the benchmark runs, and what it says: its numbers are measured, and tested nowhere."""

import json
import subprocess
import sys

import pytest

from experiments.timing import run_timing, speed_page
from tests.conftest import ROOT


@pytest.mark.slow
def test_it_says_what_it_does_and_shows_the_table(tmp_path, cache_folder):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.benchmark", f"--output={tmp_path}", "--sizes=16",
         "--norms=mean_only", "--rounds=1", f"--cache_dir={cache_folder}"],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "measuring a large matrix product and a large copy ..."
    assert "compiling mean_only, 16x16, dropout 0, float32, highest ..." in done.stdout
    (row,) = json.loads((tmp_path / "benchmark.json").read_text())["rows"]
    low, high = row["jax_spread"]
    shown = f"| 16 | mean_only | 0 | {row['jax_images_per_second']:.0f} ({low:.0f} to {high:.0f})"
    assert shown in done.stdout
    assert shown in (tmp_path / "benchmark.md").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
def test_the_parts_of_a_run_are_the_whole(tiny_config, cartoon_folder, cache_folder):
    found = run_timing.measure_training(tiny_config, cache_folder)
    seconds = found["seconds"]
    parts = [seconds[name] for name in ("cache", "compiling", "training", "evaluation", "rest")]
    assert sum(parts) == pytest.approx(seconds["in all"])
    assert min(seconds["compiling"], seconds["training"], seconds["evaluation"]) > 0
    page = "\n".join(speed_page.part_markdown({"training": found}))
    assert f"A run of 2 epochs of 48 images, tiny on {cartoon_folder}: cache " in page


def test_one_epoch_is_refused(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.benchmark", f"--output={tmp_path}", "--epochs=1"],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: --epochs=1: the first epoch compiles")
