"""Numbers that go wrong: the step, the layer and the operation; a checkpoint from before.

Also the script that the test runs where there are four devices:
XLA_FLAGS=--xla_force_host_platform_device_count=4 python -m tests.test_non_finite FOLDER CACHE
"""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_vgg import cli, feed, operations
from bn_vgg import train as loop
from bn_vgg.data import cache as image_cache
from bn_vgg.errors import Interrupted, UserError
from bn_vgg.finite import Finder, checked
from bn_vgg.metrics import TrainMetrics
from bn_vgg.models import make_model
from bn_vgg.parallel import Devices
from bn_vgg.programs import Session
from bn_vgg.steps import make_train_step
from bn_vgg.trained import load
from tests import breaking_norms
from tests.conftest import ROOT
from tests.runs import epochs_of, run, same
from tests.test_steps import build, train_batch
from tests.test_stopping import send
from tests.tiny_config import get_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

# The normalizers of tests/breaking_norms.py: what the run says, the operation and its line.
FLAWS = {
    "Loss": (
        "the loss at step 3 is not a finite number (first in the activations of block0.norm)",
        "div makes an infinity", "return x / fine",
    ),
    "Gradient": (
        "the gradient of block1.norm at step 3 is not a finite number",
        "div makes an infinity", "return x + jnp.sqrt(0 * x + fine) - fine",
    ),
    "Statistics": (
        "a running statistic of block0.norm at step 3 is not a finite number",
        "sqrt makes a NaN", "return jnp.sqrt(fine - 0.5)",
    ),
    "Squares": (
        "a mean square of the gradients of block0.norm at step 3 is not a finite number",
        "integer_pow makes an infinity", "nu = optax.tree.update_moment",
    ),
    "Independent": (
        "the gradient of block1.norm at step 1 is not a finite number",
        "div makes an infinity", "return x / (1 + jnp.std(",
    ),
}  # fmt: skip
ON_FOUR = ("Gradient", "Statistics")


def with_flaw(config, name):
    """Of two blocks, with dropout."""
    config.model.norm = f"tests.breaking_norms:{name}"
    config.model.features = (4, 4)
    config.model.dropout_rate = 0.3
    return config


@pytest.fixture(autouse=True)
def one_at_once(monkeypatch):
    """Steps of a dispatch: a program less to compile."""
    monkeypatch.setattr(feed, "_BATCHES_PER_DISPATCH", 1)


def message(config, cache, path, **hooks):
    with pytest.raises(UserError) as raised:
        run(config, cache, path, **hooks)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def assert_finite(path):
    for leaf in jax.tree.leaves(load(str(path), "latest").state):
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize("name", FLAWS)
def test_the_step_the_layer_the_operation_and_what_was_before(
    name, tiny_config, open_cache, tmp_path, caplog
):
    config = with_flaw(tiny_config, name)
    config.debug.nans = True
    with caplog.at_level("INFO", logger="absl"):
        said = message(config, open_cache(config), tmp_path)
    start, operation, code = FLAWS[name]
    assert said.startswith(start)
    package = str(ROOT / "bn_vgg/optimizer.py")
    own = package if name == "Squares" else breaking_norms.__file__
    assert re.search(rf": {operation} in {own}, line \d+: {re.escape(code)}", said)
    assert "it was called here, the innermost first" in caplog.text
    assert f", with config.model.norm=tests.breaking_norms:{name};" in said
    layer = re.search(r"block\d\.norm", said)[0]
    before = rf"; step 2 had loss [\d.]+, gradient norm [\d.]+ and activations of {layer} up to "
    assert bool(re.search(before, said)) == (name != "Independent")
    assert said.endswith(f"; the checkpoint of step 0 is kept in {tmp_path}")
    assert load(str(tmp_path), "latest").step == 0
    assert_finite(tmp_path)


@pytest.mark.slow
def test_what_is_kept_is_of_the_last_look(tiny_config, open_cache, tmp_path, monkeypatch):
    """And going on from there ends at the same step; so does a run that was stopped before."""
    config, cache = with_flaw(tiny_config, "Gradient"), open_cache(tiny_config)
    monkeypatch.setattr(feed, "_BATCHES_PER_DISPATCH", 2)
    monkeypatch.setattr(loop, "_DISPATCHES_BETWEEN_LOOKS", 1)
    config.model.norm_kwargs = {"at": 6}
    said = message(config, cache, tmp_path / "run")
    assert "at step 6 is not" in said
    assert "; step 5 had loss " in said
    assert "the checkpoint of step 4 is kept" in said
    assert said.endswith("; the same command with --config.debug.nans=True finds the operation")
    assert_finite(tmp_path / "run")
    again = message(config, cache, tmp_path / "run")
    assert again == said
    with pytest.raises(Interrupted):
        run(config, cache, tmp_path / "stopped", actions=[send(signal.SIGTERM, 4)])
    stopped = message(config, cache, tmp_path / "stopped")
    assert stopped == said.replace(str(tmp_path / "run"), str(tmp_path / "stopped"))


