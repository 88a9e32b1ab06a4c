"""What a notebook uses: `import bn_vgg` and six functions."""

import jax
import numpy as np
import pytest
from PIL import ExifTags, Image

import bn_vgg
from bn_vgg.data.crops import five_crops
from bn_vgg.errors import UserError

pytestmark = pytest.mark.usefixtures("quick_compilation")


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
    sideways = Image.fromarray(images[0])
    sideways.getexif()[ExifTags.Base.Orientation] = 6
    np.testing.assert_array_equal(run.crops(sideways), run.crops(np.rot90(images[0], -1)))


def test_configurations_by_their_name():
    config = bn_vgg.get_config("meanonly_crop:demo")
    assert (config.name, config.model.norm) == ("meanonly_crop-demo", "mean_only")
    with pytest.raises(UserError, match=r"no file .*nope.py"):
        bn_vgg.get_config("nope")
    with pytest.raises(UserError, match="'tiny'; choose one of full, small, demo"):
        bn_vgg.get_config("full:tiny")
    config.batch_size = 0
    with pytest.raises(UserError, match=r"config\.batch_size is 0"):
        bn_vgg.train(config, "nowhere")
    with pytest.raises(UserError, match="nowhere holds no run"):
        bn_vgg.load("nowhere")
    with pytest.raises(UserError, match="which must be best or latest, not 'newest'"):
        bn_vgg.load("nowhere", "newest")


def test_the_first_state_of_a_step():
    config = bn_vgg.get_config("full:demo")
    state = bn_vgg.init_state(config, bn_vgg.make_model(config), jax.random.key(0))
    assert (state.step, len(state.params)) == (0, 10)
    config.model.norm = "weight_norm"
    with pytest.raises(UserError, match="norm=weight_norm needs data: give images_NHWC"):
        bn_vgg.init_state(config, bn_vgg.make_model(config), jax.random.key(0))


def test_a_run_without_a_checkpoint_has_nothing_to_give(trained_run, tmp_path):
    for name in ("config.json", "data.json", "format.json"):
        (tmp_path / name).write_bytes((trained_run / name).read_bytes())
    with pytest.raises(UserError, match="has no checkpoint yet"):
        bn_vgg.load(tmp_path)
    assert not (tmp_path / "checkpoints").exists()
