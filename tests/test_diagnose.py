"""A run's spikes and what causes them, and the diagnosis as a person gets it."""

import pytest

pytest.importorskip("pandas")
pytest.importorskip("matplotlib")

import pandas as pd

from experiments import diagnosis
from experiments.spikes import AVERAGES, UNDECIDED, WEIGHTS, find_spikes
from tests.conftest import python
from tests.made_up_runs import config_of, layered, lines_of, write_run


def causes(valid, precise=None, running=None, sizes=(2500, 1000)):
    found = find_spikes(pd.DataFrame(lines_of(valid, precise=precise, running=running)), *sizes)
    return dict(zip(found["epoch"], found["cause"], strict=True))


class TestSpikes:
    @pytest.mark.parametrize(
        ("valid", "epochs"),
        [
            ([0.1, 0.3, 0.1], [2]),
            ([0.1, 0.3, 0.3, 0.1], [2, 3]),  # two high ones do not hide each other
            ([0.1, 0.3, 0.3, 0.3, 0.1], []),  # a plateau is none
            ([0.5, 0.4, 0.3, 0.2], []),
            ([0.1, 0.125, 0.1], []),  # less than three points
            ([0.1, 0.1, 0.3], [3]),  # the last, by those before it
            ([0.3, 0.1, 0.1], []),  # the first is none
            ([0.5], []),
        ],
    )
    def test_where_they_are(self, valid, epochs):
        assert list(causes(valid)) == epochs

    def test_few_images_have_higher_ones_by_chance(self):
        """Of 100 images at 30% three standard errors are 14 points."""
        assert causes([0.2, 0.3, 0.2], sizes=(2500, 0))
        assert not causes([0.2, 0.3, 0.2], sizes=(100, 0))

    @pytest.mark.parametrize(
        ("precise", "running", "cause"),
        [
            ([0.1, 0.12, 0.1], None, AVERAGES),
            ([0.1, 0.29, 0.1], None, WEIGHTS),
            ([0.05, 0.19, 0.05], None, WEIGHTS),  # the rest was there before: a lasting lag
            ([0.05, 0.14, 0.05], None, AVERAGES),
            (None, None, UNDECIDED),
            ([0.1, 0.11, 0.1], [0.1, 0.12, 0.1], UNDECIDED),  # not on the compared images
        ],
    )
    def test_what_causes_them(self, precise, running, cause):
        assert causes([0.1, 0.3, 0.1], precise, running) == {2: cause}


class TestSentences:
    def explain(self, lines):
        epochs = pd.DataFrame(lines)
        run = {"valid_examples": 2500, "compared_examples": 1000}
        return " ".join(diagnosis.explain(run, epochs, find_spikes(epochs, 2500, 1000)))

    def test_spikes_lag_and_dead_feature_maps(self):
        lines = lines_of([0.2, 0.5, 0.2, 0.2], precise=[0.1, 0.22, 0.19, 0.2])
        said = self.explain(layered(lines))
        assert "Spikes caused by the averages: epoch 2." in said
        assert "against precise statistics: 50.0% against 22.0%." in said
        assert "Error by running minus by precise statistics, first epochs: +10.0 points" in said
        assert "+1.0 points (epoch 3, which may be chance)." in said
        assert "precise statistics, last epoch: +0.0 points" in said
        assert "in epoch 4: 10.0% of block1." in said

    def test_what_was_not_measured_is_not_made_up(self):
        said = self.explain(lines_of([0.2, 0.1]))
        assert "no spikes in the validation error of 2 epochs" in said
        assert "Running and precise statistics were not compared in this run." in said


@pytest.mark.parametrize("num_epochs", [1, 5, 60])
def test_the_picture_has_a_panel_for_each_thing_measured(num_epochs):
    lines = lines_of([0.3] * num_epochs, precise=[0.2] * num_epochs)
    none = find_spikes(pd.DataFrame(lines), 0, 0)
    figure = diagnosis.draw(pd.DataFrame(layered(lines)), none, "a run")
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert len([title for title in titles if title]) == 4
    assert figure.axes[0].get_xlim() == (0.5, num_epochs + 0.5)
    plain = diagnosis.draw(pd.DataFrame(lines_of([0.3, 0.2])), none, "a run")
    assert len(plain.axes) == 1


def test_the_command_on_a_run_in_progress(tmp_path):
    config = config_of("full_crop", seed=3, num_epochs=60)
    lines = layered(lines_of([0.2, 0.5, 0.2], precise=[0.2, 0.22, 0.2]))
    folder = write_run(tmp_path / "run", config, lines, finished=False)
    arguments = ("-m", "experiments.diagnose", folder, f"--output={tmp_path}/new/folder")
    # As in a shell that a notebook has started.
    said = python(*arguments, MPLBACKEND="module://no.backend").stdout
    assert said.startswith("full_crop-small, seed 3: 3 epochs of 60; ")
    assert "- Spikes caused by the averages: epoch 2." in said
    row = "2 50.0% 50.0% 50.0% 22.0% 22.0% 0.4 (block7) averages"
    assert row in [" ".join(line.split()) for line in said.splitlines()]
    assert said.endswith(f"{tmp_path}/new/folder/diagnosis.png\n")
    assert (tmp_path / "new/folder/diagnosis.png").stat().st_size > 20_000
