"""Which runs a report finds, where it puts each, and what it leaves out and why."""

import json
import os

import pytest

from bn_vgg.errors import UserError
from bn_vgg.run_dir import ONLY_SPEED, flatten
from experiments.presets import VARIANTS
from experiments.reporting import cells, sections
from experiments.reporting.cells import CELLS, place
from experiments.reporting.found import find
from experiments.reporting.progress import find_progress
from tests.conftest import ROOT
from tests.made_up_runs import config_of, lines_of, write_plan, write_run

RECORDED = ROOT / "experiments" / "results"


def place_of(config, **missing):
    return place({field: of for field, of in flatten(config).items() if field not in missing})


class TestPlace:
    @pytest.mark.parametrize("variant", VARIANTS)
    @pytest.mark.parametrize("cell", CELLS)
    def test_a_cell_is_one_whatever_is_free(self, cell, variant):
        config = config_of(
            cell, variant, seed=7, num_epochs=3, data__source="photos/*.zip",
            data__placement="host", eval__batch_size=7, eval__precise_examples=0,
        )  # fmt: skip
        config["resources"] = {"GPU": 0.25}
        assert place_of(config) == cells.Place(cell, is_cell=True)

    def test_every_other_difference_makes_it_another_run(self):
        """Any field: each is changed in turn."""
        config = flatten(config_of("full_crop_dropout", "small"))
        free = {"name", "variant", "seed", "num_epochs", "data.source", *ONLY_SPEED}
        for field in config:
            if field in free or field.startswith("eval."):
                continue
            changed = place(config | {field: "another"})
            assert not changed.is_cell
            assert changed.label == f"full_crop_dropout, {field}=another"

    def test_fields_of_an_own_kind(self):
        config = config_of("meanonly_crop")
        config["model"]["norm_kwargs"] = {"power": 0.5}
        config["more"] = 1
        label = "meanonly_crop, model.norm_kwargs.power=0.5, more=1"
        assert place_of(config) == cells.Place(label, is_cell=False)

    def test_an_unknown_name_is_told_from_the_nearest_cell(self):
        config = config_of("baseline_crop", "demo", name="mine-demo", model__norm="my_norms:Mine")
        assert place_of(config).label == "mine: baseline_crop, model.norm=my_norms:Mine"

    def test_a_name_alone_does_not_make_a_cell(self):
        config = config_of("meanonly_crop", name="full_crop")
        assert place_of(config).label == "full_crop, model.norm=mean_only"

    def test_fields_that_were_not_recorded_are_equal_and_named(self):
        config = flatten(config_of("full"))
        for field in ("model.stats_pass", "model.norm_kwargs", "eval.compared_examples"):
            del config[field]
        assert place(config) == cells.Place(
            "full", is_cell=True, unrecorded=("model.norm_kwargs", "model.stats_pass")
        )


