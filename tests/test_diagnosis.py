"""The verdicts on runs made up to have one."""

import math

import numpy as np
import pytest

from experiments.diagnosing import diagnosis, verdicts
from experiments.diagnosing.diagnosis import AVERAGES, UNDECIDED, WEIGHTS, Sizes
from tests.diagnosed_runs import CONFIG, flat, layered, lensed, plain

SIZES = Sizes(valid=2500, compared=1000)


class TestFindSpikes:
    @pytest.mark.parametrize(
        ("errors", "epochs"),
        [
            ([0.5], []),
            ([0.5, 0.3, 0.2, 0.15, 0.12], []),  # a steep fall has no spikes
            ([0.5, 0.3, 0.4, 0.2, 0.15], [3]),
            ([0.2, 0.2, 0.5, 0.48, 0.2, 0.2], [3, 4]),  # two wide
            ([0.2, 0.2, 0.5, 0.5, 0.5, 0.2], []),  # three wide: the error stays
            ([0.2, 0.2, 0.22, 0.2], []),  # two points
            ([0.6, 0.2, 0.2], []),  # nothing was low before the first
            ([0.2, 0.2, 0.4], [3]),  # the last
        ],
    )
    def test_which_epochs(self, errors, epochs):
        assert [spike.epoch for spike in diagnosis.find_spikes(plain(*errors), SIZES)] == epochs

    def test_the_excess_is_from_the_higher_side(self):
        (spike,) = diagnosis.find_spikes(plain(0.3, 0.25, 0.5, 0.2), SIZES)
        assert spike.base == 2
        assert spike.excess == pytest.approx(0.25)

    def test_few_images_need_more(self):
        """Ten points of 100 images: three standard errors at 0.3 are 13.7 points."""
        lines = plain(0.2, 0.3, 0.2)
        assert diagnosis.find_spikes(lines, Sizes(valid=100)) == []
        assert len(diagnosis.find_spikes(lines)) == 1

    def test_epochs_without_a_number_are_passed_over(self):
        lines = plain(0.2, 0.2, 0.5, 0.2)
        lines.insert(2, {"epoch": 2.5, "valid/error_rate": math.nan})
        assert [spike.epoch for spike in diagnosis.find_spikes(lines, SIZES)] == [3]

    @pytest.mark.parametrize(
        ("triple", "cause", "reason"),
        [
            ((0.5, 0.22, 0.2), AVERAGES, ""),
            ((0.5, 0.49, 0.5), WEIGHTS, ""),
            ((0.5, None, None), UNDECIDED, "was not measured"),
            ((0.21, 0.2, 0.2), UNDECIDED, "it is only 1.0 points"),
        ],
    )
    def test_causes(self, triple, cause, reason):
        lines = lensed(flat(0.2), triple, flat(0.2))
        lines[1]["valid/error_rate"] = 0.5
        (spike,) = diagnosis.find_spikes(lines, SIZES)
        assert (spike.cause, spike.running, spike.precise) == (cause, *triple[:2])
        assert reason in spike.reason
        assert bool(spike.reason) == (cause == UNDECIDED)

    @pytest.mark.parametrize("beside", [0.05, 0.35])
    def test_both_or_neither_is_undecided(self, beside):
        """Half of the excess is 15 points. 0.35 at the spike takes away 15 of them, and 0.36
        does not; beside 0.05 the weights show more than half as well, beside 0.35 less."""
        precise = 0.35 if beside == 0.05 else 0.36
        sides = (0.2, beside, 0.2)
        (spike,) = diagnosis.find_spikes(lensed(sides, (0.5, precise, 0.4), sides), SIZES)
        assert spike.cause == UNDECIDED
        assert "precise statistics take away 1" in spike.reason

    @pytest.mark.parametrize(
        ("precise", "larger_part"), [((0.1, 0.16, 0.1), AVERAGES), ((0.1, 0.4, 0.1), WEIGHTS)]
    )
    def test_a_lag_that_was_there_before_is_no_part_of_the_growth(self, precise, larger_part):
        sides = (0.3, precise[0], 0.2)
        lines = lensed(sides, (0.6, precise[1], 0.2), sides)
        (spike,) = diagnosis.find_spikes(lines, SIZES)
        assert spike.larger_part == larger_part


