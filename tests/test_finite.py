"""Numbers that are not finite: the step, the first array, the operation; what is kept."""

import re
import signal
from functools import partial

import jax
import numpy as np
import pytest

from bn_vgg import api
from bn_vgg.data import pipeline
from bn_vgg.errors import UserError
from tests.runs import run, state
from tests.test_devices import devices
from tests.test_stopping import send

pytestmark = pytest.mark.usefixtures("quick_compilation")

# The normalizers of tests/breaking_norms.py: what is not finite, and the operation that makes a
# NaN; none makes one where it is an infinity.
FLAWS = {
    "Gradient": ("the gradient of block0/conv/bias", "mul"),
    "Square": ("the optimizer state 0/nu/block0/norm/scale", None),
}


def with_flaw(config, name, at=4):
    config.model.norm, config.model.norm_kwargs = f"tests.breaking_norms:{name}", {"at": at}
    config.model.features, config.model.dropout_rate = (4, 4), 0.3
    return config


@pytest.fixture(autouse=True)
def two_steps_in_a_chunk(monkeypatch):
    monkeypatch.setattr(pipeline, "_MAX_STEPS", 2)


def message(config, path, cache_folder):
    with pytest.raises(UserError) as raised:
        run(config, path, cache_folder)
    return str(raised.value)


def assert_kept(path, step):
    assert api.load(path, "latest").step == step
    for leaf in jax.tree.leaves(state(path)):
        assert np.isfinite(leaf).all()


@pytest.mark.parametrize("name", ["Gradient", "Square"])
def test_the_step_the_first_array_the_operation_and_what_is_kept(
    name, tiny_config, cache_folder, tmp_path
):
    """Gradient's is looked for when the run goes on from what was kept."""
    config, (what, operation) = with_flaw(tiny_config, name), FLAWS[name]
    begins = f"at step 4, with config.model.norm=tests.breaking_norms:{name}, {what} "
    begins += "is not a finite number"
    ends = f"; the checkpoint of step 2 is kept in {tmp_path}"
    if operation:
        said = message(config, tmp_path, cache_folder)
        advice = "; add --config.debug.nans=True to learn which operation makes a NaN"
        assert re.fullmatch(begins + re.escape(advice + ends), said)
        assert_kept(tmp_path, 2)
    config.debug.nans = True
    said = message(config, tmp_path, cache_folder)
    found = rf": .*\bnan\b.* {operation}.*" if operation else "; no operation makes a NaN"
    assert re.fullmatch(begins + found + re.escape(ends), said)
    assert_kept(tmp_path, 2)
    assert not jax.config.jax_debug_nans


def test_a_parameter(tiny_config, cache_folder, tmp_path):
    """Its update overflows, in the first chunk."""
    tiny_config.optimizer.learning_rate = 3e38
    said = message(tiny_config, tmp_path, cache_folder)
    assert re.match(r"at step 1, .* the parameter block0/conv/\w+ is not a finite number;", said)
    assert said.endswith("; there is no checkpoint yet")
    with pytest.raises(UserError, match="no checkpoint yet"):
        api.load(tmp_path, "latest")


@pytest.mark.parametrize(("at", "kept"), [(6, 4), (7, 6)])
def test_an_epochs_last_and_first_step(at, kept, tiny_config, cache_folder, tmp_path):
    """Neither is the epoch recorded whose last update is not finite, nor is one lost."""
    said = message(with_flaw(tiny_config, "Statistic", at), tmp_path, cache_folder)
    assert said.startswith(f"at step {at}, ")
    assert said.endswith(f"; the checkpoint of step {kept} is kept in {tmp_path}")
    assert_kept(tmp_path, kept)
    assert (tmp_path / "metrics.jsonl").exists() == (kept == 6)


def test_a_stopped_run_keeps_nothing_that_is_not_finite(
    tiny_config, cache_folder, tmp_path, before_step
):
    before_step(2, partial(send, signal.SIGTERM))
    said = message(with_flaw(tiny_config, "Statistic"), tmp_path, cache_folder)
    assert said.startswith("at step 4, ")
    assert_kept(tmp_path, 2)


def test_the_validation_loss(tiny_config, cache_folder, tmp_path):
    """With one step an epoch no training loss comes after an update that is far too large."""
    tiny_config.batch_size = 48
    tiny_config.optimizer.learning_rate = 1e30
    said = message(tiny_config, tmp_path / "run", cache_folder)
    assert re.match(
        "the validation loss after step 1 is not a finite number "
        r"\(first in the activations of block\d\)",
        said,
    )
    assert not (tmp_path / "run/metrics.jsonl").exists()
    assert not list((tmp_path / "run/checkpoints").glob("*"))


def test_four_devices_say_the_same(run_command, cartoon_folder, tmp_path):
    failed = run_command(
        "main", "--config=tests/tiny_config.py", f"--config.data.source={cartoon_folder}",
        "--config.model.norm=tests.breaking_norms:Gradient", "--config.model.features=(4, 4)",
        "--config.debug.nans=True", "--notensorboard", f"--workdir={tmp_path}", status=2,
        **devices(4),
    )  # fmt: skip
    (error,) = failed.stderr.strip().splitlines()
    what, operation = FLAWS["Gradient"]
    assert error.startswith(
        "error: at step 4, with config.model.norm=tests.breaking_norms:Gradient"
    )
    assert f", {what} is not a finite number: " in error
    assert re.search(rf": .*\bnan\b.* {operation}", error)
    assert "Traceback" in (tmp_path / "log.txt").read_text()
