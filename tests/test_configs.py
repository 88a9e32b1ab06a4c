"""The grid: each cell differs as its name says, every field is read, wrong ones are refused."""

import ast
import importlib
import math
import re
import shutil

import jax
import jax.numpy as jnp
import pytest

import bn_vgg
from bn_vgg.config import _FIELDS, check_config
from bn_vgg.config_file import default_workdir, load_config
from bn_vgg.errors import UserError
from bn_vgg.optimizer import make_optimizer
from bn_vgg.run_dir import flatten
from bn_vgg.steps import init_state
from configs import default
from experiments.presets import CELLS
from tests import tiny_config
from tests.conftest import ROOT

NORM_OF = {"baseline": "none", "meanonly": "mean_only", "full": "full"}
TINY = f"--config={ROOT}/tests/tiny_config.py"


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_holds_only_its_difference(cell):
    norm, *parts = cell.split("_")
    for variant, side in (("full", 150), ("small", 56), ("demo", 36)):
        own = flatten(importlib.import_module(f"configs.{cell}").get_config(variant).to_dict())
        expected = {"model.norm": NORM_OF[norm]}
        if "crop" in parts:
            expected["data.min_side"] = side
        if "dropout" in parts:
            expected["model.dropout_rate"] = 0.5
        expected["name"] = cell if variant == "full" else f"{cell}-{variant}"
        assert own == flatten(default.get_config(variant).to_dict()) | expected


