"""The report's command, tables, figures and pages, as a person gets them."""

import re
import shutil
from html import unescape

import pytest

pytest.importorskip("pandas")
pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
pytest.importorskip("markdown")

from PIL import Image

from experiments import page, plots, published, tables
from experiments.runs import read_runs
from tests.conftest import ROOT, python
from tests.made_up_runs import config_of, falling, lines_of, write_run
from tests.made_up_runs import tables as made_up

RECORDED = ROOT / "experiments/results"


def make_page(root, output):
    """Does what the command does, here; returns report.md."""
    runs, epochs, unused = read_runs(root)
    about = {"root": root, "unused": unused, "command": "python …", "commit": "c0ffee"}
    page.write(runs, epochs, output, about)
    return (output / "report.md").read_text()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A small sweep in progress, with runs of all kinds that are not its own."""
    root = tmp_path_factory.mktemp("sweep") / "runs"
    for cell, best in {"full_crop": 0.2, "meanonly_crop": 0.1}.items():
        for seed in range(3):
            config = config_of(cell, seed=seed, num_epochs=16)
            write_run(root / f"{cell}/seed{seed}", config, lines_of(falling(0.5, best, 16)))
    unfinished = config_of("meanonly", num_epochs=16)
    write_run(root / "meanonly", unfinished, lines_of([0.5, 0.4]), finished=False)
    other = config_of("full_crop", num_epochs=16, model__norm_decay=0.9)
    write_run(root / "other", other, lines_of(falling(0.5, 0.3, 16)))
    write_run(root / "demo", config_of("full_crop", "demo", num_epochs=1), lines_of([0.4]))
    (root / "broken").mkdir()
    (root / "broken/config.json").write_text("{")
    (root / "<b>foreign|*one*").mkdir()
    (root / "<b>foreign|*one*/config.json").write_text('{"lr": 0.1}')
    # As in a shell that a notebook has started.
    python("-m", "experiments.report", f"--runs={root}", MPLBACKEND="module://no.backend")
    return root


class TestCommand:
    def test_the_files(self, runs):
        pages = {"report.md", "report.html"}
        figures = {"figure2-demo.png", "best-demo.png", "best-small.png"}
        figures |= {"figure1-small.png", "figure2-small.png"}
        assert {path.name for path in (runs / "report").iterdir()} == pages | figures
        for name in figures:
            with Image.open(runs / "report" / name) as image:
                assert image.width == 896
                assert len(image.convert("RGB").getcolors(2**24)) > 100

    def test_the_markdown(self, runs):
        text = (runs / "report/report.md").read_text()
        assert f"Used: 9 runs of `{runs}`, 8 finished. Not used: 2, see the end." in text
        claim = next(line for line in text.splitlines() if line.startswith("- **supported**: 3. "))
        assert "<br>Best validation errors of the first 16 epochs:" in claim
        assert text.index("## 48x48 (small)") < text.index("## 32x32 (demo)")
        assert "| `meanonly` | 0 | 2 of 16 | 1 | 40.0% so far |" in text
        assert "| `full_crop, model.norm_decay=0.9` | 1 | 16 |" in text
        assert "- `broken`: config.json is damaged: " in text
        assert "Supported if the interval of `full_crop` - `meanonly_crop` is above 0" in text

    def test_the_page_begins_with_each_verdict(self, runs):
        html = (runs / "report/report.html").read_text()
        first = html[html.index("<h2") : html.index("<img")]
        assert first.count("<li>") == 6
        assert first.count('<li><strong class="supported">supported</strong>: 3. ') == 1
        assert "(3 seeds)</strong><br>test 21.3% ± 0.0 (3 seeds)<br>16 epochs</td>" in html
        for name in re.findall(r'src="(.*?)"', html):
            assert (runs / "report" / name).exists()
        assert html.count("<table>") > 5
        assert not re.search(r"^\|", html, re.MULTILINE)  # a table that was not made one
        assert "<b>foreign" not in html
        assert "<b>foreign|*one*</code>: it has no finished epoch yet" in unescape(html)

    def test_nothing_but_broken_runs_is_a_page_that_lists_them(self, runs, tmp_path):
        shutil.copytree(runs / "broken", tmp_path / "runs/broken")
        text = make_page(tmp_path / "runs", tmp_path)
        assert make_page(runs / "meanonly", tmp_path)  # without a finished run
        assert "0 finished. Not used: 1, see the end." in text
        assert "- `broken`: config.json is damaged" in text


def test_the_recorded_report_is_what_the_recorded_runs_say(tmp_path, monkeypatch):
    """Made here again, all but the line that says of which commit it is."""
    monkeypatch.chdir(ROOT)
    recorded = (RECORDED / "report/report.md").read_text()
    again = make_page(RECORDED.relative_to(ROOT), tmp_path)
    assert again.splitlines()[:-1] == recorded.splitlines()[:-1]
    assert "-dirty" not in recorded
    # By hand, in %: 10.08, 10.24, 10.24, 11.60, 11.12; and 10.68, 11.20, 10.68, 12.64, 11.92.
    assert "**10.7% ± 0.3 (5 seeds)**<br>test 11.4% ± 0.4 (5 seeds)<br>15 epochs" in again
    assert "| `five_way/baseline-small/seed0` | 0 | 15 | 6 | 20.4% | 19.7% | 38.8 min |" in again


class TestTables:
    def test_bests_of_unequal_epochs_are_not_mixed(self):
        courses = [[0.3, 0.1], [0.3, 0.12], [0.3, 0.1, 0.05]]
        runs, _ = made_up({"full": map(lines_of, courses)})
        runs["best_valid_error_rate"] = runs["test_error_rate"] = [0.1, 0.12, 0.05]
        runs["wall_seconds"], runs["test_error_rate_precise"] = [60.0, 70.0, 7200.0], None
        assert list(tables.longest_runs(runs)["seed"]) == [2]
        found = tables.cells(runs)[["epochs", "seeds", "best validation", "time"]]
        assert found.to_numpy().tolist() == [
            ["2", "2", "11.0% ± 1.0", "65.0 s ± 5.0"], ["3", "1", "5.0%", "2.0 h"]
        ]  # fmt: skip


class TestFigures:
    def figure(self, courses, name="figure2"):
        runs, epochs = made_up(courses)
        return plots.draw_post_figure(name, runs, epochs)

    def test_the_published_curves(self):
        """By hand from the plot: figure 1's baseline starts at 45.3% in training."""
        curves = published.curves()
        first = curves.query("cell == 'baseline' and split == 'train' and epoch == 1")
        assert first["error_rate"].item() == 0.453
        lowest = curves[curves["split"] == "valid"].groupby("cell")["error_rate"].min()
        for cell, rate in lowest.items():
            assert published.BEST[cell] == pytest.approx(rate, abs=0.005)

    def test_a_mean_is_of_the_same_seeds_throughout(self):
        """One seed of ten epochs and two of three: the line is the long one's."""
        short, long = lines_of([0.1] * 3), lines_of([0.4] * 10)
        (axes,) = self.figure({"full_crop": [short, long, short]}).axes
        valid = next(line for line in axes.lines if line.get_marker() == "o")
        assert list(valid.get_ydata()) == [0.4] * 10
        labels = [text.get_text().replace("\N{NO-BREAK SPACE}", " ") for text in axes.texts]
        assert "full, 1 of 3 seeds" in labels

    def test_limits_are_those_of_the_data(self):
        (axes,) = self.figure({"full_crop": [lines_of([0.9, 0.5, 0.4])]}).axes
        assert axes.get_xlim() == (1, 3)
        assert axes.get_ylim() == pytest.approx((0, 1.04 * 0.9))

    @pytest.mark.parametrize("end", [0.0, 0.3])
    def test_labels_do_not_overlap(self, end):
        names = list(plots.FIGURES["figure2"][1])
        figure = self.figure({name: [lines_of([0.5, end])] * 2 for name in names})
        figure.canvas.draw()
        boxes = [text.get_window_extent() for text in figure.axes[0].texts]
        assert len(boxes) == 8  # four cells, four of the post
        for i, box in enumerate(boxes):
            assert box.x1 <= figure.bbox.x1
            assert not any(box.overlaps(other) for other in boxes[:i])

    def test_none_without_its_cells(self):
        assert self.figure({"baseline_crop": [lines_of([0.5])]}) is None
