"""What a notebook uses: `import bn_vgg` and five functions."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bn_vgg
from bn_vgg import loop
from bn_vgg.data.crops import five_crops
from bn_vgg.errors import UserError
from bn_vgg.optimizer import make_optimizer
from bn_vgg.steps import init_state
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_a_run_from_python_says_no_more_than_its_progress(cartoon_folder, cache_folder, tmp_path):
    code = f"""
import bn_vgg
config = bn_vgg.get_config("tests/tiny_config.py")
config.data.source = {str(cartoon_folder)!r}
config.num_epochs = 1
result = bn_vgg.train(config, workdir={str(tmp_path)!r}, cache_dir={str(cache_folder)!r})
assert bn_vgg.train(config, workdir={str(tmp_path)!r})["test_error_rate"] == result[
    "test_error_rate"]
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"BN_VGG_CACHE": str(cache_folder)},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert json.loads((tmp_path / "result.json").read_text())["best_epoch"] == 1
    assert not list(tmp_path.glob("events.*"))


def test_predictions_are_means_of_softmaxes_over_five_crops(trained_run):
    run = bn_vgg.load(trained_run)
    assert run.class_names == ["cat", "dog"]
    rng = np.random.default_rng(0)
    # Of the shorter side that the run's images have, so that nothing is scaled.
    images = [rng.integers(0, 256, shape, np.uint8) for shape in ((18, 30, 3), (25, 18, 3))]
    found = run.predict(images)
    assert (found.shape, found.dtype) == ((2, 2), np.float32)
    for image, probabilities in zip(images, found, strict=True):
        x_NHWC = five_crops(image, 16).astype(np.float32) / 255
        logits_NC = run.model.apply(run.state.variables, x_NHWC, train=False)
        expected = jax.nn.softmax(logits_NC).mean(0)
        np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    assert run.predict([]).shape == (0, 2)


def test_ones_own_loop(tiny_config):
    model = bn_vgg.make_model(tiny_config)
    step = jax.jit(bn_vgg.make_train_step(tiny_config, model))
    optimizer = make_optimizer(tiny_config.to_dict(), 200)
    state = init_state(model, optimizer, loop.init_key(0), jnp.zeros((1, 16, 16, 3)))
    rng = np.random.default_rng(0)
    batch = {
        "crops": rng.integers(0, 256, (8, 1, 16, 16, 3), np.uint8),
        "label": np.arange(8, dtype=np.int32) % 2,
        "position": np.arange(8, dtype=np.int32),
    }
    losses = []
    for _ in range(10):
        state, metrics = step(state, batch, jax.random.key(1))
        losses.append(metrics.compute()["loss"])
    assert state.step == 10
    assert losses[-1] < losses[0]


def test_configurations_by_their_name():
    config = bn_vgg.get_config("meanonly_crop:demo")
    assert (config.name, config.model.norm) == ("meanonly_crop-demo", "mean_only")
    with pytest.raises(UserError, match=r"no file .*nope.py"):
        bn_vgg.get_config("nope")
    with pytest.raises(UserError, match="'tiny'; there are: full, small, demo"):
        bn_vgg.get_config("full:tiny")
    config.batch_size = 0
    with pytest.raises(UserError, match=r"config\.batch_size is 0"):
        bn_vgg.train(config, "nowhere")
    with pytest.raises(UserError, match="nowhere holds no run"):
        bn_vgg.load("nowhere")


def test_a_run_without_a_checkpoint_has_nothing_to_give(trained_run, tmp_path):
    for name in ("config.json", "data.json", "format.json"):
        (tmp_path / name).write_bytes((trained_run / name).read_bytes())
    with pytest.raises(UserError, match="has no checkpoint yet"):
        bn_vgg.load(tmp_path)
    assert not (tmp_path / "checkpoints").exists()
