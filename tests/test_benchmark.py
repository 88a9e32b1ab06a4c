"""That the benchmark runs: its numbers are measured, and tested nowhere."""

import json

import pytest

from tests.conftest import python


@pytest.mark.usefixtures("quick_compilation")
def test_it_says_what_it_does_and_writes_a_row(tmp_path):
    done = python(
        "-m", "experiments.benchmark", f"--output={tmp_path}", "--sizes=16", "--norms=none",
        "--rounds=1", "--run=tests/tiny_config.py", "--set=model.norm=none", timeout=600,
    )  # fmt: skip
    assert "compiling none, 16x16, dropout 0 ..." in done.stdout
    about = json.loads((tmp_path / "benchmark.json").read_text())
    (row,) = about["rows"]
    low, high = row["jax_spread"]
    assert low <= row["jax_images_per_second"] <= high
    assert row["seconds_of_none"] == 1
