"""The README says what is so: its commands, links and numbers."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from experiments import first_steps
from experiments.plan import find_preset, plan
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
FLAT = " ".join(README.split())
RESULTS = ROOT / "experiments" / "results"


def test_the_first_screen_has_exactly_two_commands():
    first_screen = README.split("Everything below assumes")[0]
    assert first_screen.count("\n") < 40
    commands = re.findall(r"```sh\n(.*?)```", first_screen, re.DOTALL)
    assert len(commands) == 2
    assert all(command.count("\n") == 1 for command in commands)
    assert "-m bn_vgg.main --config=configs/meanonly_crop.py:demo" in commands[0]
    assert "-m pytest" in commands[1]


def test_ci_runs_the_test_command_as_printed():
    """It searches for the line by this pattern, which must find that one and no other."""
    pattern = re.search(r"grep -m1 -E '(.*?)' README", (ROOT / ".ci" / "run").read_text())[1]
    assert len(re.findall(pattern, README, re.MULTILINE)) == 1


def test_links_lead_somewhere():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    local = [target for target in targets if not target.startswith("https://")]
    assert len(local) > 10
    assert [target for target in local if not (ROOT / target).exists()] == []


def test_the_sizes_of_packages_are_about_right():
    rows = re.findall(r"^\| \[bn_vgg(/?\w*)\].* \| ([\d,]+) \|$", README, re.MULTILINE)
    assert len(rows) == 6
    for folder, stated in rows:
        files = (ROOT / f"bn_vgg{folder}").glob("*.py" if not folder else "**/*.py")
        lines = sum(len(file.read_text().splitlines()) for file in files)
        assert abs(lines - int(stated.replace(",", ""))) < 100, folder


def test_every_config_it_names_is_there():
    named = set(re.findall(r"configs/(\w+)\.py", README))
    assert named
    assert [name for name in named if not (ROOT / "configs" / f"{name}.py").exists()] == []


@pytest.mark.slow
def test_the_example_of_an_own_normalizer_runs_as_printed(tmp_path, cache_folder):
    """In an empty folder, but for the checkout's code and the file that the section shows."""
    section = README.split("## Your own normalizer in five minutes")[1].split("\n## ")[0]
    (module,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (command,) = re.findall(r"```sh\n(.*?)```", section, re.DOTALL)
    (tmp_path / "my_norms.py").write_text(module)
    for name in ("bn_vgg", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    path = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env=os.environ | {"BN_VGG_CACHE": str(cache_folder), "PATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "epoch   1/1" in done.stdout
    result = json.loads((tmp_path / "runs/scale_only-demo/seed0/result.json").read_text())
    assert result["config"]["model"]["norm"] == "my_norms:ScaleOnlyBatchNorm"
    assert result["config"]["model"]["norm_kwargs"] == {"power": 0.5}


def test_the_example_of_an_own_sweep_can_be_planned(tmp_path):
    section = README.split("## Sweeps")[1].split("\n## ")[0]
    (preset,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    path = tmp_path / "decays.py"
    path.write_text(preset)
    runs = plan(find_preset(str(path)), variant="full", seeds=[0], settings={})
    assert [run.name for run in runs] == [
        f"meanonly_crop-norm_decay={decay}" for decay in (0.9, 0.99, 0.995)
    ]


def test_flags_that_it_names_exist():
    """Of the commands of experiments/, as they stand in the section on sweeps."""
    section = README.split("## Sweeps")[1].split("\n## Speed")[0]
    commands = re.findall(r"python -m experiments\.(\w+)((?:.*\\\n)*.*)", section)
    named = {
        (name, flag.replace("-", "_"))
        for name, rest in commands for flag in re.findall(r"--([\w-]+)", rest)
    }  # fmt: skip
    assert len(named) > 5
    sources = [
        path.read_text() for name in {name for name, _ in named}
        for path in [ROOT / "experiments" / f"{name}.py"]
    ]  # fmt: skip
    defined = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', "".join(sources)))
    assert {flag for _, flag in named} <= defined


def test_the_recorded_report_is_what_the_recorded_runs_say(tmp_path):
    """Made here again, all but the line that says of which commit it is."""
    done = subprocess.run(
        [sys.executable, "-m", "experiments.report", RESULTS, f"--output={tmp_path}"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    recorded, again = (
        [line for line in (folder / "report.md").read_text().splitlines()
         if not line.startswith("Made by ")]
        for folder in (RESULTS / "report", tmp_path)
    )  # fmt: skip
    assert [line.replace(str(RESULTS), "experiments/results") for line in again] == recorded
    assert "-dirty" not in (RESULTS / "report" / "report.md").read_text()


def test_every_recorded_result_says_how_it_was_got():
    results = [json.loads(path.read_text()) for path in RESULTS.glob("*/*/seed*/result.json")]
    assert len(results) >= 20
    assert all(result["command"] and result["commit"] for result in results)
    assert not any(result["commit"].endswith("-dirty") for result in results)


def test_numbers_are_the_reports():
    """Every row of the tables of what has been run, and the verdicts."""
    section = README.split("## What has been run")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    report = (RESULTS / "report" / "report.md").read_text()
    assert len(rows) == 10
    assert [row for row in rows if row not in report.splitlines()] == []
    said = " ".join(section.split())
    small = report.split("### The claims")[1]
    for number, verdict, difference, interval in (
        (2, "Contradicted", "-12.0 points", "-14.6 to -9.5"),
        (3, "Supported", "+5.4 points", "+0.5 to +10.3"),
    ):
        claim = small.split(f"#### {number}. ")[1].split("#### ")[0]
        assert f"**{verdict}.**" in claim
        assert f"Difference: {difference}, by Student's t {interval}, by" in claim
        assert f"{difference} ({interval})" in said
    spikes = "22 spikes in 90 epochs: 18 of the averages, 0 of the weights, 4 undecided."
    assert f"**Supported.** {spikes}" in small.split("#### 5. ")[1].split("\n\n")[1]
    assert spikes in said


def test_the_runs_that_take_off_are_the_recorded_ones():
    lines = (RESULTS / "start" / "start.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert (RESULTS / "start" / "start.md").read_text() == first_steps.page(records)
    assert not any(each["commit"].endswith("-dirty") for each in records)

    def taken_off(norm, bias_correction):
        runs = first_steps.of_setting(records, norm, bias_correction)
        off = sum(first_steps.last_error(run) < first_steps.TAKEN_OFF for run in runs)
        dead = sum(run["dead_units"] for run in runs) / len(runs)
        return f"{off} of {len(runs)}", f"{dead:.0%}"

    recipe, corrected = (taken_off("mean_only", correction) for correction in (False, True))
    none, none_corrected = (taken_off("none", correction)[0] for correction in (False, True))
    assert f"{recipe[0]} mean-only runs have a training error below 47%" in FLAT
    assert f"and {corrected[0]} with `--config.optimizer.bias_correction=True`" in FLAT
    assert f"{recipe[1]} of mean-only's hidden units are 0" in FLAT
    assert f"with bias correction {corrected[1]}." in FLAT
    assert f"Without normalization {none} take off and {none_corrected}" in FLAT


ANSWERED = sorted(path.stem for path in (RESULTS / "questions").glob("*.png"))


@pytest.mark.parametrize("question", ANSWERED)
def test_answers_are_what_the_recorded_runs_say(question, tmp_path):
    """Sentence by sentence, decided here again from the runs' lines."""
    out = tmp_path / "questions"
    shutil.copytree(RESULTS / "questions", out)
    (out / f"{question}.json").unlink()
    done = subprocess.run(
        [
            sys.executable, "-m", "experiments.questions", question, "--report_only",
            f"--out={out}",
        ],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads((out / f"{question}.json").read_text())
    assert answer["missing"] == []
    assert all(sentence in FLAT for sentence in answer["sentences"])
    assert f"experiments/results/questions/{question}.png" in README
    for path in (RESULTS / "questions").glob("*/seed*/result.json"):
        assert not json.loads(path.read_text())["commit"].endswith("-dirty")


def recorded_benchmark(name):
    recorded = json.loads((RESULTS / "benchmark" / name / "benchmark.json").read_text())
    assert recorded["commit"]
    assert not recorded["commit"].endswith("-dirty")
    return recorded


def test_the_benchmarks_table_is_the_recorded_one():
    recorded = recorded_benchmark("cpu_xeon")
    on_epyc = {
        (row["size"], row["norm"], row["dropout"]): row["times_torch"]
        for row in recorded_benchmark("cpu_epyc")["rows"]
    }
    for row in recorded["rows"]:
        cells = (
            row["size"], row["norm"], f"{row['dropout']:g}",
            f"{row['jax_images_per_second']:.0f}", f"{row['torch_images_per_second']:.0f}",
            f"{row['times_torch']:.2f}",
            f"{on_epyc[row['size'], row['norm'], row['dropout']]:.2f}",
        )  # fmt: skip
        assert f"| {' | '.join(map(str, cells))} |" in README
    plain = recorded_benchmark("cpu_xeon_plain")["rows"][0]["times_plain"]
    assert f"is {plain:.0f} times faster" in FLAT
    whole = recorded["training"]
    assert whole["train_images"] == 20_000
    assert (
        f"trains {whole['training_images_per_second']:.0f} images/s, "
        f"{whole['share_of_bare_in_training']:.0%} of the bare step"
    ) in FLAT
    assert f"it takes {whole['epoch_seconds']:.0f} s;" in FLAT
    assert f"evaluation steps are {whole['share_of_bare_in_epoch']:.0%} of that" in FLAT
    assert f"compared to them {whole['lens_share_of_epoch']:.1%}." in FLAT
    start = recorded["start"]
    assert f"{start['cold_seconds']:.1f} s with nothing compiled" in FLAT
    assert f"{start['warm_seconds']:.1f} s with compiled programs" in FLAT