def test_the_bound_on_a_standard_error_holds_for_made_up_images():
    """Of any two sets of wrong images, the difference's own standard error is no larger."""
    random = np.random.default_rng(0)
    for _ in range(50):
        a, b = (random.random(400) < random.random() for _ in range(2))
        actual = (a.astype(float) - b).std() / math.sqrt(400)
        assert actual <= diagnosis.standard_error_bound(a.mean(), b.mean(), 400) + 1e-12


class TestExplain:
    def explain(self, lines, **config):
        return "\n".join(verdicts.explain(lines, config, SIZES))

    def test_averages_and_weights(self):
        lines = lensed(
            flat(0.2), flat(0.2), (0.31, 0.112, 0.1), flat(0.2), flat(0.2), (0.245, 0.104, 0.1),
            flat(0.2), flat(0.2), (0.4, 0.39, 0.4), flat(0.2), flat(0.2),
        )  # fmt: skip
        said = self.explain(lines)
        assert (
            "The spikes at epochs 3 and 6 are the running averages: with precise statistics the "
            "error there is 11.2% and 10.4%, not 31.0% and 24.5%." in said
        )
        assert (
            "The spike at epoch 9 is in the weights: with precise statistics the error there is "
            "still 39.0%, by running averages 40.0%." in said
        )

    def test_many_spikes_are_summed_up(self):
        lines = lensed(*[flat(0.2), (0.5, 0.2, 0.2)] * 6, flat(0.2))
        assert "epochs 2, 4, 6, 8, 10 and 12 are the" in self.explain(lines)
        assert "20.0% to 20.0%, not 50.0% to 50.0%" in self.explain(lines)

    def test_the_last_epoch_is_not_over(self):
        said = self.explain(plain(0.2, 0.2, 0.5))
        assert "Undecided: the spike at epoch 3; there or beside" in said
        assert "whether its error comes down again is not known" in said

    def test_no_spikes_no_lens(self):
        said = self.explain(plain(0.3, 0.2, 0.19))
        assert "There are no spikes in the validation error of 3 epochs." in said
        assert "Not measured in this run: the training error, the error by running aver" in said
        assert "In the beginning" not in said
        assert "batch's own statistics the" not in said

    def test_one_epoch(self):
        said = self.explain(lensed((0.5, 0.3, 0.3)), **{"model.norm_decay": 0.995})
        assert "takes two epochs" in said
        assert "50.0% and 30.0% at epoch 1 (the averages cost 20.0 points)" in said
        assert "over 1 epoch (+0.0 to +0.0)" in said

    def test_beginning_end_and_chance(self):
        """Of 1,000 images at 30%, two of the largest standard errors are 4.9 points."""
        said = self.explain(lensed((0.34, 0.3, 0.3), *[flat(0.3)] * 3, (0.2, 0.3, 0.5)))
        assert "34.0% and 30.0% at epoch 1 (may be chance), 30.0% and" in said
        assert "at epoch 5 (the averages are better by 10.0 points)" in said
        assert "at epoch 4" not in said
        assert "by +4.0 points on average over 5 epochs (+0.0 to +20.0)" in said
        assert "more than chance at epoch 5." in said

    def test_dead_units_dropout_and_time_constant(self):
        said = "\n".join(
            verdicts.explain(
                layered(lensed(flat(0.3), flat(0.2))), diagnosis.flatten(CONFIG), SIZES
            )
        )
        assert "at epoch 2: 10.0% of block1 (2 of 20) and 2.0% of hidden (10 of 500)." in said
        assert "rate of 0.5: running statistics are of a second pass without dropout" in said
        assert "time constant of 200 batches; an epoch has 200." in said

    def test_keys_missing_in_some_epochs(self):
        lines = lensed(flat(0.3), flat(0.25), flat(0.2))
        lines[1] = plain(0.3, 0.25)[1]
        said = self.explain(lines)
        assert "Measured at only 2 of 3 epochs: the error by running averages, the error" in said
        assert "at epoch 1 (may be chance) and 20.0% and 20.0% at epoch 3" in said

    @pytest.mark.parametrize("lines", [[{"epoch": 1}], plain(0.3), lensed(flat(0.0), flat(1.0))])
    def test_it_says_something_of_anything(self, lines):
        assert verdicts.explain(lines)


def test_layers_are_in_the_networks_order():
    lines = [{f"never_active/{name}": 0.0 for name in ("hidden", "block10", "block2")}]
    assert diagnosis.layers(lines, "never_active") == ["block2", "block10", "hidden"]
