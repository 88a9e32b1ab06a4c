"""Training by the core packages alone, as on a bare machine with a GPU; here on its CPU."""

import json
import os
import subprocess

import pytest

from tests.conftest import ROOT

PYTHON = os.environ.get("BN_VGG_BARE_PYTHON", "")


@pytest.mark.skipif(
    not PYTHON, reason="BN_VGG_BARE_PYTHON names no Python with the core packages alone: .ci/run"
)
def test_an_export_of_a_checkout_trains_without_tensorflow_network_or_git(tmp_path):
    def git(*arguments):
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True)
        return done.stdout

    # With what has not been committed yet.
    commit = (git("stash", "create") or git("rev-parse", "HEAD")).decode().strip()
    subprocess.run(["tar", "x"], cwd=tmp_path, input=git("archive", commit), check=True)
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for package in ("tensorflow", "tensorboard", "tensorflow_datasets"):
        (blocked / f"{package}.py").write_text("raise ImportError('not here')")
    done = subprocess.run(
        [PYTHON, "-m", "bn_vgg.main", "--config=tests/tiny_config.py", "--notensorboard",
         "--config.num_epochs=1", "--config.data.source=cartoons:120", "--workdir=run"],
        cwd=tmp_path, capture_output=True, text=True, timeout=600,
        # No git on the PATH, and an index that is not there.
        env={"HOME": str(tmp_path), "PATH": "", "PYTHONPATH": str(blocked),
             "https_proxy": "http://127.0.0.1:9", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["commit"] == commit
    assert result["versions"]["jax"] == "0.11.2"
    assert result["versions"]["python"].startswith("3.12.")
