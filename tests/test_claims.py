"""Each claim's verdicts, from runs that were made up to have them."""

import pytest

from experiments.reporting import claims, comparisons, patterns
from experiments.reporting.verdict import CONTRADICTED, SUPPORTED, UNDECIDED
from tests.made_up_runs import found, seeds

# Noise between seeds, in points of error, and as many epochs as claims on best errors take.
NOISE = (0.0, 0.002, -0.002)
EPOCHS = 15


def course(best, epochs=EPOCHS):
    """Errors that end at their best."""
    return [0.5 - (0.5 - best) * epoch / (epochs - 1) for epoch in range(epochs)]


def cell(name, best, *, epochs=EPOCHS, noise=NOISE, **more):
    """Runs of a cell whose best errors are about `best`: shifted for each seed."""
    return {name: seeds(name, [course(best + shift, epochs) for shift in noise], **more)}


def flat(name, rates, *, noise=NOISE, **more):
    return {name: seeds(name, [[rate + shift for rate in rates] for shift in noise], **more)}


class TestWithoutAugmentation:
    @pytest.mark.parametrize(
        ("baseline", "meanonly", "dropout", "verdict"),
        [
            (0.172, 0.068, 0.051, SUPPORTED),  # the published numbers: 86%
            (0.172, 0.120, 0.051, CONTRADICTED),  # 43%
            (0.172, 0.0818, 0.051, UNDECIDED),  # about 75%
            (0.172, 0.030, 0.051, SUPPORTED),  # further than augmentation and dropout
            (0.172, 0.100, 0.180, UNDECIDED),  # they bring nothing: there is no gap
        ],
    )
    def test_verdicts(self, baseline, meanonly, dropout, verdict):
        # One that is shifted the other way: 3/4 of it in the difference are another number.
        noise = (0.0, -0.002, 0.003)
        cells = cell("baseline", baseline) | cell("meanonly", meanonly, noise=noise)
        cells |= cell("baseline_crop_dropout", dropout)
        assert comparisons.without_augmentation(cells).verdict == verdict

    def test_the_numbers_by_seed(self):
        cells = cell("baseline", 0.2) | cell("meanonly", 0.1) | cell("baseline_crop_dropout", 0.1)
        verdict = comparisons.without_augmentation(cells)
        head, first, *rest = verdict.rows
        assert head == ["seed", "`baseline`", "`meanonly`", "`baseline_crop_dropout`",
                        "share of the gap", "beyond 75% of it"]  # fmt: skip
        assert first == ["0", "20.0%", "10.0%", "10.0%", "100%", "+2.5 points"]
        assert len(rest) == 2
        assert "`baseline` 20.0% ± 0.1 (3 seeds)" in verdict.sentences[0]
        assert verdict.missing == []

    def test_no_gap_is_named_as_what_is_missing(self):
        cells = cell("baseline", 0.1) | cell("meanonly", 0.1) | cell("baseline_crop_dropout", 0.2)
        verdict = comparisons.without_augmentation(cells)
        assert verdict.missing == ["a gap that is above 0 by its interval"]
        assert verdict.rows[1][4] == "no gap"

    def test_the_post_says_86_percent(self):
        assert comparisons.without_augmentation({}).published.endswith("86% of the gap.")


class TestAtTheBeginning:
    @pytest.mark.parametrize(
        ("meanonly", "verdict"), [(0.45, SUPPORTED), (0.38, UNDECIDED), (0.30, CONTRADICTED)]
    )
    def test_verdicts(self, meanonly, verdict):
        noise = (0.003, 0.0, -0.003)
        cells = flat("baseline", [0.38] * 5) | flat("meanonly", [meanonly] * 5, noise=noise)
        assert comparisons.at_the_beginning(cells).verdict == verdict

    def test_runs_in_progress_count_and_later_epochs_do_not(self):
        cells = flat("baseline", [0.3] * 5, planned=60)
        cells |= flat("meanonly", [0.4] * 5 + [0.0] * 10, planned=60)
        verdict = comparisons.at_the_beginning(cells)
        assert verdict.verdict == SUPPORTED
        assert verdict.rows[1][1:4] == ["40.0%", "30.0%", "+10.0 points"]

    def test_lag(self):
        cells = flat("baseline", [0.3] * 5) | flat("meanonly", [0.4] * 5, precise=[0.34] * 5)
        verdict = comparisons.at_the_beginning(cells)
        assert verdict.rows[1][-1] == "+6.0 points"
        assert verdict.sentences[-1] == "Lag: 6.0 points ± 0.1 (3 seeds)."
        cells |= flat("meanonly", [0.4] * 5, precise=[0.34] * 4)
        assert comparisons.at_the_beginning(cells).rows[1][-1] == "not measured"

    def test_four_epochs_are_too_few(self):
        cells = flat("baseline", [0.3] * 4) | flat("meanonly", [0.4] * 5)
        verdict = comparisons.at_the_beginning(cells)
        assert verdict.verdict == UNDECIDED
        assert verdict.missing == ["`baseline` has 0 of 3 runs of at least 5 epochs"]

    def test_the_post_is_read_from_its_curves(self):
        """Means of the figure's first five points, by hand: (.487+.444+.483+.488+.337)/5 …"""
        assert comparisons.at_the_beginning({}).published == "44.9% against 38.0% in the figure."


