"""Wrong configurations load and mean something, or end in one line that says what is wrong."""

import functools
import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from bn_vgg.cli import load_config
from bn_vgg.config import check_config
from bn_vgg.errors import UserError
from bn_vgg.models import make_model
from bn_vgg.optimizer import rmsprop
from bn_vgg.steps import init_state
from tests.conftest import ROOT
from tests.rubbish_configs import FILES, KWARGS, NORMS, TEXTS, VALUES, fields
from tests.tiny_config import get_config

TINY = f"--config={ROOT}/tests/tiny_config.py"


@functools.cache
def build(model: str, optimizer: str, crop_size: int) -> None:
    """Traces the network and its optimizer as a run would; nothing is computed."""
    network = make_model(**json.loads(model))
    shape = jax.ShapeDtypeStruct((1, crop_size, crop_size, 3), jnp.float32)
    jax.eval_shape(
        functools.partial(init_state, network, rmsprop(**json.loads(optimizer))),
        jax.random.key(0), shape,
    )  # fmt: skip


def outcome(load) -> str:
    """Returns why a configuration is refused, empty for one that a run could be made of."""
    try:
        config = load().to_dict()
    except UserError as error:
        text = str(error)
        assert text
        assert len(text.splitlines()) == 1
        return text
    build(json.dumps(config["model"]), json.dumps(config["optimizer"]), config["data"]["crop_size"])
    return ""


def checked(config):
    check_config(config)
    return ConfigDict(config)


@pytest.mark.parametrize("field", fields())
def test_wrong_values(field):
    """On the command line, and in a file, whose types nobody else looks at."""
    name = field.rpartition(".")[2]
    for text in TEXTS:
        why = outcome(lambda text=text: load_config([TINY, f"--config.{field}={text}"]))
        assert not why or name in why, (text[:50], why[:500])
    for value in VALUES:
        config = get_config().to_dict()
        *groups, _ = field.split(".")
        functools.reduce(dict.__getitem__, groups, config)[name] = value
        why = outcome(lambda config=config: checked(config))
        assert not why or name in why, why[:500]
        assert len(why) < 1000


@pytest.mark.parametrize(("field", "value"), [
    ("batch_size", True), ("batch_size", 8.0), ("seed", 2**63), ("optimizer.learning_rate", 1e300),
    ("model.norm_decay", float("nan")), ("model.hidden_units", 2**30), ("name", ".."),
    ("model.features", [2**20] * 4), ("model.features", [1] * 101), ("data.source", 5),
    ("model.per_device_stats", 1), ("eval.batch_size", 2**31), ("resources.CPU", float("inf")),
])  # fmt: skip
def test_what_would_crash_or_take_all_memory_later_is_refused(field, value):
    config = get_config()
    with config.ignore_type():
        config.update_from_flattened_dict({field: value})
    assert f"config.{field}" in outcome(lambda: checked(config.to_dict()))


def test_poolings_that_leave_nothing_are_refused():
    config = get_config().to_dict()
    config["model"] |= {"padding": "same", "features": (4,) * 10}  # 16 pixels, halved five times
    assert "config.model.features: the poolings after 10 layers leave nothing" in outcome(
        lambda: checked(config)
    )


@pytest.mark.parametrize(("norm", "kwargs"), [*KWARGS, *((norm, {}) for norm in NORMS)])
def test_wrong_normalizers(norm, kwargs):
    config = get_config().to_dict()
    config["model"] |= {"norm": norm, "norm_kwargs": kwargs}
    why = outcome(lambda: checked(config))
    assert "config.model.norm" in why or norm not in NORMS or norm == "flax.linen:Dense"


@pytest.mark.parametrize("name", FILES)
def test_wrong_files(name, tmp_path):
    path = tmp_path / f"{name}.py"
    path.write_bytes(FILES[name])
    for more in ([], ["--config.seed=3"]):
        why = outcome(lambda more=more: load_config([f"--config={path}", *more]))
        assert why.startswith((f"--config={path}: ", "config.", "no field "))


@pytest.mark.parametrize("name", ["", "x" * 5000, "a\nb", "\udcff", "/", ":", "a\0b", "configs"])
def test_no_files(name):
    assert outcome(lambda: load_config([f"--config={name}"])).startswith("--config: no file")


@pytest.mark.parametrize(("arguments", "message"), [
    ([f"--config={ROOT}/configs/full.py:tiny"], "'tiny'; there are: full, small, demo"),
    ([TINY, "--config.model.nrom=full"], "no field config.model.nrom; did you mean model.no"),
    ([TINY, "--config.variant=small"], f"a variant is named by {TINY}:small"),
    ([TINY, "--config.model.norm_kwargs={'x': 1}"], "mean_only takes no 'x'; it takes: "),
    ([TINY, "--config.model.norm_kwargs=5"], "as a ConfigDict: `5` is not a dict"),
    ([TINY, "--config.model.norm_kwargs.x=1"], "is given as a whole: --config.model.norm_kwargs="),
    ([TINY, '--config.model.features=(4,"a")'], "it takes positive integers"),
])  # fmt: skip
def test_what_it_says(arguments, message):
    assert message in outcome(lambda: load_config(arguments))


def test_a_start_from_elsewhere_says_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    why = outcome(lambda: load_config(["--config=configs/full.py"]))
    assert f"no file configs/full.py; there is no configs/ in {tmp_path}: " in why


def test_a_file_does_not_see_what_another_defined(tmp_path):
    (tmp_path / "empty.py").touch()
    load_config([TINY])
    assert "no attribute 'get_config'" in outcome(
        lambda: load_config([f"--config={tmp_path}/empty.py"])
    )


@pytest.mark.parametrize("arguments", [
    ["--config=FOLDER/exits.py"], [TINY, "--config.model.features=" + "-" * 9000 + "1"],
    [TINY, "--config.data.source=./\udcff"],
])  # fmt: skip
def test_the_command_ends_in_one_line(arguments, tmp_path):
    (tmp_path / "exits.py").write_bytes(FILES["exits"])
    arguments = [argument.replace("FOLDER", str(tmp_path)) for argument in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "bn_vgg.main", *arguments, f"--cache_dir={tmp_path}/cache"],
        cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: .*\n", done.stderr)
