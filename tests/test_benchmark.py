"""That the benchmark runs, and what it says: its numbers are measured, and tested nowhere."""

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT

RECORDED = ROOT / "experiments" / "results" / "benchmark"


def benchmark(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.benchmark", f"--output={folder}", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compilation")
def test_it_says_what_it_does_and_writes_all_parts(tmp_path, cache_folder):
    done = benchmark(
        tmp_path, "--sizes=16", "--norms=mean_only", "--rounds=1", "--plain",
        "--epochs=2", "--variant=demo", "--source=cartoons:1300", f"--cache_dir={cache_folder}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "measuring a large matrix product and a large copy ..."
    assert "compiling mean_only, 16x16, dropout 0 ..." in done.stdout
    about = json.loads((tmp_path / "benchmark.json").read_text())
    (row,) = about["rows"]
    page = (tmp_path / "benchmark.md").read_text()
    low, high = row["jax_spread"]
    assert f"| 16 | mean_only | 0 | {row['jax_images_per_second']:.0f} ({low:.0f} to" in page
    assert low <= row["jax_images_per_second"] <= high
    assert row["times_plain"] > 0
    training = about["training"]
    assert training["train_images"] == 300
    assert 0 < training["training_share_of_epoch"] < 2
    assert "A run of 2 epochs of 300 images, meanonly_crop-demo on cartoons:1300: " in page


def test_a_recorded_start_is_described():
    code = (
        "import json, sys; from experiments.benchmark import part_markdown; "
        "print(part_markdown({'start': json.load(open(sys.argv[1]))['start']})[0])"
    )  # its flags would meet other commands' in this process
    path = RECORDED / "cpu_xeon" / "benchmark.json"
    done = subprocess.run(
        [sys.executable, "-c", code, path], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "9.6 s with nothing compiled, 5.1 s with compiled programs at hand" in done.stdout


def test_one_epoch_is_refused(tmp_path):
    done = benchmark(tmp_path, "--epochs=1")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --epochs=1: the first epoch compiles")
