"""Named experiments: each rule's verdicts from made-up lines, and the command around them."""

import json
import os
import re
import shlex
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_vgg import train
from bn_vgg.data.batches import Images
from bn_vgg.data.prepared import prepare
from bn_vgg.data.windows import five_windows
from bn_vgg.hooks import Hooks
from bn_vgg.vgg import make_model
from bn_vgg.workdir import Workdir
from experiments import answers, mechanism
from experiments import early as early_rule
from experiments.diagnosis import Run, Sizes
from tests.conftest import ROOT
from tests.tiny_config import get_config

SIZES = Sizes(valid=2500, compared=1000)
KEYS = {
    "valid": "valid/error_rate",
    "train": "train/error_rate",
    "running": "valid/error_rate_running",
    "precise": "valid/error_rate_precise",
    "batch": "valid/error_rate_batch",
    "loss": "train/loss",
    "step": "step",
}


def made_of(epochs):
    """Lines of metrics.jsonl, from dicts with short names."""
    return [
        {"epoch": epoch} | {KEYS[name]: of for name, of in line.items()}
        for epoch, line in enumerate(epochs, start=1)
    ]


def run_of(*epochs):
    return Run(made_of(epochs), {}, SIZES)


def first(total, running, precise, **more):
    return run_of({"valid": total, "running": running, "precise": precise} | more)


def early(own, fast, baseline=0.30, large=None):
    """Runs of one seed each; `own` is (validation, running, precise), `fast` (running, precise)."""
    runs = {"mean-only": {}, "decay 0.9": {}, "batch 400": {}, "baseline": {}}
    for seed, errors in enumerate(own):
        runs["mean-only"][seed] = first(*errors, loss=0.6, step=200, batch=errors[2] + 0.01)
        runs["baseline"][seed] = run_of({"valid": baseline})
        if fast:
            runs["decay 0.9"][seed] = first(0.3, *fast, loss=0.6, step=200)
        if large:
            runs["batch 400"][seed] = large
    return runs


class TestEarly:
    @pytest.mark.parametrize(
        ("own", "fast", "verdict"),
        [
            # 10 points worse, all of it the averages', which a fast decay takes away.
            ([(0.40, 0.40, 0.30)], (0.31, 0.30), "lagging averages"),
            ([(0.40, 0.40, 0.30)] * 2, (0.31, 0.30), "lagging averages"),
            # Exactly as much as a fast decay has to take away (sixteenths are exact), and less.
            ([(0.50, 0.50, 0.25)], (0.375, 0.25), "lagging averages"),
            ([(0.50, 0.50, 0.25)], (0.40, 0.25), "undecided"),
            ([(0.40, 0.40, 0.30)], None, "undecided"),
            # Precise statistics leave nearly all.
            ([(0.40, 0.40, 0.39)], (0.40, 0.39), "noisy batches"),
            # One seed each way.
            ([(0.40, 0.40, 0.30), (0.40, 0.40, 0.39)], (0.31, 0.30), "undecided"),
            ([(0.40, 0.40, 0.30), (0.30, 0.30, 0.30)], (0.31, 0.30), "undecided"),
            # Better, equal, and worse by what may be chance: whatever the averages do.
            ([(0.20, 0.40, 0.20)], (0.31, 0.30), "not worse"),
            ([(0.31, 0.40, 0.20)] * 2, (0.31, 0.30), "not worse"),
            ([], None, "undecided"),
        ],
    )
    def test_verdicts(self, own, fast, verdict):
        assert early_rule.answer_early(early(own, fast)).verdict == verdict

    def test_a_baseline_at_chance_and_what_else_there_is(self):
        large = run_of(
            {"running": 0.5, "precise": 0.45, "step": 50},
            {"running": 0.45, "precise": 0.4, "step": 100},
            {"running": 0.4, "precise": 0.35, "step": 150},
            {"running": 0.35, "precise": 0.32, "step": 200},
            {"running": 0.3, "precise": 0.25, "step": 250},
        )
        runs = early([(0.38, 0.40, 0.30)], (0.31, 0.30), baseline=0.486, large=large)
        answer = early_rule.answer_early(runs)
        assert answer.verdict == "not worse"
        assert "without, next to nothing has been learnt yet." in answer.sentences[0]
        assert "cost +10.0 points against precise" in answer.sentences[1]
        assert "+1.0 points with decay 0.9" in answer.sentences[1]
        found = answer.numbers["by_seed"][0]
        assert found["epoch of batch 400 with about equal updates"] == 4
        assert found["batch 400, equal epochs, running averages"] == 0.5
        assert found["batch 400, equal updates, precise statistics"] == 0.32
        assert found["noise of evaluation batches (own minus precise)"] == pytest.approx(0.01)
        assert ["lag", "+10.0 points"] in answer.tables["By seed"]
        json.dumps(answer.numbers)

    def test_no_epoch_of_about_equal_updates_yet(self):
        large = run_of({"running": 0.5, "precise": 0.45, "step": 50})
        answer = early_rule.answer_early(early([(0.38, 0.40, 0.30)], None, large=large))
        assert answer.numbers["by_seed"][0]["epoch of batch 400 with about equal updates"] is None

    @pytest.mark.parametrize(("loss", "equal"), [(0.6, True), (0.6001, False), (None, None)])
    def test_whether_decay_changed_the_training(self, loss, equal):
        runs = early([(0.40, 0.40, 0.30)], (0.31, 0.30))
        runs["decay 0.9"][0].lines[0]["train/loss"] = loss
        found = early_rule.answer_early(runs).numbers["by_seed"][0]
        assert found["training losses equal with fast decay"] is equal


