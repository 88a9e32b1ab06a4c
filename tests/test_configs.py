"""The grid: each cell differs as its name says, every field is read, wrong ones are refused."""

import ast
import re
import shutil

import jax
import jax.numpy as jnp
import pytest

import bn_vgg
from bn_vgg import config_file
from bn_vgg.config import _CHECKS, check_config
from bn_vgg.errors import UserError
from bn_vgg.optimizer import make_optimizer
from bn_vgg.run_dir import flatten
from bn_vgg.steps import init_state
from configs import default
from tests.conftest import ROOT

CELLS = sorted({path.stem for path in (ROOT / "configs").glob("*.py")} - {"default", "__init__"})
VARIANTS = ("full", "small", "demo")
NORM_OF = {"baseline": "none", "meanonly": "mean_only", "full": "full"}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_holds_only_its_difference(cell, variant):
    config = bn_vgg.get_config(f"{cell}:{variant}")
    check_config(config.to_dict())
    base, own = (flatten(c.to_dict()) for c in (default.get_config(variant), config))
    norm, *parts = cell.split("_")
    expected = {"model.norm": NORM_OF[norm]}
    if "crop" in parts:
        expected["data.min_side"] = {"full": 150, "small": 56, "demo": 36}[variant]
    if "dropout" in parts:
        expected["model.dropout_rate"] = 0.5
    expected["name"] = cell if variant == "full" else f"{cell}-{variant}"
    assert own == base | expected


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_traces_a_step(cell):
    config = bn_vgg.get_config(f"{cell}:small")
    model = bn_vgg.make_model(config)
    side, count = config.data.crop_size, config.batch_size

    def one_step():
        optimizer = make_optimizer(config.to_dict(), 200)
        state = init_state(model, optimizer, jax.random.key(0), jnp.zeros((1, side, side, 3)))
        batch = {
            "crops": jnp.zeros((count, 1, side, side, 3), "uint8"),
            "label": jnp.zeros(count, "int32"),
            "position": jnp.arange(count),
        }
        return bn_vgg.make_train_step(config, model)(state, batch, jax.random.key(1))

    state, _ = jax.eval_shape(one_step)
    assert bool(state.batch_stats) == (config.model.norm != "none")


def test_the_grid_is_complete():
    assert len(CELLS) == 9
    assert {cell.split("_")[0] for cell in CELLS} == set(NORM_OF)


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
    assert set(_CHECKS) == set(fields)
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


@pytest.mark.parametrize(("field", "value", "message"), [
    ("model.norm", "bat", "no 'bat'; there are: none, mean_only, full, "),
    ("model.norm", "batch_norm", "no 'batch_norm'; did you mean full? there are: none, "),
    ("model.norm", "GroupNorm", "did you mean group? "),
    ("model.norm", "meanonly", "did you mean mean_only? "),
    ("model.norm", "nowhere:Norm", "cannot import nowhere:Norm: ModuleNotFoundError"),
    ("model.stats_average", "mean", "it takes one of variance, stdev"),
    ("model.precision", "tf32", "it takes one of highest, tensorfloat32"),
    ("model.dropout_rate", 1.0, "it takes from 0 to less than 1"),
    ("model.features", [], "positive integers"),
    ("optimizer.bias_correction", 1, "it takes True or False"),
    ("optimizer.learning_rate", float("nan"), "a positive finite number"),
    ("num_epochs", -3, "from 1"),
    ("data.crop_size", 129, "does not fit images scaled to config.data.min_side 128"),
    ("batch_size", True, "an integer"),
    ("eval.batch_size", 2**31, "an integer"),
    ("seed", 2**63, "an integer from 0 to less than"),
    ("optimizer.decay", 1.0, "from 0 to less than 1"),
    ("optimizer.epsilon", 1e300, "a positive finite number of float32"),
    ("resources.CPU", float("inf"), "from 0 to less than"),
    ("name", "..", "a name without slashes"),
    ("model.features", (4, 10**9), "2,147,483,648 at most"),
    ("model.features", [4] * 101, "100 at most"),
    ("model.features", [4] * 20, "the poolings after 20 layers leave nothing"),
])  # fmt: skip
def test_values_that_mean_nothing_are_refused(field, value, message):
    config = default.get_config()
    config.model.padding = "same"
    with config.ignore_type():
        config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        check_config(config.to_dict())
    assert f"config.{field}" in str(raised.value)


@pytest.mark.parametrize(("overrides", "name"), [
    ([], "meanonly_crop/seed0"),
    (["seed=3", "num_epochs=9", "data.source=cartoons", "eval.batch_size=7"],
     "meanonly_crop/seed3"),
    (["model.norm=full"], "meanonly_crop-norm=full/seed0"),
    (["model.norm=group", "model.norm_kwargs={'num_groups': 5}"],
     "meanonly_crop-norm=group-num_groups=5/seed0"),
    (["name=a b&c"], "a_b_c/seed0"),
    (["model.features=" + str((4,) * 90)], None),
    (["name=" + "x" * 200], None),
])  # fmt: skip
def test_the_default_workdir_says_what_was_overridden(overrides, name):
    path = ROOT / "configs/meanonly_crop.py"
    arguments = [f"--config={path}", *(f"--config.{override}" for override in overrides)]
    workdir = config_file.default_workdir(config_file.load_config(arguments))
    assert name is None or workdir == f"runs/{name}"
    runs, folder, seed = workdir.split("/")
    assert (runs, seed[:4]) == ("runs", "seed")
    assert len(folder.encode()) <= 100
    other = config_file.load_config([f"--config={path}", *arguments[1:], "--config.batch_size=99"])
    assert config_file.default_workdir(other) != workdir


def test_a_file_from_elsewhere_finds_its_siblings(tmp_path, monkeypatch):
    """And not those of the current folder, nor of one that was loaded before."""
    for where, seed in (("here", 1), ("elsewhere", 2)):
        folder = shutil.copytree(ROOT / "configs", tmp_path / where / "configs")
        text = (folder / "default.py").read_text()
        (folder / "default.py").write_text(text.replace("config.seed = 0", f"config.seed = {seed}"))
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.syspath_prepend(tmp_path / "here")
    for path, seed in (("configs/full.py", 1), (tmp_path / "elsewhere/configs/full.py", 2)):
        config = config_file.load_config([f"--config={path}:demo"])
        assert (config.seed, config.name) == (seed, "full-demo")
    assert bn_vgg.get_config("full:demo").seed == 0