@pytest.mark.parametrize("norm", NORM_OF)
def test_a_cell_traces_a_step(norm):
    config = bn_vgg.get_config(f"{norm}_crop_dropout:demo")
    model, optimizer = bn_vgg.make_model(config), make_optimizer(config.to_dict(), 200)

    def one_step():
        state = init_state(model, optimizer, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        batch = {
            "crops": jnp.zeros((4, 1, 32, 32, 3), "uint8"),
            "label": jnp.zeros(4, "int32"),
            "position": jnp.arange(4),
        }
        return bn_vgg.make_train_step(config, model)(state, batch, jax.random.key(1))

    state, _ = jax.eval_shape(one_step)
    assert bool(state.batch_stats) == (norm != "baseline")


def test_the_default_is_the_published_recipe():
    """Each number is the post's recipe's."""
    config = flatten(default.get_config().to_dict())
    published = {
        "batch_size": 100, "data.crop_size": 128, "data.min_side": 128,
        "data.valid_examples": 2500, "model.norm_decay": 0.995, "model.norm_epsilon": 1e-4,
        "model.features": [20, 20, 50, 50, 50, 50, 50, 50], "model.hidden_units": 500,
        "model.padding": "full", "optimizer.learning_rate": 3e-4, "optimizer.decay": 0.999,
        "optimizer.epsilon": 1e-5, "model.dtype": "float32", "model.stats_pass": "clean",
        "model.stats_average": "stdev", "model.precision": "highest",
        "optimizer.bias_correction": False,
    }  # fmt: skip
    assert {field: config[field] for field in published} == published


def test_every_field_is_checked_and_read():
    """A leaf that no module names is a setting without effect.

    Fields of `model` and `optimizer` are keyword arguments: their functions fail on one that they
    do not know. `variant` is read in configs/ alone, `resources` by sweeps.
    """
    fields = flatten(default.get_config().to_dict())
    assert set(fields) == _FIELDS
    names = set()
    for path in (ROOT / "bn_vgg").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                names.add(node.attr)
            elif isinstance(node, ast.arg):
                names.add(node.arg)
            elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                names.add(node.slice.value)
    unread = {field for field in fields if field.split(".")[-1] not in names}
    assert unread - {"resources.CPU", "resources.GPU", "resources.TPU"} <= {"variant"}


def why_not(load):
    """Why a configuration is refused, in one line; empty for one that a run could be made of."""
    try:
        load()
    except UserError as error:
        why = str(error)
    else:
        return ""
    assert len(why.splitlines()) == 1
    return why


def with_value(field, value):
    """Raises a TypeError where ml_collections refuses a value of another type."""
    config = tiny_config.get_config()
    config.update_from_flattened_dict({field: value})
    return config.to_dict()


@pytest.mark.parametrize(("field", "value", "message"), [
    ("model.norm", "bat", "unknown name 'bat'; choose one of none, mean_only, full, "),
    ("model.stats_average", "mean", "it takes one of variance, stdev"),
    ("model.dropout_rate", 1.0, "it takes a number from 0 to less than 1"),
    ("model.features", (), "positive integers"),
    ("optimizer.learning_rate", math.nan, "a number from 1.18e-38 to less than 3.4e+38"),
    ("num_epochs", -3, "it takes a number from 1 to less than 1e+09"),
    ("num_epochs", None, "is None: give it a value"),
    ("data.crop_size", 19, "is more than config.data.min_side, 18"),
    ("seed", 2**63, "a number from 0 to less than 4.29e+09"),
    ("optimizer.name", "optax:lbfgs", "config.optimizer.name=optax:lbfgs: TypeError"),
    ("optimizer.name", "optax:noisy_sgd", "cannot store its state"),
    ("optimizer.name", "optax.contrib:schedule_free_sgd", "schedule-free optimizers"),
    ("name", "..", "the name of a folder"),
    ("model.norm_kwargs", {"x": 1}, "mean_only takes no 'x'; it takes: "),
    ("optimizer.kwargs", {"x": [{1: 2}]}, "the key 1 must be a string, as in JSON"),
    ("optimizer.kwargs", {"x": 1j}, "config.optimizer.kwargs cannot be written to config.json: "),
])  # fmt: skip
def test_what_it_says_of_a_value(field, value, message):
    why = why_not(lambda: check_config(with_value(field, value)))
    assert message in why
    assert field.split(".")[-1] in why


@pytest.mark.parametrize(
    ("field", "value"), [("schedule.warmup_epochs", 1.5), ("optimizer.name", "optax:polyak_sgd")]
)
def test_a_warm_up_ends_within_an_epoch_and_an_optimizer_takes_the_loss(field, value):
    assert not why_not(lambda: check_config(with_value(field, value)))


# As they stand behind `--config.FIELD=`; a file's own code may set other types, too.
TEXTS = [
    "", "abc", "nan", "-inf", "-1", "0.5", "1e300", str(2**70), "9" * 5000, "None", "True",
    "{'a': {'b': 1}}", "[1, 2]", "(1.5,)", "(99999999999,)", "\u2603", "a\nb", "'quoted",
    "{" * 300, "1+1", "0x10", "\udcff", "../../evil",
]  # fmt: skip
VALUES = [
    "", "abc", math.nan, math.inf, -1, 0, -0.0, 0.5, 1e300, 1e-300, 2**70, None, True, {},
    {"a": {"b": 1}}, [], (1, -1), ("a",), [2**70], [[1]], "a\nb", "..", "../evil",
    b"bytes", 1j, {1, 2}, object(), len, range(3), "\udcff",
]  # fmt: skip
REFUSED = {"batch_size", "model.norm", "model.features", "optimizer.decay", "debug.nans"}
KWARGS = [
    ("group", {"num_groups": "x"}), ("batch_renorm", {"r_max": "x"}),
    ("ghost", {"ghost_size": 2.5}), ("full", {5: 5}), ("full", {"parent": None}),
    ("tests.breaking_norms:Gradient", {}),
]  # fmt: skip


@pytest.mark.parametrize("field", sorted(_FIELDS))
def test_wrong_values_are_refused_in_one_short_line_that_names_the_field(field):
    for value in VALUES:
        try:
            config = with_value(field, value)
        except (TypeError, ValueError, AttributeError):  # of ml_collections
            continue
        why = why_not(lambda config=config: check_config(config))
        assert len(why) < 1000
        assert not why or field.rpartition(".")[2] in why, why
    for text in TEXTS if field in REFUSED else []:
        why = why_not(lambda text=text: load_config([TINY, f"--config.{field}={text}"]))
        assert not why or field.rpartition(".")[2] in why, (text[:50], why[:500])


@pytest.mark.parametrize(("norm", "kwargs"), KWARGS)
def test_wrong_arguments_of_normalizers(norm, kwargs):
    config = with_value("model.norm", norm)
    config["model"]["norm_kwargs"] = kwargs
    config["eval"]["statistics"] = "precise"  # for which the last has no momentum
    assert "config.model" in why_not(lambda: check_config(config))


_BASE = b"""\
from configs import default
from ml_collections import ConfigDict, config_dict
def get_config():
    config = default.get_config("demo")
"""
# Complete files.
FILES = {
    "raises": b"raise ValueError('first\\nsecond')",
    "exits": b"import sys; sys.exit(3)",
    "nothing": b"def get_config(): pass",
    "no get_config": b"x = 1",
    "syntax": b"def (",
    "all bytes": bytes(range(256)),
    "empty config": b"from ml_collections import ConfigDict as get_config",
    "placeholder": _BASE + b"    config.seed = config_dict.placeholder(int)\n",
    "a field more": _BASE + b"    config.data.more = 1\n    return config",
    "a field less": _BASE + b"    del config.data['source']\n    return config",
    "no group": _BASE + b"    del config['model']\n    config.model = 5\n    return config",
}


@pytest.mark.parametrize("name", FILES)
def test_wrong_files(name, tmp_path):
    """Each after a good one, whose names it must not see."""
    path = tmp_path / f"{name}.py"
    path.write_bytes(FILES[name])
    load_config([TINY])
    why = why_not(lambda: load_config([f"--config={path}", "--config.seed=3"]))
    assert why.startswith((f"--config={path}: ", "config.", "no field "))


@pytest.mark.parametrize("name", ["", "x" * 5000, "a\nb", "\udcff", "/", ":", "a\0b", "configs"])
def test_no_files(name):
    assert why_not(lambda: load_config([f"--config={name}"])).startswith("--config: no file")


@pytest.mark.parametrize(("arguments", "message"), [
    ([f"--config={ROOT}/configs/full.py:tiny"], "'tiny'; choose one of full, small, demo"),
    ([TINY, "--config.model.nrom=full"], "no field config.model.nrom; did you mean model.no"),
    ([TINY, "--config.variant=small"], "a variant is named by --config=FILE:VARIANT"),
    ([TINY, "--config.model.norm_kwargs=5"], "as a ConfigDict: `5` is not a dict"),
    ([TINY, "--config.model.norm_kwargs.x=1"], "write --config.model.norm_kwargs=\"{'x': value}\""),
    ([TINY, '--config.model.features=(4,"a")'], "it takes positive integers"),
    (["--config=configs/full.py"], "no file configs/full.py; there is no configs/ in "),
])  # fmt: skip
def test_what_it_says_of_arguments(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in why_not(lambda: load_config(arguments))


@pytest.mark.parametrize(("overrides", "name"), [
    ([], "meanonly_crop/seed0"),
    (["seed=3", "num_epochs=9", "data.source=cartoons", "eval.batch_size=7"],
     "meanonly_crop/seed3"),
    (["model.norm=full"], "meanonly_crop-norm=full/seed0"),
    (["model.norm=group", "model.norm_kwargs={'num_groups': 5}"],
     "meanonly_crop-norm=group-num_groups=5/seed0"),
    (["name=a b&c"], "a_b_c/seed0"),
    (["model.features=" + str((4,) * 14 + (8,) * 14)], None),
    (["name=" + "x" * 200], None),
])  # fmt: skip
def test_the_default_workdir_says_what_was_overridden(overrides, name):
    path = ROOT / "configs/meanonly_crop.py"
    arguments = [f"--config={path}", *(f"--config.{override}" for override in overrides)]
    workdir = default_workdir(load_config(arguments))
    assert name is None or workdir == f"runs/{name}"
    assert re.fullmatch(r"runs/[^/]{1,100}/seed\d", workdir)
    other = load_config([*arguments, "--config.batch_size=99"])
    assert default_workdir(other) != workdir


def test_a_file_from_elsewhere_finds_its_siblings(tmp_path, monkeypatch):
    """And not those of the current folder, nor of one that was loaded before."""
    for where, seed in (("here", 1), ("elsewhere", 2)):
        folder = shutil.copytree(ROOT / "configs", tmp_path / where / "configs")
        text = (folder / "default.py").read_text()
        (folder / "default.py").write_text(text.replace("config.seed = 0", f"config.seed = {seed}"))
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(tmp_path / "here")
    for path, seed in (("configs/full.py", 1), (tmp_path / "elsewhere/configs/full.py", 2)):
        config = load_config([f"--config={path}:demo"])
        assert (config.seed, config.name) == (seed, "full-demo")
    assert bn_vgg.get_config("full:demo").seed == 0
