"""The rule of each named experiment: its verdicts, from made-up lines."""

import json
import re

import pytest

from experiments.asking import answers
from experiments.asking import early as early_rule
from experiments.diagnosing.diagnosis import Run, Sizes

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