def test_a_checkpoint_of_the_first_epoch_stays(tiny_config, open_cache, tmp_path, monkeypatch):
    """What is remembered may be older than what is kept."""
    config = with_flaw(tiny_config, "Loss")
    config.model.norm_kwargs, config.checkpoint.every_steps = {"at": 6}, 4
    monkeypatch.setattr(feed, "_BATCHES_PER_DISPATCH", 2)
    said = message(config, open_cache(config), tmp_path)
    assert "at step 6 is not" in said
    assert "the checkpoint of step 4 is kept" in said
    assert load(str(tmp_path), "latest").step == 4


def test_an_epochs_first_step(tiny_config, open_cache, tmp_path):
    """What the last step had is known from the epoch before."""
    config = with_flaw(tiny_config, "Loss")
    config.model.norm_kwargs = {"at": 7}
    said = message(config, open_cache(config), tmp_path)
    assert "the loss at step 7 is not a finite number" in said
    assert re.search(
        r"; step 6 had loss [\d.]+, gradient norm [\d.]+; the checkpoint of step 6", said
    )
    assert load(str(tmp_path), "latest").step == 6


def test_a_stopped_run_keeps_nothing_that_is_not_finite(tiny_config, open_cache, tmp_path):
    config = with_flaw(tiny_config, "Statistics")
    said = message(config, open_cache(config), tmp_path, actions=[send(signal.SIGTERM, 4)])
    assert "at step 3 is not" in said
    assert_finite(tmp_path)
    with pytest.raises(UserError, match=r"a parameter of hidden is not a finite number after step"):
        checked(
            load(str(tmp_path), "latest").state.replace(
                params={"hidden": {"bias": np.array([1, np.inf])}}
            ),
            "after step 4",
        )


@pytest.mark.slow
def test_a_rate_that_is_too_high(tiny_config, open_cache, tmp_path):
    """At 1e30 the second step's loss overflows, but not the first's."""
    cache = open_cache(tiny_config)
    tiny_config.num_epochs = 1
    run(tiny_config, cache, tmp_path)
    before = load(str(tmp_path), "latest")
    more = epochs_of(tiny_config, 2)
    more.optimizer.learning_rate = 1e30
    (tmp_path / "config.json").write_text(json.dumps(more.to_dict()))
    said = message(more, cache, tmp_path)
    assert re.match(
        r"the loss at step (7|8) is not a finite number \(first in the activations of block\d\.conv"
        r"\), with config.model.norm=mean_only; step (6|7) had loss .*; the checkpoint of step 6 ",
        said,
    )
    after = load(str(tmp_path), "latest")
    assert after.step == before.step == 6
    same(after.state, before.state)


def test_an_epochs_last_update_is_looked_at_before_it_is_kept(tiny_config, open_cache, tmp_path):
    """With one step an epoch no training loss comes after it."""
    tiny_config.batch_size = 48
    tiny_config.optimizer.learning_rate = 1e30
    said = message(tiny_config, open_cache(tiny_config), tmp_path)
    assert said.startswith(
        "the validation loss after step 1 is not a finite number (first in the activations of block"
    )
    assert "; step 1 had loss " in said
    assert "the checkpoint of step 0 is kept" in said
    tiny_config.debug.nans = True
    said = message(tiny_config, open_cache(tiny_config), tmp_path)
    assert re.search(r"makes an? \w+ in .*/bn_vgg/[\w/]+\.py, line \d+: ", said)
    assert load(str(tmp_path), "latest").step == 0


def test_steps_that_are_finite_when_taken_again(tiny_config, open_cache, tmp_path, monkeypatch):
    def in_other_numbers(self, remembered, first, *args, in_training=Finder.in_training, **kwargs):
        """As if it had been a later step."""
        return in_training(self, remembered, first - 1, *args, **kwargs)

    monkeypatch.setattr(Finder, "in_training", in_other_numbers)
    config = with_flaw(tiny_config, "Loss")
    said = message(config, open_cache(config), tmp_path)
    assert said.startswith(
        "something at step 3 is not a finite number (the loss, a gradient, a statistic or a "
        "parameter: taken again from step 0, the steps do not show which), with config.model.norm="
    )


