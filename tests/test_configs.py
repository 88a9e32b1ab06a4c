"""The grid: each cell differs as its name says, every field is read, wrong ones are refused."""

import ast
import importlib

import jax
import jax.numpy as jnp
import pytest
from absl import flags
from ml_collections import config_flags

from bn_vgg.config_checks import _CHECKS, check_config
from bn_vgg.errors import UserError
from bn_vgg.run_dir import flatten
from configs import default
from tests.conftest import ROOT

CELLS = sorted({path.stem for path in (ROOT / "configs").glob("*.py")} - {"default", "__init__"})
VARIANTS = ("full", "small", "demo")
NORM_OF = {"baseline": "none", "meanonly": "mean_only", "full": "full"}


def get(cell, variant="full"):
    return importlib.import_module(f"configs.{cell}").get_config(variant)


def test_the_grid_is_complete():
    assert len(CELLS) == 9
    assert {cell.split("_")[0] for cell in CELLS} == set(NORM_OF)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_holds_only_its_difference(cell, variant):
    base, config = (flatten(c.to_dict()) for c in (default.get_config(variant), get(cell, variant)))
    differing = {field for field in base if base[field] != config[field]}
    parts = cell.split("_")
    expected = {"model.norm": NORM_OF[parts[0]]}
    if "crop" in parts:
        expected["data.min_side"] = {"full": 150, "small": 56, "demo": 36}[variant]
    if "dropout" in parts:
        expected["model.dropout_rate"] = 0.5
    expected["name"] = cell if variant == "full" else f"{cell}-{variant}"
    assert differing == {field for field, value in expected.items() if base[field] != value}
    assert all(config[field] == value for field, value in expected.items())
    check_config(get(cell, variant).to_dict())


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


def test_every_field_is_read():
    """A leaf that no module names is a setting without effect.

    Fields of `model` and `optimizer` are keyword arguments: their functions fail on one
    that they do not know, so it is enough that these are called with all of them.
    """
    names = set()
    for path in (ROOT / "bn_vgg").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                names.add(node.attr)
            elif isinstance(node, ast.arg):
                names.add(node.arg)
    # `variant` is read only to name the run and choose the sizes, in configs/ itself;
    # `resources` by sweeps, as a whole: tests/test_plan.py.
    unread = [
        field
        for field in flatten(default.get_config().to_dict())
        if field.split(".")[-1] not in names
        and field != "variant"
        and not field.startswith("resources.")
    ]
    assert unread == []


def test_every_field_is_checked():
    assert set(_CHECKS) == set(flatten(default.get_config().to_dict()))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model.norm", "bat", "no 'bat'; there are: none, mean_only, full, "),
        ("model.norm", "batch_norm", "no 'batch_norm'; did you mean full? there are: none, "),
        ("model.norm", "GroupNorm", "did you mean group? "),
        ("model.norm", "meanonly", "did you mean mean_only? "),
        ("model.stats_average", "mean", "it takes one of variance, stdev"),
        ("model.stats_pass", "both", "it takes one of dropout, clean"),
        ("eval.precise_examples", -1, "at least 0"),
        ("model.dtype", "float16", "it takes one of float32, bfloat16"),
        ("model.precision", "tf32", "it takes one of highest, tensorfloat32"),
        ("optimizer.bias_correction", 1, "it takes True or False"),
        ("model.padding", "valid", "it takes one of full, same"),
        ("model.dropout_rate", 1.0, "it takes from 0 to less than 1"),
        ("optimizer.learning_rate", float("nan"), "a positive finite number"),
        ("batch_size", 0, "at least 1"),
        ("num_epochs", -3, "from 1"),
        ("seed", -1, "from 0"),
        ("model.features", [], "positive integers"),
        ("data.crop_size", 129, "does not fit images scaled to config.data.min_side 128"),
    ],
)
def test_values_that_mean_nothing_are_refused(field, value, message):
    config = default.get_config()
    with config.ignore_type():
        config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError) as raised:
        check_config(config.to_dict())
    assert f"config.{field}" in str(raised.value)
    assert message in str(raised.value)


def test_tensorfloat32_is_of_float32():
    config = default.get_config()
    config.model.update(precision="tensorfloat32", dtype="bfloat16")
    with pytest.raises(UserError, match=r"of float32 products; config\.model\.dtype is bfloat16"):
        check_config(config.to_dict())


def test_an_unknown_variant_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown variant 'tiny'; there are: full, small, demo"):
        get("meanonly_crop", "tiny")


def test_overrides_reach_the_config():
    values = flags.FlagValues()
    path = ROOT / "configs" / "meanonly_crop.py"
    argv = ["x", f"--config={path}:small", "--config.seed=7", "--config.model.dtype=bfloat16"]
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    values(argv)
    assert values.config.seed == 7
    assert values.config.model.dtype == "bfloat16"
    assert values.config.data.min_side == 56


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_traces_a_step(cell):
    from bn_vgg.models import make_model
    from bn_vgg.optimizer import rmsprop
    from bn_vgg.state import init_state
    from bn_vgg.steps import make_train_step

    config = get(cell, "small")
    model, optimizer = make_model(**config.model), rmsprop(**config.optimizer)
    side, count = config.data.crop_size, config.batch_size

    def one_step():
        state = init_state(model, optimizer, jax.random.key(0), jnp.zeros((1, side, side, 3)))
        batch = {
            "windows_NWHWC": jax.numpy.zeros((count, 1, side, side, 3), "uint8"),
            "labels_N": jax.numpy.zeros(count, "int32"),
            "positions_N": jax.numpy.arange(count),
        }
        return make_train_step(model, optimizer)(state, batch, jax.random.key(1))

    state, _ = jax.eval_shape(one_step)
    assert bool(state.batch_stats) == (config.model.norm != "none")
