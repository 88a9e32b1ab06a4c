"""The verdicts on runs made up to have one, the picture, and the command as a person types it."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from bn_vgg.errors import UserError
from experiments import diagnosis, verdicts
from experiments.diagnosis import AVERAGES, KINDS, UNDECIDED, WEIGHTS, Sizes
from tests.conftest import ROOT

SIZES = Sizes(valid=2500, compared=1000)
LAYERS = [f"block{i}" for i in range(8)]
CONFIG = {
    "name": "full_crop",
    "seed": 3,
    "num_epochs": 60,
    "batch_size": 100,
    "model": {
        "norm": "full",
        "norm_decay": 0.995,
        "dropout_rate": 0.5,
        "stats_pass": "clean",
        "features": [20, 20, 50, 50, 50, 50, 50, 50],
        "hidden_units": 500,
    },
    "eval": {"compared_examples": 1000},
}


def plain(*errors):
    """Lines with a validation error alone."""
    return [{"epoch": i, "valid/error_rate": error} for i, error in enumerate(errors, start=1)]


def lensed(*triples):
    """Lines of (running, precise, batch); the validation error is the running one."""
    return [
        line | dict(zip(KINDS.values(), triple, strict=True)) | {"step": 200 * line["epoch"]}
        for line, triple in zip(plain(*(triple[0] for triple in triples)), triples, strict=True)
    ]


def flat(error):
    return (error, error, error)


def layered(lines):
    """Adds what is measured of the layers; block1 and the hidden layer have dead units."""
    for line in lines:
        for i, layer in enumerate(LAYERS):
            line[f"mean_distance/{layer}"] = 0.1 * (i + 1) / line["epoch"]
            line[f"std_ratio/{layer}"] = 1 + i / 10
            line[f"never_active/{layer}"] = 0.1 if i == 1 else 0.0
        line["never_active/hidden"] = 0.02
    return lines


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


def write_run(folder, lines, **more):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | more))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


class TestReadRun:
    def test_it_reads_lines_configuration_and_sizes(self, tmp_path):
        folder = write_run(tmp_path / "run", lensed(flat(0.2)))
        (folder / "data.json").write_text(json.dumps({"examples": {"valid": 500}}))
        run = diagnosis.read_run(str(folder))
        assert run.lines == lensed(flat(0.2))
        assert run.config["model.norm"] == "full"
        assert run.sizes == Sizes(valid=500, compared=500)

    def test_a_recorded_result_will_do(self):
        folder = ROOT / "experiments/results/demo_runs/meanonly_crop-demo/seed0"
        run = diagnosis.read_run(str(folder))
        assert len(run.lines) == 10
        assert run.config["model.norm"] == "mean_only"
        assert run.sizes == Sizes(valid=500, compared=None)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "has no finished epoch yet"),
            ('{"epoch": 1}\n{"epoch": 2, "va', "metrics.jsonl, line 2 is damaged: "),
            ("[1]\n", "line 1 is damaged: it is no object with an epoch from 1"),
            ('{"step": 1}\n', "line 1 is damaged: it is no object with an epoch from 1"),
            ('{"epoch": 0}\n', "line 1 is damaged: it is no object with an epoch from 1"),
            ('{"epoch": 1}\n\n', "line 2 is damaged: "),
            ('{"epoch": 2}\n{"epoch": 2}\n', "line 2 is damaged: its epoch does not follow"),
        ],
    )
    def test_damage(self, text, message, tmp_path):
        folder = write_run(tmp_path / "run", [])
        (folder / "metrics.jsonl").write_text(text)
        with pytest.raises(UserError, match=message) as raised:
            diagnosis.read_run(str(folder))
        assert "\n" not in str(raised.value)

    @pytest.mark.parametrize("name", ["config.json", "data.json", "metrics.jsonl"])
    @pytest.mark.parametrize("content", [b"\xff\xfe", b"[]", b"3"])
    def test_no_file_of_it_makes_a_traceback(self, name, content, tmp_path):
        folder = write_run(tmp_path / "run", plain(0.2))
        (folder / name).write_bytes(content)
        with pytest.raises(UserError, match="is damaged"):
            diagnosis.read_run(str(folder))

    def test_no_run(self, tmp_path):
        with pytest.raises(UserError, match="holds no run: there is no config"):
            diagnosis.read_run(str(tmp_path))


class TestPicture:
    @pytest.mark.parametrize("num_epochs", [1, 5, 60])
    def test_the_axes_are_what_was_measured(self, num_epochs, tmp_path):
        pytest.importorskip("matplotlib")
        from experiments import diagnosis_figure, figures

        lines = layered(lensed(*[flat(0.3)] * num_epochs))
        spikes = [diagnosis.Spike(1, 1, 0.1, AVERAGES)]
        figure = diagnosis_figure.draw_diagnosis(lines, spikes, "a run")
        titles = [axes.get_title(loc="left") for axes in figure.axes]
        assert titles[0] == "Error. Spikes: A of the averages"
        assert len([title for title in titles if title]) == 4
        figures.save(figure, tmp_path / "picture")
        with Image.open(tmp_path / "picture") as image:
            assert image.format == "PNG"
            assert image.width == 1600
            assert len(image.convert("RGB").getcolors(2**24)) > 100

    def test_without_a_lens_there_is_one_panel(self):
        pytest.importorskip("matplotlib")
        from experiments import diagnosis_figure

        assert len(diagnosis_figure.draw_diagnosis(plain(0.3, 0.2), [], "a run").axes) == 1
        assert diagnosis_figure.draw_diagnosis([{"epoch": 4}], [], "nothing but an epoch").axes

    def test_names_do_not_overlap(self):
        pytest.importorskip("matplotlib")
        from experiments import diagnosis_figure

        figure = diagnosis_figure.draw_diagnosis(lensed(flat(0.3), flat(0.0)), [], "a run")
        figure.canvas.draw()
        boxes = [text.get_window_extent() for text in figure.axes[0].texts]
        assert len(boxes) == 5  # four errors and the footnote
        for i, box in enumerate(boxes):
            assert box.x1 <= figure.bbox.x1
            assert not any(box.overlaps(other) for other in boxes[:i])


def run_diagnose(*arguments, status=0, **environment):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.diagnose", *map(str, arguments)],
        cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    return done


class TestCommand:
    def test_it_writes_the_page_and_the_picture(self, tmp_path):
        pytest.importorskip("matplotlib")
        lines = layered(lensed(flat(0.2), (0.5, 0.22, 0.2), flat(0.2)))
        folder = write_run(tmp_path / "run", lines)
        done = run_diagnose(folder)
        assert done.stdout == f"{folder}/diagnosis/diagnosis.md\n"
        assert {path.name for path in (folder / "diagnosis").iterdir()} == {
            "diagnosis.md",
            "diagnosis.png",
        }
        page = (folder / "diagnosis" / "diagnosis.md").read_text()
        assert page.startswith("# full_crop, seed 3\n")
        assert "norm full, batches of 100, dropout 0.5, 3 of 60 epochs." in page
        assert "- The spike at epoch 2 is the running averages: " in page
        assert "![" in page
        assert "| 2 | 50.0% | 50.0% | 22.0% | 20.0% | 0.4 (block7) | averages |" in page
        assert (folder / "diagnosis" / "diagnosis.png").stat().st_size > 20_000

    def test_a_recorded_result_to_another_folder(self, tmp_path):
        pytest.importorskip("matplotlib")
        folder = ROOT / "experiments/results/questions/meanonly_crop-small/seed0"
        run_diagnose(folder, f"--output={tmp_path}/page")
        page = (tmp_path / "page/diagnosis.md").read_text()
        assert "- The spikes at epochs 9 and 11 are the running averages: " in page
        assert (
            "| 9 | 10.8% | 25.7% | 13.2% | 23.5% | 10.7% | 10.7% | 0.14 (block6) | averages |"
        ) in page
        assert not (folder / "diagnosis").exists()

    def test_without_matplotlib_it_ends_in_one_line(self, tmp_path):
        (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError(name='matplotlib')")
        done = run_diagnose(tmp_path, status=2, PYTHONPATH=str(tmp_path))
        assert done.stderr == ("error: the picture needs matplotlib: pip install -e '.[report]'\n")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "WORKDIR is missing; see --help"),
            (["a", "b"], "unexpected argument 'b'; see --help"),
            (["/nope"], "/nope holds no run: there is no config.json in it"),
        ],
    )
    def test_wrong_arguments(self, arguments, message):
        if arguments == ["/nope"]:
            pytest.importorskip("matplotlib")
        done = run_diagnose(*arguments, status=2)
        assert done.stdout == ""
        assert done.stderr == f"error: {message}\n"