class TestFind:
    def test_runs_at_any_depth_but_not_among_checkpoints(self, tmp_path):
        write_run(tmp_path / "a/b/full/seed0", config_of("full"), lines_of([0.4, 0.3]))
        write_run(tmp_path / "c", config_of("full", seed=1), lines_of([0.4]), finished=False)
        write_run(tmp_path / "c/checkpoints/5", config_of("full"), lines_of([0.4]))
        found, left = find(tmp_path)
        assert [each.folder for each in found] == ["a/b/full/seed0", "c"]
        assert left == []

    def test_the_folder_itself_may_be_a_run(self, tmp_path):
        write_run(tmp_path, config_of("full", seed=4, num_epochs=2), lines_of([0.4, 0.3]))
        ((each,), _) = find(tmp_path)
        assert (each.folder, each.seed, each.epochs, each.planned) == (".", 4, 2, 2)
        assert each.result["best_valid_error_rate"] == 0.3

    def test_a_link_is_followed_and_a_circle_is_not(self, tmp_path):
        write_run(tmp_path / "elsewhere", config_of("full"), lines_of([0.4]))
        (tmp_path / "runs").mkdir()
        (tmp_path / "runs/linked").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere/circle").symlink_to(tmp_path / "runs")
        found, _ = find(tmp_path / "runs")
        assert [each.folder for each in found] == ["linked"]

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
        ((each,), _) = find(tmp_path)
        assert (each.result is not None) == finished

    @pytest.mark.parametrize(
        ("name", "content", "reason"),
        [
            ("config.json", "{", "config.json is damaged: "),
            ("config.json", "[]", "its configuration is no object"),
            ("config.json", '{"lr": 1}', "its configuration has no name: not a run of this"),
            ("config.json", b"\xff\xfe", "config.json is damaged: 'utf-8'"),
            ("metrics.jsonl", "", "it has no finished epoch yet"),
            ("metrics.jsonl", '{"epoch": 1}\n{"epo', "metrics.jsonl, line 2 is damaged: "),
            ("metrics.jsonl", '{"epoch": 1}', "no line of metrics.jsonl has a validation error"),
            ("result.json", "{", "result.json is damaged: "),
            ("result.json", "[]", "result.json is damaged: it has no configuration"),
            ("result.json", '{"config": {}}', "result.json is damaged: it has no number best_"),
            ("data.json", "[]", "data.json is damaged: it has no numbers of examples"),
            ("data.json", '{"examples": {"valid": "x"}}', "data.json is damaged: it has no num"),
        ],
    )
    def test_what_is_broken_or_foreign_is_left_with_its_reason(
        self, name, content, reason, tmp_path
    ):
        write_run(tmp_path / "good", config_of("full"), lines_of([0.4]), finished=False)
        folder = write_run(tmp_path / "bad", config_of("full"), lines_of([0.4]))
        if isinstance(content, str):
            content = content.encode()
        (folder / name).write_bytes(content)
        found, ((left, why),) = find(tmp_path)
        assert [each.folder for each in found] == ["good"]
        assert left == "bad"
        assert why.startswith(reason)
        assert "\n" not in why

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"variant": "huge"}, "its variant 'huge' is none of full, small, demo"),
            ({"seed": "0"}, "its configuration has no seed"),
            ({"eval": {"compared_examples": "x"}}, "its configuration's eval.compared_examples"),
        ],
    )
    def test_fields_of_another_shape(self, changes, reason, tmp_path):
        write_run(tmp_path / "bad", config_of("full") | changes, lines_of([0.4]))
        found, ((_, why),) = find(tmp_path)
        assert found == []
        assert why.startswith(reason)

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_what_cannot_be_read(self, tmp_path):
        write_run(tmp_path / "good", config_of("full"), lines_of([0.4]))
        (tmp_path / "closed").mkdir(mode=0)
        _, left = find(tmp_path)
        assert left == [("closed", "it cannot be read: Permission denied")]

    def test_no_run_and_no_folder(self, tmp_path):
        (tmp_path / "file").touch()
        for path, message in {
            tmp_path: "there is no run below .*: no config.json or result.json",
            tmp_path / "nope": "nope does not exist; give the folder that holds the runs",
            tmp_path / "file": "file is no folder; give the folder",
        }.items():
            with pytest.raises(UserError, match=message):
                find(path)

    def test_the_recorded_runs(self):
        """Of before there was a config.json of their own, and of before some fields."""
        found, left = find(RECORDED)
        assert left == []
        assert all(each.result for each in found)
        labels = {each.place.label for each in found if not each.place.is_cell}
        assert labels >= {"meanonly, batch_size=400", "meanonly, model.norm_decay=0.9"}
        demo = next(each for each in found if each.folder.startswith("demo_runs"))
        assert "model.stats_pass" in demo.place.unrecorded