def test_other_runs_of_the_process_are_left_alone(tiny_config, open_cache, tmp_path):
    cache, session = open_cache(tiny_config), Session()
    tiny_config.num_epochs = 1
    bad = with_flaw(epochs_of(tiny_config, 1), "Statistics")
    bad.debug.nans = True
    message(bad, cache, tmp_path / "bad", session=session)
    assert not jax.config.jax_debug_nans
    assert not jax.config.jax_debug_infs
    run(tiny_config, cache, tmp_path / "good", session=session)
    tiny_config.debug.nans = True
    run(tiny_config, cache, tmp_path / "debugged", session=session)
    states = [load(str(tmp_path / name)).state for name in ("good", "debugged")]
    same(*states)


@pytest.mark.slow
def test_nothing_is_wrong_with_a_healthy_step():
    model, optimizer, state = build("full", dropout_rate=0.3, features=(4, 4))
    step = make_train_step(model, optimizer)
    assert operations.find(step, state, train_batch(), jax.random.key(0), norm=model.norm) is None


def test_the_first_step_that_is_not_finite_is_remembered():
    """And what the last finite one had."""
    model, optimizer, state = build("none")
    step = jax.jit(make_train_step(model, optimizer))
    broken = {
        "loss": state.replace(params=jax.tree.map(lambda x: x * jnp.nan, state.params)),
        "square": state.replace(opt_state=jax.tree.map(lambda x: x + jnp.inf, state.opt_state)),
    }
    for bad in broken.values():
        metrics, losses = TrainMetrics.empty(), []
        assert [float(x) for x in metrics.compute()["first_non_finite"]] == [-1, -1, -1]
        for number, at in ((4, state), (5, bad), (6, bad), (7, state)):
            at = at.replace(step=jnp.asarray(number - 1))
            new = step(at, train_batch(), jax.random.key(0))[1]
            metrics, losses = metrics.merge(new), [*losses, new.compute()]
        first, loss, norm = metrics.compute()["first_non_finite"]
        assert int(first) == 5
        assert (loss, norm) == (losses[0]["loss"], losses[0]["gradient_norm"])


def test_a_copy_is_another_array():
    devices = Devices()
    x = devices.replicate({"x": np.ones(3, np.float32)})
    copied = devices.copy(x)
    assert copied["x"].unsafe_buffer_pointer() != x["x"].unsafe_buffer_pointer()


@pytest.mark.slow
def test_four_devices_say_the_same(tiny_config, cartoon_folder, cache_folder, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.test_non_finite", cartoon_folder, cache_folder, tmp_path],
        cwd=ROOT, env=os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert set(said) == set(ON_FOUR)
    for name in ON_FOUR:
        start, operation, code = FLAWS[name]
        assert said[name].startswith(start)
        assert operation in said[name]
        assert code in said[name]
        assert "the checkpoint of step 0 is kept" in said[name]
        assert_finite(tmp_path / name)


def main():
    source, cache_folder, folder = map(pathlib.Path, sys.argv[1:])
    assert jax.device_count() == 4
    cli.keep_compiled(cache_folder)
    feed._BATCHES_PER_DISPATCH = 1
    said = {}
    for name in ON_FOUR:
        config = with_flaw(get_config(), name)
        config.data.source, config.debug.nans = str(source), True
        cache = image_cache.open_or_build(
            config.data.source, min_side=config.data.min_side, folder=cache_folder, quiet=True
        )
        said[name] = message(config, cache, folder / name)
    print(json.dumps(said))


if __name__ == "__main__":
    main()


@pytest.mark.parametrize(
    ("function", "found"),
    [
        (lambda x: x * jnp.nan, "mul makes a NaN"),
        (lambda x: 0 * x * np.full(3, np.inf, np.float32), "mul makes a NaN"),
        (lambda x: jnp.maximum(x, jnp.full(3, -jnp.inf)), None),
        (lambda x: jnp.where(x > 0, x, jnp.full(3, jnp.nan)), None),
        (lambda x: x - 1 / jnp.zeros(3), "div makes an infinity"),
        (lambda x: jnp.nanmax(jnp.where(x > 1, x, jnp.nan)) + jnp.log(x - 1), "log makes an inf"),
    ],
)
def test_constants_that_are_not_finite(function, found):
    """They are where a NaN comes from, or, as where a maximum begins, no matter."""
    norm = make_model(**get_config().model).norm
    said = operations.find(function, jnp.ones(3), norm=norm)
    assert said is None if found is None else said.startswith(found)