LOW = {"valid": 0.1, "running": 0.1, "precise": 0.1}
OF_AVERAGES = {"valid": 0.4, "running": 0.4, "precise": 0.1}
OF_WEIGHTS = {"valid": 0.4, "running": 0.4, "precise": 0.4}
UNMEASURED = {"valid": 0.4}


class TestSpikes:
    @pytest.mark.parametrize(
        ("spikes", "verdict"),
        [
            ([OF_AVERAGES] * 3, "averages"),
            ([OF_AVERAGES, OF_AVERAGES, OF_WEIGHTS], "averages"),
            ([OF_WEIGHTS, OF_AVERAGES, OF_WEIGHTS], "weights"),
            ([OF_AVERAGES, OF_WEIGHTS] * 2, "both"),
            ([OF_AVERAGES] * 2, "undecided"),
            # Undecided ones do not count.
            ([OF_AVERAGES] * 2 + [UNMEASURED] * 3, "undecided"),
            ([OF_WEIGHTS] * 3 + [UNMEASURED] * 3, "weights"),
            ([], "undecided"),
        ],
    )
    def test_verdicts(self, spikes, verdict):
        lines = [LOW, LOW]
        for spike in spikes:
            lines += [spike, LOW, LOW]
        answer = answers.answer_spikes({"mean-only": {0: run_of(*lines)}, "full": {}})
        assert answer.verdict == verdict
        assert sum(answer.numbers["causes"].values()) == len(spikes)

    def test_changes_from_epoch_to_epoch(self):
        runs = {"full": {3: run_of(LOW, OF_AVERAGES, LOW)}}
        answer = answers.answer_spikes(runs)
        change = answer.numbers["full"][3]["mean_change"]
        assert change == {"running": pytest.approx(0.3), "precise": 0}
        assert "+30.0 points by running averages, +0.0 points by precise" in answer.sentences[1]

    def test_one_epoch_has_no_change(self):
        runs = {"full": {0: run_of(LOW)}}
        assert answers.answer_spikes(runs).numbers["full"][0]["mean_change"]["running"] is None


def dropout_runs(**ends):
    """Ten epochs, the last half as given: (validation, training)."""
    names = {"m": "mean-only", "f": "full", "c": "clean", "d": "dropout"}
    runs = {}
    for which, (valid, training) in ends.items():
        half = [{"valid": 0.5, "train": 0.5}] * 5 + [{"valid": valid, "train": training}] * 5
        runs[f"{names[which[0]]}, {names[which[1]]} statistics"] = {0: run_of(*half)}
    return runs


WELL, APART, STUCK = (0.2, 0.2), (0.45, 0.2), (0.5, 0.35)


