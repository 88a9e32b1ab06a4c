"""Folders of runs, read: which are used, as what, and why the others are not."""

import json

import pytest

pytest.importorskip("pandas")

from bn_vgg.errors import UserError
from experiments.runs import read_run, read_runs
from tests.made_up_runs import config_of, lines_of, write_run


class TestReadRun:
    def test_what_a_run_is(self, tmp_path):
        lines = lines_of([0.4, 0.3, 0.35], train=[0.5, 0.48, 0.3], precise=[0.35])
        config = config_of("full", num_epochs=3)
        folder = write_run(tmp_path, config, lines, fingerprint="f")
        flat, run, epochs = read_run(folder)
        assert flat["model.norm"] == "full"
        assert run["finished"]
        assert run["best_valid_error_rate"] == 0.3
        assert run["test_error_rate"] == 0.31
        assert run["stood_still"] == 2
        assert run["hardware"] == "1 a processor (2 cores)"
        assert (run["valid_examples"], run["compared_examples"]) == (500, 500)
        assert list(epochs["epoch"]) == [1, 2, 3]
        assert epochs["valid/error_rate_precise"].isna().tolist() == [False, True, True]

    def test_fields_that_were_added_since_are_filled(self, tmp_path):
        """A run of before there was a precision or a bias correction is still a cell."""
        config = config_of("full", num_epochs=1)
        del config["model"]["precision"], config["optimizer"]["bias_correction"]
        write_run(tmp_path, config, lines_of([0.4]))
        assert read_run(tmp_path)[0]["model.precision"] == "highest"
        assert list(read_runs(tmp_path)[0]["cell"]) == ["full"]

    @pytest.mark.parametrize(
        ("planned", "of_result", "finished"),
        [(2, 2, True), (3, 3, False), (3, 2, False), (2, 1, False)],
    )
    def test_finished_is_with_a_result_of_all_epochs(self, planned, of_result, finished, tmp_path):
        """A run that is continued still has the result of before."""
        config = config_of("full", num_epochs=planned)
        folder = write_run(tmp_path, config, lines_of([0.4, 0.3]))
        result = json.loads((folder / "result.json").read_text())
        result["config"]["num_epochs"] = of_result
        (folder / "result.json").write_text(json.dumps(result))
        assert read_run(tmp_path)[1]["finished"] == finished

    def test_no_run(self, tmp_path):
        with pytest.raises(UserError, match="holds no run: there is no config"):
            read_run(tmp_path)


class TestReadRuns:
    @pytest.mark.parametrize(
        ("name", "content", "reason"),
        [
            ("config.json", "{", "config.json is damaged: "),
            ("config.json", "[1]", "it is damaged: not what a run writes"),
            ("config.json", '{"lr": 1}', "config.json has no name: not a run of this project"),
            ("config.json", b"\xff\xfe", "config.json is damaged: 'utf-8'"),
            ("metrics.jsonl", "", "it has no finished epoch yet"),
            ("metrics.jsonl", '{"epoch": 1', "metrics.jsonl is damaged: "),
            ("metrics.jsonl", '{"epoch": 2, "valid/error_rate": 0.1}', "are not the epochs from 1"),
            ("metrics.jsonl", '{"epoch": 1, "valid/error_rate": null}', "are not the epochs from"),
            ("metrics.jsonl", '{"epoch": 1}', "it is damaged: not what a run writes (KeyError"),
            ("result.json", "{", "result.json is damaged: "),
            ("result.json", '{"config": {"num_epochs": 1}}', "writes (KeyError('test_error_rate'"),
            ("data.json", '{"examples": {"valid": "x"}}', "it is damaged: not what a run writes"),
        ],
    )
    def test_what_is_broken_or_foreign_is_told_with_its_reason(
        self, name, content, reason, tmp_path
    ):
        config = config_of("full", num_epochs=1)
        write_run(tmp_path / "good", config, lines_of([0.4]))
        folder = write_run(tmp_path / "bad", config, lines_of([0.4]))
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        runs, _, unused = read_runs(tmp_path)
        assert list(runs["folder"]) == ["good"]
        assert reason in unused["bad"]
        assert "\n" not in unused["bad"]

    @pytest.mark.parametrize(
        ("changes", "cell"),
        [
            ({}, "meanonly"),
            ({"seed": 7, "checkpoint__every_steps": 5, "eval__compared_examples": 10}, "meanonly"),
            ({"batch_size": 400, "name": "mine"}, "meanonly, batch_size=400"),
            ({"model__norm": "ghost"}, "meanonly, model.norm=ghost"),
            ({"model__norm": "full"}, "full"),
            (
                {"model__norm": "ghost", "model__norm_kwargs": {"ghost_size": 10}},
                "meanonly, model.norm=ghost, model.norm_kwargs={'ghost_size': 10}",
            ),
        ],
    )
    def test_a_cell_is_the_nearest_one_and_what_differs(self, changes, cell, tmp_path):
        write_run(tmp_path, config_of("meanonly", num_epochs=1, **changes), lines_of([0.4]))
        assert list(read_runs(tmp_path)[0]["cell"]) == [cell]

    def test_of_one_seed_the_most_complete_run_is_used(self, tmp_path):
        for name, epochs, finished in (("a", 2, True), ("b", 3, False), ("c", 3, True)):
            config = config_of("full", num_epochs=epochs)
            write_run(tmp_path / name, config, lines_of([0.4] * epochs), finished=finished)
        runs, epochs, unused = read_runs(tmp_path)
        assert list(runs["folder"]) == ["c"]
        assert set(epochs["folder"]) == {"c"}
        reason = "for this cell and seed c is used, finished or with more epochs"
        assert unused["a"] == unused["b"] == reason

    def test_sections_are_of_one_size_and_the_same_images(self, tmp_path):
        def write(name, source, fingerprint, variant="small", **changes):
            config = config_of("full", variant, num_epochs=1, data__source=source, **changes)
            write_run(tmp_path / name, config, lines_of([0.4]), fingerprint=fingerprint)

        write("a", "here.zip", "f", seed=0)
        write("b", "here.zip", "f", seed=1)
        write("same_images", "there.zip", "f", seed=2)
        write("other_images", "others.zip", "g", seed=3)
        write("changed_since", "here.zip", "h", seed=4)
        write("full", "here.zip", "i", "full")
        runs, _, unused = read_runs(tmp_path)
        sections = dict(zip(runs["folder"], runs["section"], strict=True))
        assert sections == {
            "full": "full", "a": "small", "b": "small", "same_images": "small",
            "other_images": "small-2",
        }  # fmt: skip
        assert list(runs["section"].unique()) == ["full", "small", "small-2"]
        assert "its images differ" in unused["changed_since"]

    def test_a_link_is_followed_and_a_circle_is_not(self, tmp_path):
        write_run(tmp_path / "elsewhere", config_of("full"), lines_of([0.4]), finished=False)
        (tmp_path / "runs").mkdir()
        (tmp_path / "runs/linked").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere/circle").symlink_to(tmp_path / "runs")
        assert list(read_runs(tmp_path / "runs")[0]["folder"]) == ["linked"]

    def test_no_run_and_no_folder(self, tmp_path):
        (tmp_path / "file").touch()
        for path, message in {
            tmp_path: "there is no run below .*: no config.json or result.json",
            tmp_path / "nope": "nope is not a folder on this machine",
            tmp_path / "file": "file is not a folder on this machine",
        }.items():
            with pytest.raises(UserError, match=message):
                read_runs(path)
