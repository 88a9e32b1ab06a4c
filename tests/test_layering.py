"""Who may import whom, and what an import costs."""

import ast
import subprocess
import sys

import pytest

from tests.conftest import ROOT

# A module imports from the lines below its own. Within `models` and `data` the order is free.
ORDER = """
main predict export
api
launch
loop
cli finite
config_file
config programs
evaluation weights
data
devices run_dir steps writers
optimizer
augment checkpoint locking metrics models multihost provenance stopping
errors
"""
LEVEL = {name: i for i, line in enumerate(ORDER.split("\n")) for name in line.split()}
COMMANDS = ("main", "predict", "export")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text())
    for path in sorted((ROOT / "bn_vgg").rglob("*.py"))
}


def imported(tree):
    """Every module that a file's import statements name, wherever they stand."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def place(module):
    """A module's name in ORDER, if it is one of ours."""
    return f"{module}.".split(".")[1] if module.startswith("bn_vgg.") else None


def test_every_module_has_its_place():
    assert {place(name) for name in MODULES if name != "bn_vgg.__init__"} == set(LEVEL)


def test_imports_go_one_way():
    wrong = [
        f"{name} imports {target}"
        for name, tree in MODULES.items()
        for target in imported(tree)
        if place(name) in LEVEL and place(target) in LEVEL and place(name) != place(target)
        if LEVEL[place(name)] >= LEVEL[place(target)]
    ]
    assert wrong == []


@pytest.mark.parametrize(("package", "users"), [
    ("absl.flags", {"cli", "config_file", *COMMANDS}),
    ("ml_collections", {"config_file", "main", "loop", "launch", "api"}),
    ("experiments", set()),
])  # fmt: skip
def test_only_these_import(package, users):
    found = {
        name
        for name, tree in MODULES.items()
        if any(f"{target}.".startswith(f"{package}.") for target in imported(tree))
    }
    assert found <= {f"bn_vgg.{name}" for name in users}


def test_every_module_is_imported_without_tensorflow_or_a_backend():
    """Of the commands `main` alone, as flags are global. Others call `jax.distributed` first."""
    left_out = {f"bn_vgg.{name}" for name in COMMANDS if name != "main"}
    left_out |= {name for name, tree in MODULES.items() if "tensorflow_datasets" in imported(tree)}
    assert len(left_out) == 3
    names = [name.removesuffix(".__init__") for name in MODULES if name not in left_out]
    code = f"""
import importlib, sys
for name in {names}:
    importlib.import_module(name)
heavy = {{"tensorflow", "tensorflow_datasets", "tensorboard", "matplotlib"}} & sys.modules.keys()
assert not heavy, heavy
from bn_vgg import config_file
for given in (["champion.py"], ["full.py", "--config.model.name=resnet"],
              ["full.py", "--config.model.norm_kwargs={{'use_scale': False}}"]):
    config_file.load_config([f"--config=configs/{{given[0]}}", *given[1:]])
from jax._src import xla_bridge
assert not xla_bridge._backends
"""
    environment = {"PATH": "", "HOME": "/nowhere"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
