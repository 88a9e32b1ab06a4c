"""The READMEs say what is so: their commands, links and numbers."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import bn_vgg
from experiments import comparison, plan, stats
from experiments.runs import read_runs
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
FLAT = " ".join(README.split())
RESULTS = ROOT / "experiments" / "results"
PAGES = [ROOT / "README.md", ROOT / "bn_vgg" / "README.md", ROOT / "experiments" / "README.md"]


def test_the_first_screen_has_exactly_two_commands():
    first_screen = README.split("Everything below assumes")[0]
    assert first_screen.count("\n") < 40
    commands = re.findall(r"```sh\n(.*?)```", first_screen, re.DOTALL)
    assert len(commands) == 2
    assert all(command.count("\n") == 1 for command in commands)
    assert "-m bn_vgg.main --config=configs/meanonly_crop.py:demo" in commands[0]
    assert "-m pytest" in commands[1]


def test_it_is_short():
    assert len(README.split()) <= 1600


def test_ci_runs_the_test_command_as_printed():
    """It searches for the line by this pattern, which must find that one and no other."""
    pattern = re.search(r"grep -m1 -E '(.*?)' README", (ROOT / ".ci" / "run").read_text())[1]
    assert len(re.findall(pattern, README, re.MULTILINE)) == 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    local = [target for target in targets if not target.startswith("https://")]
    assert local
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_every_config_it_names_is_there():
    named = set(re.findall(r"configs/(\w+)\.py", "".join(page.read_text() for page in PAGES)))
    assert named
    assert [name for name in named if not (ROOT / "configs" / f"{name}.py").exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_flags_of_the_commands_exist(page):
    text = page.read_text().replace("\\\n", " ")
    named = {
        (module, flag.replace("-", "_"))
        for module, rest in re.findall(r"python -m ([\w.]+)(.*)", text)
        for flag in re.findall(r"--(?!config\.)(?:no(?=tensorboard))?([\w-]+)", rest)
    }
    for module, flag in named:
        source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
        assert re.search(rf'DEFINE_\w+\(\s*"{flag}"', source), f"{module} --{flag}"


# The demo with fewer drawings and a network that compiles in seconds.
SMALLER = {
    "data.source": "cartoons:300", "data.valid_examples": 50, "data.test_examples": 50,
    "model.features": (4, 6), "model.hidden_units": 8,
}  # fmt: skip


@pytest.mark.usefixtures("quick_compilation")
def test_the_example_of_a_normalizer_runs_as_printed(tmp_path, cache_folder, monkeypatch):
    """In an empty folder, but for the code and the files that the section shows."""
    section = README.split("## Your own normalizer")[1].split("\n## ")[0]
    module, preset = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    command, comparison = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    (tmp_path / "my_norms.py").write_text(module)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    smaller = "".join(f" --config.{field}='{value}'" for field, value in SMALLER.items())
    smaller += " --notensorboard"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command.rstrip() + smaller, shell=True, cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"BN_VGG_CACHE": str(cache_folder), "PATH": path, "PYTHONPATH": str(ROOT)},
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "epoch   1/1" in done.stdout
    # What was overridden, and a digest of what is too long.
    name = (
        "scale_only-demo-test_examples=50-valid_examples=50-features=_4_6_-hidden_units=8"
        "-norm=my_no-3abccb27"
    )
    result = json.loads((tmp_path / "runs" / name / "seed0/result.json").read_text())
    config = result["config"]
    assert config["model"]["norm"] == "my_norms:ScaleOnlyBatchNorm"
    assert config["model"]["norm_kwargs"] == {"power": 0.5}

    # Nine more runs would take minutes: that they are planned is enough.
    (name,) = re.findall(r"--preset=(\S+)", comparison)
    (tmp_path / name).write_text(preset)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with jax.numpy_rank_promotion("allow"):  # as users have it
        runs = plan.plan(plan.find_preset(name), variant="demo", seeds=[0, 1, 2], settings={})
    assert len(runs) == 9
    assert f"runs/{Path(name).stem}-demo" in comparison


@pytest.mark.usefixtures("quick_compilation")
def test_the_python_example_runs_as_printed(tmp_path, cache_folder, monkeypatch, capfd):
    (code,) = re.findall(r"```python\n(import bn_vgg\n.*?)```", README, re.DOTALL)
    get_config = bn_vgg.get_config

    def smaller(name):
        config = get_config(name)
        config.update_from_flattened_dict(SMALLER)
        return config

    monkeypatch.setattr(bn_vgg, "get_config", smaller)
    monkeypatch.setenv("BN_VGG_CACHE", str(cache_folder))
    monkeypatch.chdir(tmp_path)
    names = {"images": [np.zeros((40, 50, 3), np.uint8)] * 2}
    exec(code, names)
    assert names["probabilities"].shape == (2, 2)
    assert names["result"]["best_epoch"] == 1
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.rglob("events.*"))


def test_every_recorded_result_says_how_it_was_got():
    results = [json.loads(path.read_text()) for path in RESULTS.glob("*/*/seed*/result.json")]
    assert len(results) >= 20
    assert all(result["command"] and result["commit"] for result in results)
    assert not any(result["commit"].endswith("-dirty") for result in results)


def test_the_runs_that_take_off_are_the_recorded_ones():
    lines = (RESULTS / "start" / "start.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert not any(each["commit"].endswith("-dirty") for each in records)

    def taken_off(norm, bias_correction):
        wanted = norm, bias_correction
        runs = [r for r in records if (r["norm"], r["bias_correction"]) == wanted]
        assert len(runs) == 8
        return sum(sum(run["error_rate"][-20:]) / 20 < 0.47 for run in runs)

    recipe, corrected = (taken_off("mean_only", correction) for correction in (False, True))
    none, none_corrected = (taken_off("none", correction) for correction in (False, True))
    assert f"{recipe} of 8 mean-only runs have a training error below 47%" in FLAT
    assert f"47%, {corrected} with `--config.optimizer.bias_correction=True`" in FLAT
    assert f"without normalization {none} of 8, and {none_corrected} if corrected" in FLAT


def test_the_champions_error_is_the_recorded_one():
    said = []
    for folder in ("champion/champion_muon-small", "five_way/meanonly_crop-small"):
        results = [json.loads(p.read_text()) for p in (RESULTS / folder).glob("seed*/result.json")]
        said.append(stats.error_rate([result["test_error_rate"] for result in results]))
    assert f"its test error is {said[0]}, that of `meanonly_crop` {said[1]}" in FLAT


def test_verdicts_and_errors_are_the_recorded_reports():
    report = (RESULTS / "report" / "report.md").read_text()
    verdicts = [line for line in report.splitlines() if line.startswith("- **")]
    for number, said, found in (
        ("2", "contradicted", ("12.8 points (95% interval ",)),
        ("3", "supported", ("10.7% ± 0.3 (5 seeds)", "14.8% ± 0.8 (5 seeds)", "+1.3 to +7.0")),
        ("5", "supported", ("55 spikes in 330 epochs: 42 from the averages, 0 from the weights",)),
    ):
        row = next(line for line in verdicts if line.startswith(f"- **{said}**: {number}. "))
        assert all(each in row and each in FLAT for each in found)
    assert "-dirty" not in report


def test_the_time_to_90_percent_is_the_recorded_one():
    _, epochs, _ = read_runs(RESULTS / "speedrun")
    minutes = list(comparison.seconds_to(epochs, 10) / 60)
    said = f"{stats.with_error(minutes, ' minutes')} ({len(minutes)} seeds)"
    assert said in " ".join((ROOT / "experiments" / "README.md").read_text().split())


def test_speeds_are_the_recorded_ones():
    """Of the mean-only step on the Xeon, against PyTorch and against XLA's own gradients."""
    text = " ".join((ROOT / "experiments" / "README.md").read_text().split())

    def recorded(name):
        found = json.loads((RESULTS / "benchmark" / name / "benchmark.json").read_text())
        assert not found["commit"].endswith("-dirty")
        return [row for row in found["rows"] if row["norm"] == "mean_only"]

    times = {(row["size"], row["dropout"]): row["times_torch"] for row in recorded("cpu_xeon")}
    small, large = (f"{times[size, 0]:.2f} times" for size in (48, 128))
    assert f"has {small} PyTorch's speed at 48x48 and {large} at 128x128" in text
    assert f"with dropout {times[48, 0.5]:.2f} and {times[128, 0.5]:.2f} times" in text
    (plain,) = recorded("cpu_xeon_plain")
    assert f"is {plain['times_plain']:.0f} times faster than with XLA's own gradients" in text