class TestSort:
    def write(self, root, folder, cell="full", variant="small", *, fingerprint=None, **changes):
        errors = changes.pop("errors", [0.4, 0.3])
        finished = changes.pop("finished", True)
        config = config_of(cell, variant, **{"num_epochs": len(errors)} | changes)
        write_run(
            root / folder, config, lines_of(errors), finished=finished, fingerprint=fingerprint
        )

    def sorted(self, root):
        found, _ = find(root)
        return sections.sort(found)

    def test_variants_are_never_mixed_and_the_published_one_is_first(self, tmp_path):
        for variant in ("demo", "small", "full"):
            self.write(tmp_path, variant, "full", variant)
        found, left = self.sorted(tmp_path)
        assert [(each.slug, each.side) for each in found] == [
            ("full", 128), ("small", 48), ("demo", 32)
        ]  # fmt: skip
        assert left == []

    def test_cells_in_the_grids_order_and_others(self, tmp_path):
        for seed, cell in enumerate(("full", "baseline", "meanonly")):
            self.write(tmp_path, cell, cell, seed=seed)
        self.write(tmp_path, "fast", "full", model__norm_decay=0.9)
        ((section,), _) = self.sorted(tmp_path)
        assert list(section.cells) == ["baseline", "meanonly", "full"]
        assert list(section.others) == ["full, model.norm_decay=0.9"]
        assert list(section.cells["baseline"]) == [1]

    def test_of_duplicates_the_finished_and_then_the_longer_is_used(self, tmp_path):
        self.write(tmp_path, "a", errors=[0.4] * 9, num_epochs=60, finished=False)
        self.write(tmp_path, "b", errors=[0.4] * 2)
        self.write(tmp_path, "c", errors=[0.4] * 3)
        ((section,), left) = self.sorted(tmp_path)
        assert section.cells["full"][0].folder == "c"
        reason = "same configuration and seed as c, which is used"
        assert sorted(left) == [("a", reason), ("b", reason)]

    def test_other_images_are_another_section_the_larger_first(self, tmp_path):
        self.write(tmp_path, "a", data__source="one.zip")
        self.write(tmp_path, "b", data__source="two.zip")
        self.write(tmp_path, "c", data__source="two.zip", seed=1)
        found, left = self.sorted(tmp_path)
        assert [(each.slug, each.sources) for each in found] == [
            ("small", ["two.zip"]), ("small-2", ["one.zip"])
        ]  # fmt: skip
        assert left == []

    def test_the_same_images_by_two_names_are_one_section(self, tmp_path):
        self.write(tmp_path, "a", data__source="here.zip", fingerprint="f")
        self.write(tmp_path, "b", data__source="/there.zip", fingerprint="f", seed=1)
        ((section,), _) = self.sorted(tmp_path)
        assert section.sources == ["/there.zip", "here.zip"]

    def test_fingerprints_of_two_sizes_do_not_part_cropping_from_none(self, tmp_path):
        """They are of the images as scaled, to 48 and to 56 pixels."""
        self.write(tmp_path, "a", "full", fingerprint="of48")
        self.write(tmp_path, "b", "full_crop", fingerprint="of56")
        ((section,), _) = self.sorted(tmp_path)
        assert list(section.cells) == ["full", "full_crop"]

    def test_a_source_whose_content_changed_is_two(self, tmp_path):
        self.write(tmp_path, "a", fingerprint="before")
        self.write(tmp_path, "b", fingerprint="after")
        found, left = self.sorted(tmp_path)
        assert [len(each.runs) for each in found] == [1, 1]
        assert left == []


BAD_PLANS = ["{", "[]", '{"format": 1, "runs": 1}', '{"format": 1}', '{"format": 1, "runs": [{}]}']


class TestProgress:
    def sweep(self, root, *folders, epochs=2):
        write_plan(root, "five_way", folders, epochs)

    def test_counts(self, tmp_path):
        self.sweep(tmp_path, "full/seed0", "full/seed1", "full/seed2", "full/seed3")
        config = config_of("full", num_epochs=2)
        write_run(tmp_path / "full/seed0", config, lines_of([0.4, 0.3]))
        write_run(tmp_path / "full/seed1", config, lines_of([0.4]), finished=False)
        # Finished, and then the sweep was asked for more.
        short = config_of("full", num_epochs=1)
        write_run(tmp_path / "full/seed2", short, lines_of([0.4]))
        for root in (tmp_path, tmp_path / "full", tmp_path / "full/seed0"):
            found = find_progress(root)
            assert found == ("five_way", "small", 4, 1, 2, {})
            assert found.not_begun == 1

    def test_a_sweep_further_up_that_is_another_one(self, tmp_path):
        self.sweep(tmp_path, "others/seed0")
        (tmp_path / "mine").mkdir()
        assert find_progress(tmp_path / "mine") is None
        (tmp_path / "sweep.json").write_text("{")
        assert find_progress(tmp_path / "mine") is None

    @pytest.mark.parametrize("content", BAD_PLANS)
    def test_damaged(self, content, tmp_path):
        (tmp_path / "sweep.json").write_text(content)
        with pytest.raises(UserError, match="damaged"):
            find_progress(tmp_path)