class TestWithCropping:
    @pytest.mark.parametrize(
        ("full", "verdict"), [(0.054, SUPPORTED), (0.041, UNDECIDED), (0.030, CONTRADICTED)]
    )
    def test_verdicts(self, full, verdict):
        cells = cell("meanonly_crop", 0.041) | cell("full_crop", full, noise=(0.002, 0, -0.001))
        assert comparisons.with_cropping(cells).verdict == verdict
        assert comparisons.with_longer_training(cells).verdict == UNDECIDED

    def test_the_postscript_is_of_more_epochs_than_the_figure(self):
        """Full is worse for 55 epochs and overtakes after them: both are so."""
        cells = flat("meanonly_crop", [0.05] * 60) | flat("full_crop", [0.06] * 57 + [0.03] * 3)
        assert comparisons.with_cropping(cells).verdict == SUPPORTED
        longer = comparisons.with_longer_training(cells)
        assert longer.verdict == SUPPORTED
        assert longer.sentences[0].startswith("Best validation errors of the first 60 epochs:")

    def test_the_shortest_run_says_how_many_epochs_compare(self):
        """60 epochs of one have lower bests than 15 of the other; in 15 they are equal."""
        cells = flat("full_crop", [0.1] * 15) | flat("meanonly_crop", [0.1] * 15 + [0.01] * 45)
        verdict = comparisons.with_cropping(cells)
        assert verdict.verdict == UNDECIDED
        assert [row[-1] for row in verdict.rows[1:]] == ["+0.0 points"] * 3


class TestTooLittle:
    """Never a guess: each of these would be decided with what is missing."""

    @pytest.mark.parametrize(
        ("more", "missing"),
        [
            ({"noise": NOISE[:2]}, "has 2 of 3 finished runs of at least 15 epochs"),
            ({"epochs": 14}, "has 0 of 3 finished runs of at least 15 epochs"),
            ({"planned": 60}, "has 0 of 3 finished runs of at least 15 epochs"),
        ],
    )
    def test_seeds_epochs_or_the_end(self, more, missing):
        cells = cell("full_crop", 0.2) | cell("meanonly_crop", 0.1, **more)
        verdict = comparisons.with_cropping(cells)
        assert verdict.verdict == UNDECIDED
        assert verdict.missing == [f"`meanonly_crop` {missing}"]

    def test_seeds_that_do_not_pair(self):
        cells = cell("full_crop", 0.2) | cell("meanonly_crop", 0.1)
        cells["full_crop"] = {seed + 1: each for seed, each in cells["full_crop"].items()}
        verdict = comparisons.with_cropping(cells)
        assert verdict.verdict == UNDECIDED
        assert verdict.missing == ["`full_crop`, `meanonly_crop` have 2 of 3 seeds in common"]
        assert [row[0] for row in verdict.rows[1:]] == ["1", "2"]

    def test_a_run_with_a_missing_epoch_does_not_take_part(self):
        cells = cell("full_crop", 0.2, epochs=20) | cell("meanonly_crop", 0.1, epochs=20)
        del cells["full_crop"][0].run.lines[17]
        assert comparisons.with_cropping(cells).verdict == UNDECIDED

    def test_nothing_at_all(self):
        verdicts = claims.decide({})
        assert [each.number for each in verdicts] == ["1", "2", "3", "3b", "4", "5"]
        assert {each.verdict for each in verdicts} == {UNDECIDED}
        assert all(each.missing and each.rule for each in verdicts)


