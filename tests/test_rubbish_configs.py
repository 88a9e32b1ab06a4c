"""Wrong configurations load and mean something, or end in one line that says what is wrong."""

import functools
import json
import math
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from bn_vgg.config import check_config
from bn_vgg.config_file import load_config
from bn_vgg.errors import UserError
from bn_vgg.models import make_model
from bn_vgg.optimizer import make_optimizer
from bn_vgg.run_dir import flatten
from bn_vgg.steps import init_state
from configs import default
from tests.conftest import ROOT
from tests.tiny_config import get_config

TINY = f"--config={ROOT}/tests/tiny_config.py"


# As they stand behind `--config.FIELD=`.
TEXTS = [
    "", " ", "abc", "nan", "inf", "-inf", "-1", "0", "0.5", "1e300", "1e-300", str(2**31),
    str(2**70), "9" * 5000, "None", "True", "false", "{'a': {'b': 1}}", "{}", "[]", "[1, 2]",
    "(0,)", "(1.5,)", "(True,)", "(99999999999,)", "\u2603", "\u0661", "a\nb", "x" * 50_000,
    "'quoted", "{" * 300, "1+1", "0x10", "\udcff", "..", "../../evil", "1j",
]  # fmt: skip
# As a file's own code may set them; types are not looked at there.
VALUES = [
    "", "abc", math.nan, math.inf, -math.inf, -1, 0, -0.0, 0.5, 1.0, 1e300, 1e-300, 2**31, 2**70,
    10**5000, None, True, False, {}, {"a": {"b": 1}}, [], [1, 2], (0,), (1, -1), ("a",), [2**70],
    [[1]], [1] * 500, "\u2603", "a\nb", "x" * 50_000, "..", "../evil", "a/b", b"bytes", 1j, {1, 2},
    object(), len, range(3), "\udcff", "nan",
]  # fmt: skip
KWARGS = [
    ("group", {"num_groups": value})
    for value in ("x", -1, 0, 1.5, 2**70, math.nan, None, [], {}, True, 7)
] + [
    ("batch_renorm", {"r_max": "x"}), ("batch_renorm", {"warmup_updates": {}}),
    ("ghost", {"ghost_size": 0}), ("ghost", {"ghost_size": "x"}), ("ghost", {"ghost_size": 2.5}),
    ("ghost", {"ghost_size": 2**70}), ("full", {"use_scale": {"a": []}}), ("full", {5: 5}),
    ("layer", {"reduction_axes": "x"}), ("layer", {"reduction_axes": [9]}), ("none", {"": ""}),
    ("layer", {"scale_init": "x"}), ("instance", {"epsilon": 1}), ("full", {"name": "x"}),
    ("full", {"parent": None}), ("filter_response", {"eps": math.inf}), ("full", {"a": object()}),
]  # fmt: skip
NORMS = [
    "nowhere:Norm", "builtins:len", "builtins:dict", "builtins:print", "sys:exit", "os:getcwd",
    ":", "a:", ":b", "...:x", "math:pi", "flax.linen:Dense", "flax.linen:Module", "json:loads",
    "x:y:z", "flax.linen:\u2603", "a\nb:c", "collections:OrderedDict",
    "tests.test_rubbish_configs:TEXTS",
]  # fmt: skip

_BASE = """\
from configs import default
from ml_collections import ConfigDict, FrozenConfigDict, config_dict
def get_config():
    config = default.get_config("demo")
"""
# Complete files.
FILES = {
    "raises": b"raise ValueError('first\\nsecond')",
    "exits": b"import sys; sys.exit(3)",
    "exits inside": b"def get_config(): raise SystemExit",
    "nothing": b"def get_config(): pass",
    "number": b"def get_config(): return 5",
    "no get_config": b"x = 1",
    "syntax": b"def (",
    "text": b"Dear Sir or Madam",
    "all bytes": bytes(range(256)),
    "not UTF-8": b"x = '\xff'",
    "empty config": b"from ml_collections import ConfigDict as get_config",
    "placeholder": (_BASE + "    config.seed = config_dict.placeholder(int)\n").encode(),
    "a field more": (_BASE + "    config.data.more = 1\n    return config").encode(),
    "a group more": (_BASE + "    config.more = ConfigDict({'x': 1})\n    return config").encode(),
    "a field less": (_BASE + "    del config.data['source']\n    return config").encode(),
    "no group": (
        _BASE + "    del config['model']\n    config.model = 5\n    return config"
    ).encode(),
}


@functools.cache
def build(about: str, crop_size: int) -> None:
    """Traces the network and its optimizer as a run would; nothing is computed."""
    config = json.loads(about)
    network = make_model(**config["model"])
    shape = jax.ShapeDtypeStruct((1, crop_size, crop_size, 3), jnp.float32)
    jax.eval_shape(
        functools.partial(init_state, network, make_optimizer(config, 200)),
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
    about = {key: config[key] for key in ("model", "optimizer", "schedule", "num_epochs")}
    build(json.dumps(about), config["data"]["crop_size"])
    return ""


def checked(config):
    check_config(config)
    return ConfigDict(config)


@pytest.mark.parametrize("field", flatten(default.get_config().to_dict()))
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
    ["--config=FOLDER/exits.py"], [TINY, "--config.model.features=" + "x" * 9000],
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