class TestDropout:
    @pytest.mark.parametrize(
        ("mean_only", "full", "verdict"),
        [
            (APART, WELL, "mean-only"),
            (STUCK, WELL, "mean-only"),
            (WELL, APART, "full"),
            (APART, STUCK, "both"),
            (WELL, WELL, "neither"),
            # Not yet learning is no breakdown, nor is overfitting.
            ((0.5, 0.45), (0.3, 0.11), "neither"),
        ],
    )
    def test_verdicts(self, mean_only, full, verdict):
        runs = dropout_runs(mc=mean_only, fc=full, md=WELL, fd=WELL)
        answer = answers.answer_dropout(runs, {})
        assert answer.verdict == verdict
        assert answer.numbers["verdicts"]["dropout"] == "neither"
        swapped = dropout_runs(md=mean_only, fd=full, mc=WELL, fc=WELL)
        assert answers.answer_dropout(swapped, {}).numbers["verdicts"]["dropout"] == verdict

    def test_a_few_bad_epochs_are_no_breakdown(self):
        runs = dropout_runs(mc=WELL, fc=WELL, md=WELL, fd=WELL)
        for line in runs["mean-only, clean statistics"][0].lines[-2:]:
            line["valid/error_rate"] = 0.9
        assert answers.answer_dropout(runs, {}).verdict == "neither"

    def test_seeds_that_disagree_and_missing_runs(self):
        runs = dropout_runs(mc=APART, fc=WELL, md=WELL, fd=WELL)
        runs["mean-only, clean statistics"][1] = dropout_runs(mc=WELL).popitem()[1][0]
        runs["full, dropout statistics"] = {}
        answer = answers.answer_dropout(runs, {})
        assert answer.numbers["verdicts"] == {"clean": "undecided", "dropout": "undecided"}
        clean, dropout = answer.sentences[0].split("; with those of ")
        one, other = re.search(r"mean-only ([+-].*) points, ([+-].*) points; full", clean).groups()
        assert float(one) > 20 > float(other)
        assert dropout.endswith("; full not run).")

    def test_ratios_of_activations(self):
        runs = dropout_runs(mc=APART, fc=WELL, md=WELL, fd=WELL)
        ratios = {"mean-only": {0: {"block0": 1.0, "block1": 1.5, "block3": 2.25}}}
        answer = answers.answer_dropout(runs, ratios)
        assert "mean-only's 1.50, 2.25 times those in evaluation" in answer.sentences[1]


def test_cheap_divides_neighbouring_turns():
    seconds = {
        "without dropout": {"none": [1, 2, 4], "mean_only": [1.1, 2.4, 4.4], "full": [2, 4, 8]},
        "with dropout": {"none": [2, 2, 2], "mean_only": [3, 3, 3], "full": [2, 2, 2]},
    }
    answer = answers.answer_cheap(seconds)
    assert answer.verdict == "mean-only 1.10, full 2.00 times none's time without dropout"
    found = answer.numbers["without dropout"]["mean_only"]
    assert found == pytest.approx({"median": 1.1, "least": 1.1, "most": 1.2})
    assert "mean-only 1.50, full 1.00" in answer.sentences[1]


class TestMechanism:
    def measure(self, norm, rate):
        config = get_config()
        config.model.norm, config.model.dropout_rate = norm, rate
        model = make_model(**config.model.to_dict())
        windows = np.random.default_rng(0).integers(0, 256, (2, 8, 16, 16, 3), np.uint8)
        variables = model.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), train=False)
        return mechanism.mean_outputs(model, variables, windows)

    def test_without_dropout_and_norm_the_modes_are_equal(self):
        ratios = mechanism.ratios(self.measure("none", 0.0))
        assert list(ratios) == ["block0", "block1", "block2", "block3", "hidden"]
        assert list(ratios.values()) == pytest.approx([1] * 5, rel=1e-5)

    def test_pooling_over_dropped_out_values_raises_the_mean(self):
        """The most of four positive values, each doubled or 0, is above the most of the four."""
        ratios = mechanism.ratios(self.measure("none", 0.5))
        assert ratios["block0"] == pytest.approx(1, rel=0.05)  # dropout keeps the mean
        assert ratios["block1"] > 1.1
        assert ratios["block3"] > 1.1 * ratios["block1"]

    def test_of_a_run(self, tiny_config, open_cache, cache_folder, tmp_path):
        tiny_config.num_epochs = 1
        tiny_config.model.dropout_rate = 0.5
        images, data = open_cache(tiny_config), tiny_config.data
        prepared = prepare(
            images, source=data.source, valid_examples=data.valid_examples,
            test_examples=data.test_examples, num_classes=2, batch_size=8,
        )  # fmt: skip
        workdir = Workdir(str(tmp_path))
        workdir.claim(tiny_config.to_dict(), prepared.about)
        train.train(tiny_config, workdir, prepared, Hooks(say=print))
        means = mechanism.measure(str(tmp_path), cache_folder)
        assert set(means) == {"training", "evaluation"}
        ratios = mechanism.ratios(means)
        assert "block3" in ratios
        assert all(np.isfinite(ratio) and ratio > 0 for ratio in ratios.values())

    def test_windows_are_of_full_batches(self, tiny_config, open_cache):
        images = open_cache(tiny_config)
        windows = mechanism.centre_windows(Images.of(images, np.arange(72)), 16)
        assert windows.shape == (1, 72, 16, 16, 3)
        np.testing.assert_array_equal(windows[0, 5], five_windows(images.image(5), 16)[-1])

    def test_a_layer_that_is_never_active_has_no_ratio(self):
        means = {"training": {"a": 2.0, "b": 0.0}, "evaluation": {"a": 1.0, "b": 0.0}}
        assert mechanism.ratios(means) == {"a": 2.0}


