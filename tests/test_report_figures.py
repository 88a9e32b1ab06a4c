"""The published curves as they are in the repository, and the report's figures."""

import numpy as np
import pytest

from experiments.reporting import published
from experiments.reporting.cells import CELLS
from experiments.reporting.sections import Section
from tests.conftest import ROOT, SHARED
from tests.made_up_runs import falling, found, seeds

SOURCE = SHARED / "published" / "curves.csv"


def section_of(cells):
    return Section("small", ["photos.zip"], "small", 48, cells, {})


class TestPublished:
    @pytest.mark.skipif(not SOURCE.exists(), reason="the post's figures as numbers are not here")
    def test_the_numbers_are_the_ones_that_were_handed_over(self):
        assert (ROOT / "experiments/published/curves.csv").read_bytes() == SOURCE.read_bytes()

    def test_epochs_count_from_one(self):
        valid = published.curves()["meanonly_crop"]["valid"]
        assert valid[0] == (1, 0.49)
        assert valid[-1].epoch == 73

    def test_every_curve_has_its_cell(self):
        lengths = {
            cell: [len(points) for points in of.values()] for cell, of in published.curves().items()
        }
        # Counted in the file, training first.
        assert lengths == {
            "baseline": [50, 50], "meanonly": [50, 50],
            "full_crop": [53, 55], "full_crop_dropout": [44, 45],
            "meanonly_crop": [71, 73], "meanonly_crop_dropout": [62, 63],
        }  # fmt: skip

    def test_best_errors_are_the_curves_where_there_are_curves(self):
        assert published.BEST.keys() < CELLS.keys()
        for cell, of in published.curves().items():
            lowest = min(rate for _, rate in of["valid"])
            assert published.BEST[cell].valid == pytest.approx(lowest, abs=0.004)


class TestCourse:
    def test_mean_and_range_over_the_seeds_that_got_there(self):
        curves = pytest.importorskip("experiments.reporting.curves", exc_type=ImportError)
        by_seed = seeds("full", [[0.4, 0.3, 0.2], [0.6, 0.5]])
        assert curves.course(by_seed, "valid/error_rate") == [
            (1, 0.5, 0.4, 0.6, 2), (2, 0.4, 0.3, 0.5, 2), (3, 0.2, 0.2, 0.2, 1)
        ]  # fmt: skip


