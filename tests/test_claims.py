"""Each claim by its rule, on made-up runs that have a verdict and on the recorded ones."""

import numpy as np
import pytest

pytest.importorskip("pandas")

from experiments import stats
from experiments.claims import CLAIMS, CONTRADICTED, SUPPORTED, UNDECIDED
from tests.made_up_runs import falling, lines_of, tables

NOISE = (0.001, 0.0, -0.001)
EPOCHS = 20


def decide(number, cells, **more):
    (claim,) = [claim for claim in CLAIMS if claim.number == number]
    return claim.decide(*tables(cells, **more))


def seeds(best, noise=NOISE, epochs=EPOCHS):
    return [lines_of(falling(0.5, best + each, epochs)) for each in noise]


class TestStatistics:
    def test_a_mean_is_never_without_its_spread(self):
        # By hand: deviations -1, 0, 1 of a mean of 2; 1 / sqrt(3) = 0.577.
        assert stats.error_rate([0.01, 0.02, 0.03]) == "2.0% ± 0.6 (3 seeds)"
        assert stats.error_rate([0.01, 0.02, 0.03], counted=False) == "2.0% ± 0.6"
        assert stats.error_rate([0.135]) == "13.5% (1 seed)"

    def test_the_interval_of_three(self):
        """The 97.5% point of Student's t with two degrees of freedom is 4.303 (any table)."""
        found = stats.mean_interval([1.0, 2.0, 3.0])
        half = 4.3027 / np.sqrt(3)
        np.testing.assert_allclose(found, (2, 2 - half, 2 + half), rtol=1e-4)
        assert stats.mean_interval([1.0]) is None

    def test_chance_on_the_same_images(self):
        """At most a + b of the images differ: sqrt(0.2 / 1000) = 0.014 is a standard error."""
        assert not stats.is_significant(0.113, 0.087, 1000)
        assert stats.is_significant(0.115, 0.085, 1000)
        assert not stats.is_significant(0.13, 0.105, 0)
        assert stats.is_significant(0.14, 0.105, 0)


class TestErrors:
    @pytest.mark.parametrize(
        ("own", "both", "verdict"),
        [(0.068, 0.051, SUPPORTED), (0.12, 0.051, CONTRADICTED), (0.0815, 0.051, UNDECIDED),
         (0.068, 0.172, UNDECIDED)],
    )  # fmt: skip
    def test_1_of_the_gap(self, own, both, verdict):
        """0.172 - 0.75 * (0.172 - 0.051) = 0.0813; without a gap there is no share of it."""
        cells = {"baseline": seeds(0.172), "meanonly": seeds(own, NOISE[::-1])}
        cells["baseline_crop_dropout"] = seeds(both, (0.001, -0.002, 0.001))
        assert decide("1", cells).word == verdict

    @pytest.mark.parametrize(
        ("meanonly", "verdict"), [(0.46, SUPPORTED), (0.41, UNDECIDED), (0.37, CONTRADICTED)]
    )
    def test_2_the_mean_of_the_first_five_epochs(self, meanonly, verdict):
        """Later epochs do not count, and the runs need not be finished."""
        cells = {"baseline": [lines_of([0.4 + x] * 5 + [0.9]) for x in (0.01, 0, -0.01)]}
        cells["meanonly"] = [lines_of([0.2] + [meanonly * 1.25 - 0.05] * 4 + [0.1])] * 3
        found = decide("2", cells, finished=False)
        assert found.word == verdict
        assert found.sentence.startswith("Mean validation errors of the first 5 epochs: ")

    @pytest.mark.parametrize(
        ("full", "verdict"), [(0.054, SUPPORTED), (0.041, UNDECIDED), (0.030, CONTRADICTED)]
    )
    def test_3_mean_only_against_full(self, full, verdict):
        cells = {"meanonly_crop": seeds(0.041), "full_crop": seeds(full, (0.002, 0, -0.001))}
        assert decide("3", cells).word == verdict
        assert decide("3b", cells).word == UNDECIDED

    def test_3b_is_of_more_epochs_than_the_figure(self):
        """Full is worse for 55 epochs and overtakes after them: both are so."""
        cells = {"meanonly_crop": [lines_of([0.05] * 60)] * 3}
        cells["full_crop"] = [lines_of([0.06] * 57 + [0.03] * 3)] * 3
        assert decide("3", cells).word == SUPPORTED
        longer = decide("3b", cells)
        assert longer.word == SUPPORTED
        assert longer.sentence.startswith("Best validation errors of the first 60 epochs:")

    def test_the_shortest_run_says_how_many_epochs_compare(self):
        """60 epochs of one have lower bests than 15 of the other; in 15 they are equal."""
        cells = {"full_crop": [lines_of([0.1] * 15)] * 3}
        cells["meanonly_crop"] = [lines_of([0.1] * 15 + [0.01] * 45)] * 3
        found = decide("3", cells)
        assert found.word == UNDECIDED
        assert list(found.numbers["difference"]) == ["+0.0 points"] * 3


