"""A run as it is read, its picture, and the command as a person types it."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from bn_vgg.errors import UserError
from experiments.diagnosing import diagnosis
from experiments.diagnosing.diagnosis import AVERAGES, Sizes
from tests.conftest import ROOT
from tests.diagnosed_runs import flat, layered, lensed, plain, write_run


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
        from experiments import figures
        from experiments.diagnosing import diagnosis_figure

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
        from experiments.diagnosing import diagnosis_figure

        assert len(diagnosis_figure.draw_diagnosis(plain(0.3, 0.2), [], "a run").axes) == 1
        assert diagnosis_figure.draw_diagnosis([{"epoch": 4}], [], "nothing but an epoch").axes

    def test_names_do_not_overlap(self):
        pytest.importorskip("matplotlib")
        from experiments.diagnosing import diagnosis_figure

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