BROKEN = {"valid": 0.51, "train": 0.11}
WHOLE = {"valid": 0.14, "train": 0.16}


def dropout_runs(name, ends):
    return {
        name: {
            seed: found(name, [end["valid"]] * EPOCHS, train=[end["train"]] * EPOCHS, seed=seed)
            for seed, end in enumerate(ends)
        }
    }


class TestWithDropout:
    @pytest.mark.parametrize(
        ("mean_only", "full", "verdict", "says"),
        [
            ([WHOLE] * 3, [BROKEN] * 3, SUPPORTED, "the text holds"),
            ([BROKEN] * 3, [WHOLE] * 3, CONTRADICTED, "the figure holds, not the text"),
            ([BROKEN] * 3, [BROKEN] * 3, CONTRADICTED, "Both break down"),
            ([WHOLE] * 3, [WHOLE] * 3, CONTRADICTED, "Neither breaks down"),
            ([BROKEN, BROKEN, WHOLE], [WHOLE] * 3, UNDECIDED, "breaks down in 2 of 3 runs"),
            ([BROKEN] * 2, [WHOLE] * 3, UNDECIDED, "breaks down in 2 of 2 runs"),
        ],
    )
    def test_verdicts(self, mean_only, full, verdict, says):
        cells = dropout_runs("meanonly_crop_dropout", mean_only)
        cells |= dropout_runs("full_crop_dropout", full)
        found_verdict = patterns.with_dropout(cells)
        assert found_verdict.verdict == verdict
        assert says in " ".join(found_verdict.sentences)

    def test_seeds_need_not_be_the_same(self):
        cells = dropout_runs("meanonly_crop_dropout", [BROKEN] * 3)
        cells |= dropout_runs("full_crop_dropout", [WHOLE] * 3)
        cells["full_crop_dropout"] = {
            seed + 7: each for seed, each in cells["full_crop_dropout"].items()
        }
        assert patterns.with_dropout(cells).verdict == CONTRADICTED


def spiky(spikes, precise_spikes=0):
    """Errors of 0.1 with so many spikes to 0.4, of which the first are of the weights too."""
    valid, precise = [0.1] * 30, [0.1] * 30
    for number in range(spikes):
        valid[3 + 4 * number] = 0.4
        precise[3 + 4 * number] = 0.4 if number < precise_spikes else 0.1
    return {"valid": valid, "precise": precise}


def spiky_cell(name, courses):
    return {
        name: {
            seed: found(name, each["valid"], precise=each["precise"], seed=seed)
            for seed, each in enumerate(courses)
        }
    }


class TestOfSpikes:
    @pytest.mark.parametrize(
        ("courses", "verdict"),
        [
            ([spiky(2)] * 3, SUPPORTED),
            ([spiky(2, 2)] * 3, CONTRADICTED),
            ([spiky(2, 1)] * 3, UNDECIDED),  # half each
            ([spiky(3, 1)] * 3, SUPPORTED),  # two thirds
            ([spiky(0)] * 3, UNDECIDED),
            ([spiky(6), spiky(0), spiky(0)], UNDECIDED),  # one run's
            ([spiky(2)] * 2, UNDECIDED),
        ],
    )
    def test_verdicts(self, courses, verdict):
        assert patterns.of_spikes(spiky_cell("full_crop", courses)).verdict == verdict

    def test_only_batch_normalized_cells_with_enough_seeds_are_looked_at(self):
        cells = spiky_cell("full_crop", [spiky(2)] * 3)
        cells |= spiky_cell("baseline", [spiky(7, 7)] * 3)
        cells |= spiky_cell("meanonly", [spiky(7, 7)] * 2)
        verdict = patterns.of_spikes(cells)
        assert verdict.verdict == SUPPORTED
        assert {row[0] for row in verdict.rows[1:]} == {"`full_crop`"}
        assert verdict.sentences[0].startswith("6 spikes in 90 epochs: 6 of the averages, 0 of")

    def test_what_is_missing(self):
        (missing,) = patterns.of_spikes(spiky_cell("full", [spiky(6), spiky(0), spiky(0)])).missing
        assert missing == "3 decided spikes, in 3 runs: there are 6 in 1"