FAKE = """
import json, pathlib, sys
from experiments import questions
from bn_vgg import command

def execute(line):
    fields = dict(part.lstrip("-").split("=", 1) for part in line if "=" in part)
    folder = pathlib.Path(fields["workdir"])
    if "batch400" in str(folder) and pathlib.Path("fails").exists():
        return 7
    folder.mkdir(parents=True, exist_ok=True)
    with open("made.txt", "a") as made:
        made.write(f"{folder}\\n")
    epochs = int(fields["config.num_epochs"])
    config = {"num_epochs": epochs, "data": {"valid_examples": 2500}}
    (folder / "config.json").write_text(json.dumps(config))
    line = {"valid/error_rate": 0.4, "train/error_rate": 0.4, "valid/error_rate_running": 0.4,
            "valid/error_rate_precise": 0.3, "train/loss": 0.5}
    lines = [{"epoch": i + 1, "step": 200 * i + 200} | line for i in range(epochs)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + chr(10) for line in lines))
    (folder / "result.json").write_text(json.dumps({
        "command": "python -m bn_vgg.main", "commit": "c0ffee", "versions": {"jax": "0.10"},
        "hardware": {"num_devices": 1, "device": "a processor", "cpu_cores": 2}}))
    (folder / "checkpoints").mkdir(exist_ok=True)
    return 0

questions.run_all.__defaults__ = (execute,)
questions.mechanism.step_seconds = lambda config: {
    setting: {"none": [1.0] * 5, "mean_only": [1.1] * 5, "full": [1.3] * 5}
    for setting in questions.mechanism.SETTINGS}
command.run(questions.main, positional=("NAME",))
"""