class TestFigures:
    @pytest.fixture(autouse=True)
    def drawing(self):
        pytest.importorskip("matplotlib")
        from experiments.reporting import curves, grid_figure

        self.curves, self.grid_figure = curves, grid_figure

    def line(self, figure, colour, style):
        """The thick line of a colour and style, as arrays of x and y."""
        (axes,) = figure.axes
        lines = [line for line in axes.lines
                 if line.get_color() == colour and line.get_linestyle() == style
                 and line.get_linewidth() > 1]  # fmt: skip
        (line,) = lines
        return line.get_data()

    def test_validation_is_solid_and_training_dashed_over_published_ones(self):
        cells = {"meanonly": seeds("meanonly", [[0.4] * 20, [0.2] * 20], train=[0.1] * 20)}
        figure = self.curves.draw("figure1", section_of(cells))
        (axes,) = figure.axes
        assert axes.get_ylim() == (0, 0.5)
        _, valid = self.line(figure, "#D55E00", "-")
        _, train = self.line(figure, "#D55E00", "--")
        np.testing.assert_allclose(valid, [0.3] * 20)
        np.testing.assert_allclose(train, [0.1] * 20)
        published_lines = [line for line in axes.lines if line.get_color() == "#c4c4c4"]
        assert [len(line.get_xdata()) for line in published_lines] == [20] * 4
        assert min(line.get_xdata()[0] for line in published_lines) == 1
        names = {text.get_text() for text in axes.texts}
        assert names == {"mean-only, 2 seeds", "post: mean-only", "post: none"}
        assert "48x48" in figure.texts[0].get_text()
        assert "128x128" in figure.texts[1].get_text()

    def test_where_not_all_seeds_have_got_the_line_is_thin(self):
        cells = {"meanonly_crop": seeds("meanonly_crop", [[0.4] * 30, [0.2] * 20])}
        figure = self.curves.draw("figure2", section_of(cells))
        epochs, _ = self.line(figure, "#D55E00", "-")
        assert list(epochs) == list(range(1, 21))
        (thin,) = [line for line in figure.axes[0].lines
                   if line.get_color() == "#D55E00" and line.get_linewidth() < 1
                   and line.get_linestyle() == "-"]  # fmt: skip
        assert list(thin.get_xdata()) == list(range(21, 31))
        assert thin.get_ydata()[-1] == 0.4
        assert "mean-only, 1 of 2 seeds" in {text.get_text() for text in figure.axes[0].texts}

    def test_what_is_not_of_the_grid_is_drawn_beside_what_it_is_made_of(self):
        others = {f"meanonly, model.norm_decay=0.{i}": seeds("meanonly", [[0.3] * 3])
                  for i in range(9)}  # fmt: skip
        section = section_of({cell: seeds(cell, [[0.4] * 3]) for cell in ("meanonly", "full")})
        assert self.curves.draw_others(section) is None
        section.others = dict(list(others.items())[:2])
        names = {text.get_text() for text in self.curves.draw_others(section).axes[0].texts}
        assert names == {
            "meanonly, 1 seed", *(f"meanonly, model.norm_decay=0.{i},\n1 seed" for i in range(2))
        }  # fmt: skip
        section.others = others
        assert "3 more are in the table" in self.curves.draw_others(section).texts[1].get_text()

    def test_one_run_of_one_epoch(self):
        cells = {"full_crop": {0: found("full_crop", [0.4], planned=60)}}
        figure = self.curves.draw("figure2", section_of(cells))
        assert figure.axes[0].get_ylim() == (0, 0.6)
        assert "full, 1 seed" in {text.get_text() for text in figure.axes[0].texts}

    def test_no_figure_without_its_cells(self):
        cells = {"full": seeds("full", [[0.4]])}
        assert self.curves.draw("figure1", section_of(cells)) is None
        assert self.curves.draw("figure2", section_of(cells)) is None
        assert self.grid_figure.draw_grid(section_of({})) is None

    @pytest.mark.parametrize("name", ["figure1", "figure2", "grid"])
    def test_texts_do_not_overlap_or_leave_the_picture(self, name):
        """Ten seeds of every cell, whose lines end at nearly the same error."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        cells = {cell: seeds(cell, [falling(0.5, 0.05, 60)] * 10) for cell in CELLS}
        section = section_of(cells)
        draw = self.grid_figure.draw_grid
        figure = draw(section) if name == "grid" else self.curves.draw(name, section)
        FigureCanvasAgg(figure).draw()
        (axes,) = figure.axes
        texts = [*figure.texts, *axes.texts, *axes.get_yticklabels()]
        boxes = [text.get_window_extent() for text in texts if text.get_text()]
        assert len(boxes) > 8
        for i, box in enumerate(boxes):
            assert box.x0 >= 0
            assert box.x1 <= figure.bbox.x1
            assert not any(box.overlaps(other) for other in boxes[:i])

    def test_the_grids_dots(self):
        cells = {
            "full_crop": seeds("full_crop", [[0.1], [0.2], [0.3]]),
            "meanonly": seeds("meanonly", [[0.0]]),
            "full": {0: found("full", [0.1], planned=9)},
        }
        figure = self.grid_figure.draw_grid(section_of(cells))
        (axes,) = figure.axes
        assert [label.get_text() for label in axes.get_yticklabels()] == [
            "mean-only", "full, cropping"
        ]  # fmt: skip
        rings = [line for line in axes.lines if line.get_markerfacecolor() == "none"]
        assert [list(line.get_xdata()) for line in rings] == [[0.005], [0.1, 0.2, 0.3]]
        texts = [text.get_text() for text in axes.texts]
        assert texts == ["0.0% (1 seed)", "20.0% ± 5.8 (3 seeds)"]