class TestTooLittle:
    """Never a guess: each of these would be decided with what is missing."""

    @pytest.mark.parametrize(
        ("mean_only", "finished", "count"),
        [(seeds(0.1, NOISE[:2]), True, 2), (seeds(0.1, epochs=14), True, 0),
         (seeds(0.1), False, 0)],
    )  # fmt: skip
    def test_seeds_epochs_or_the_end(self, mean_only, finished, count):
        found = decide(
            "3", {"full_crop": seeds(0.2), "meanonly_crop": mean_only}, finished=finished
        )
        assert found.word == UNDECIDED
        assert found.sentence.startswith("Needs 3 seeds of at least 15 epochs: ")
        assert f"`meanonly_crop` has {count}" in found.sentence

    def test_seeds_that_do_not_pair(self):
        runs, epochs = tables({"full_crop": seeds(0.2), "meanonly_crop": seeds(0.1)})
        for table in (runs, epochs):
            table.loc[table["cell"] == "full_crop", "seed"] += 1
        found = next(claim for claim in CLAIMS if claim.number == "3").decide(runs, epochs)
        assert found.word == UNDECIDED
        assert found.sentence == "Needs 3 seeds that all cells have: there are 2."

    def test_nothing_that_a_claim_is_of(self):
        runs, epochs = tables({"baseline_crop": seeds(0.2)})
        for claim in CLAIMS:
            found = claim.decide(runs, epochs)
            assert found.word == UNDECIDED
            assert found.sentence.startswith("Needs ")
        assert [claim.number for claim in CLAIMS] == ["1", "2", "3", "3b", "4", "5"]


BROKEN = lines_of([0.51] * EPOCHS, train=[0.11] * EPOCHS)
STUCK = lines_of([0.486] * EPOCHS, train=[0.30] * EPOCHS)
WHOLE = lines_of([0.14] * EPOCHS, train=[0.16] * EPOCHS)


@pytest.mark.parametrize(
    ("mean_only", "full", "verdict", "says"),
    [
        ([WHOLE] * 3, [BROKEN] * 3, SUPPORTED, "`full_crop_dropout` breaks down in 3 of 3"),
        ([STUCK] * 3, [WHOLE] * 3, CONTRADICTED, "`meanonly_crop_dropout` breaks down in 3 of 3"),
        ([BROKEN] * 3, [BROKEN] * 3, CONTRADICTED, "3 of 3"),
        ([WHOLE] * 3, [WHOLE] * 3, CONTRADICTED, "0 of 3"),
        ([BROKEN, BROKEN, WHOLE], [WHOLE] * 3, UNDECIDED, "2 of 3"),
        ([BROKEN] * 2, [WHOLE] * 3, UNDECIDED, "`meanonly_crop_dropout` has 2"),
    ],
)
def test_4_dropout(mean_only, full, verdict, says):
    found = decide("4", {"meanonly_crop_dropout": mean_only, "full_crop_dropout": full})
    assert found.word == verdict
    assert says in found.sentence


def spiky(spikes, of_the_weights=0):
    """Errors of 0.1 with spikes to 0.4, of which the first are of the weights too."""
    valid, precise = [0.1] * 30, [0.1] * 30
    for number in range(spikes):
        valid[3 + 4 * number] = 0.4
        precise[3 + 4 * number] = 0.4 if number < of_the_weights else 0.1
    return lines_of(valid, precise=precise)


class TestSpikes:
    @pytest.mark.parametrize(
        ("courses", "verdict"),
        [
            ([spiky(2)] * 3, SUPPORTED),
            ([spiky(2, 2)] * 3, CONTRADICTED),
            ([spiky(2, 1)] * 3, UNDECIDED),  # half each
            ([spiky(3, 1)] * 3, SUPPORTED),  # two thirds
            ([spiky(0)] * 3, UNDECIDED),
            ([spiky(6), spiky(0), spiky(0)], UNDECIDED),  # one seed's
            ([spiky(2)] * 2, UNDECIDED),
        ],
    )
    def test_5_verdicts(self, courses, verdict):
        cells = dict.fromkeys(("full_crop", "meanonly", "full"), courses)
        assert decide("5", cells).word == verdict

    def test_5_only_batch_normalized_cells_with_enough_seeds_are_looked_at(self):
        cells = {"full_crop": [spiky(2)] * 3, "baseline": [spiky(7, 7)] * 3}
        cells |= {"meanonly": [spiky(7, 7)] * 2, "full, batch_size=400": [spiky(7, 7)] * 3}
        found = decide("5", cells)
        assert found.word == SUPPORTED
        assert set(found.numbers["run"]) == {"full_crop"}
        assert found.sentence.startswith("6 spikes in 90 epochs: 6 from the averages, 0 from")