def ask(folder, *arguments, status=0, fake=True, **environment):
    """Runs the command in `folder`; with `fake`, what it would train is made up."""
    start = ["-c", FAKE] if fake else ["-m", "experiments.questions"]
    path = os.pathsep.join([*environment.values(), str(ROOT)])
    done = subprocess.run(
        [sys.executable, *start, *map(str, arguments)],
        cwd=folder, env=os.environ | {"PYTHONPATH": path, "BN_VGG_CACHE": str(folder)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    return done


class TestCommand:
    def test_dry_run_prints_the_exact_commands(self, tmp_path):
        done = ask(tmp_path, "early", "--dry_run", "--source=a b.zip", "--cache_dir=c", fake=False)
        lines = done.stdout.splitlines()
        assert len(lines) == 8
        assert shlex.split(lines[1]) == [
            "python", "-m", "bn_vgg.main", "--config=configs/meanonly.py:small",
            "--config.data.source=a b.zip", "--config.seed=0", "--config.num_epochs=5",
            "--config.model.norm_decay=0.9", "--notensorboard",
            "--workdir=runs/questions/meanonly-small-decay0.9/seed0", "--cache_dir=c",
        ]  # fmt: skip
        assert not list(tmp_path.iterdir())

    def test_every_other_question_has_its_runs(self, tmp_path):
        lines = ask(tmp_path, "dropout", "--dry_run", "--out=o", "--variant=full", fake=False)
        assert [shlex.split(line)[-1] for line in lines.stdout.splitlines()] == [
            "--workdir=o/meanonly_crop_dropout-full/seed0",
            "--workdir=o/full_crop_dropout-full/seed0",
            "--workdir=o/meanonly_crop_dropout-full-stats_dropout/seed0",
            "--workdir=o/full_crop_dropout-full-stats_dropout/seed0",
        ]
        assert all(":full" in line for line in lines.stdout.splitlines())

    def test_it_runs_decides_records_and_reports_again(self, tmp_path):
        pytest.importorskip("matplotlib")
        (tmp_path / "fails").touch()
        done = ask(tmp_path, "early", "--out=q", "--seeds=3", "--epochs=2", status=2)
        failed = "q/meanonly-small-batch400/seed3"
        assert done.stderr == f"error: {failed} failed with exit status 7: see above\n"
        done = ask(tmp_path, "early", "--out=q", "--seeds=3", "--epochs=2", "--report_only")
        assert f"missing: {failed}" in done.stdout
        assert "missing: q/baseline-small/seed3" in done.stdout
        assert (tmp_path / "made.txt").read_text().count("\n") == 2
        (tmp_path / "fails").unlink()
        done = ask(tmp_path, "early", "--out=q", "--seeds=3", "--epochs=2", "--record=kept")
        assert done.stdout.splitlines()[-2:] == ["early: not worse", "q/early.md"]
        kept = {str(path.relative_to(tmp_path / "kept")) for path in tmp_path.rglob("kept/**/*.*")}
        assert {"early.md", "early.png", "early.json"} <= kept
        assert "baseline-small/seed3/result.json" in kept
        assert not list((tmp_path / "kept").rglob("checkpoints"))
        before = json.loads((tmp_path / "kept/early.json").read_text())
        assert (before["verdict"], before["missing"]) == ("not worse", [])
        for name in ("early.md", "early.png", "early.json"):
            (tmp_path / "kept" / name).unlink()
        # As if they were asked for longer: what is there decides, and says what is not.
        asked = ("early", "--out=kept", "--seeds=3", "--epochs=3", "--report_only")
        assert (
            "unfinished: kept/baseline-small/seed3, 2 of 3 epochs" in ask(tmp_path, *asked).stdout
        )
        after = json.loads((tmp_path / "kept/early.json").read_text())
        assert after["numbers"] == before["numbers"]
        page = (tmp_path / "kept/early.md").read_text()
        assert "`python -m bn_vgg.main`, commit c0ffee" in page
        assert "1 a processor (2 cores), jax 0.10" in page

    def test_a_run_is_not_shortened(self, tmp_path):
        folder = tmp_path / "q/full_crop-small/seed0"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"num_epochs": 60}')
        done = ask(tmp_path, "spikes", "--out=q", "--dry_run", fake=False)
        mean_only, full = done.stdout.splitlines()
        assert "--config.num_epochs=12 " in mean_only
        assert "--config.num_epochs=60 " in full

    def test_the_other_figures_are_drawn(self, tmp_path):
        pytest.importorskip("matplotlib")
        ask(tmp_path, "spikes", "--out=q", "--record=kept")
        ask(tmp_path, "cheap", "--out=q", "--record=kept")
        (tmp_path / "kept/cheap.json").unlink()
        done = ask(tmp_path, "cheap", "--out=kept", "--report_only")
        assert "cheap: mean-only 1.10, full 1.30 times none's time without dropout" in done.stdout
        assert (tmp_path / "kept/cheap.json").exists()
        assert (tmp_path / "q/cheap.png").stat().st_size > 20_000
        assert (tmp_path / "q/spikes.png").stat().st_size > 20_000

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["late"], "no question 'late'; there are: early, spikes, dropout, cheap"),
            (["early", "--seeds=x"], "--seeds: whole numbers are wanted: "),
            (["early", "--report_only"], "none of the runs is in runs/questions: see --dry_run"),
            (["cheap", "--report_only"], "nothing was timed yet: there is no "),
        ],
    )
    def test_wrong_use_ends_in_one_line(self, arguments, message, tmp_path):
        if "--report_only" in arguments:
            pytest.importorskip("matplotlib")
        done = ask(tmp_path, *arguments, status=2, fake=False)
        assert done.stderr.startswith(f"error: {message}")
        assert done.stderr.count("\n") == 1

    def test_without_matplotlib_it_ends_in_one_line(self, tmp_path):
        (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError(name='matplotlib')")
        done = ask(tmp_path, "early", status=2, fake=False, PYTHONPATH=str(tmp_path))
        assert done.stderr == "error: the picture needs matplotlib: pip install -e '.[report]'\n"
        assert [path.name for path in tmp_path.iterdir() if path.suffix != ".py"] in (
            [], ["__pycache__"],
        )  # fmt: skip
