"""Exported weights: as files of either kind, and as what another run starts from."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from bn_vgg.errors import UserError
from bn_vgg.weights import named_arrays, start_from
from tests.runs import run, state
from tests.test_steps import build

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def exported(tmp_path):
    _, _, other = build("full")
    arrays = {name: x + 1 for name, x in named_arrays(other.variables).items()}
    np.savez(tmp_path / "weights.npz", **arrays)
    return tmp_path / "weights.npz", arrays


@pytest.mark.parametrize("statistics", [True, False])
def test_weights_and_by_choice_statistics_are_replaced(exported, statistics):
    path, arrays = exported
    _, _, fresh = build("full")
    found = named_arrays(start_from(fresh, str(path), statistics=statistics).variables)
    for name, x in named_arrays(fresh.variables).items():
        taken = statistics or name.startswith("params/")
        np.testing.assert_array_equal(found[name], arrays[name] if taken else x)


def test_what_does_not_fit_is_named(exported, tmp_path):
    path, _ = exported
    _, _, other = build("full", hidden_units=9)
    message = r"in .*weights.npz params/hidden/bias is \(8,\), not \(9,\); params/hidden/kernel is"
    with pytest.raises(UserError, match=message):
        start_from(other, str(path), statistics=True)
    _, _, other = build("none")
    with pytest.raises(UserError, match=r"params/block0/conv/bias is \(not there\), not \(4,\)"):
        start_from(other, str(path), statistics=False)
    (tmp_path / "torn.npz").write_bytes(path.read_bytes()[:500])
    for name in ("torn.npz", "missing.npz"):
        with pytest.raises(UserError, match=f"init.weights: cannot read .*{name}: "):
            start_from(other, f"{tmp_path}/{name}", statistics=True)


def test_a_run_starts_from_another(trained_run, run_command, tiny_config, cache_folder, tmp_path):
    """With a learning rate next to nothing it ends with the weights that it began with."""
    for kind in ("npz", "safetensors"):
        run_command("export", f"--workdir={trained_run}", f"--output={tmp_path}/w.{kind}")
    with np.load(tmp_path / "w.npz") as file:
        arrays = dict(file)
    same = load_file(tmp_path / "w.safetensors")
    jax.tree.map(np.testing.assert_array_equal, same, arrays)
    assert json.loads((tmp_path / "w.json").read_text())["layout"].startswith("convolutions (hei")
    tiny_config.init.weights, tiny_config.num_epochs = f"{tmp_path}/w.npz", 1
    tiny_config.optimizer.learning_rate = 1e-30
    run(tiny_config, tmp_path / "run", cache_folder)
    (tmp_path / "w.npz").unlink()  # what goes on does not need it
    tiny_config.num_epochs = 2
    run(tiny_config, tmp_path / "run", cache_folder)
    after = named_arrays(state(tmp_path / "run").variables)
    for name in arrays:
        if name.startswith("params/"):
            np.testing.assert_array_equal(after[name], arrays[name])
