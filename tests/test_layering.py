"""Who may import whom: a file only from files above it in this list."""

import ast
import subprocess
import sys

import pytest

from tests.conftest import ROOT

ORDER = """
errors
locking watchdog
multihost
stopping provenance checkpoint run_dir
models: batch_norm convolution example_norm lookup pooling
models: layers weight_norm
models: norms
models: vgg
data: source
data: images
data: cartoons files tfds
data: labels
data: sources
data: cache splits windows
data: batches prepared
optimizer metrics parallel
state feed
run_data steps
lens
programs
evaluation
layer_look operations
finite
config_checks hooks trained
cli writers keeping
train
launch
main predict export
"""


def levels():
    """Yields each module's name and the number of its line."""
    for level, line in enumerate(ORDER.strip().split("\n")):
        package, _, names = line.rpartition(": ")
        for name in names.split():
            yield f"{package}.{name}".strip("."), level


LEVEL = dict(levels())


def modules():
    for path in sorted((ROOT / "bn_vgg").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT / "bn_vgg").with_suffix("").parts)
        if not name.endswith("__init__"):
            yield name, ast.parse(path.read_text())


def imported(tree):
    """Yields every module that a file's import statements name, wherever they stand."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_module_has_its_place():
    assert {name for name, _ in modules()} == set(LEVEL)


def test_imports_point_upwards():
    wrong = []
    for name, tree in modules():
        for target in imported(tree):
            target = target.removeprefix("bn_vgg.")
            if target in LEVEL and LEVEL[target] >= LEVEL[name]:
                wrong.append(f"{name} imports {target}")
    assert wrong == []


def test_only_these_see_flags_configs_and_heavy_packages():
    allowed = {
        "tensorflow_datasets": {"data.tfds"},
        "tensorflow": {"data.tfds", "writers"},
        "clu.metric_writers": {"writers"},
        "clu.periodic_actions": {"writers"},
        "tensorboard": {"writers"},
        "absl.flags": {"cli", "main", "predict", "export"},
        "ml_collections": {"cli", "main", "train", "launch"},
        "experiments": set(),
        "configs": set(),
    }
    for package, users in allowed.items():
        found = {
            name
            for name, tree in modules()
            if any(t == package or t.startswith(package + ".") for t in imported(tree))
        }
        assert found <= users, f"{package} is imported by {found - users}"


HEAVY = ("data.tfds", "writers")
COMMANDS = ("main", "predict", "export")


@pytest.mark.parametrize("command", COMMANDS)
def test_importing_all_but_these_two_needs_no_tensorflow(command):
    """Imports every module, for its own sake; of the commands one, as flags are global."""
    names = [name for name, _ in modules() if name not in (*HEAVY, *COMMANDS)]
    code = f"""
import importlib, sys
for name in {[*names, command]}:
    importlib.import_module("bn_vgg." + name)
heavy = [m for m in ("tensorflow", "tensorflow_datasets", "tensorboard") if m in sys.modules]
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_nothing_runs_at_import_but_definitions():
    """Statements at a module's top that are calls, flags aside."""
    for name, tree in modules():
        for node in tree.body:
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                assert ".defvjp(" in ast.unparse(node), f"{name}: {ast.unparse(node)}"
