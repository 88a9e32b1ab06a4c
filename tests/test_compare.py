"""Comparisons of runs over seeds: what makes a group, the numbers, and the command."""

import json

import pytest

pytest.importorskip("pandas")
pytest.importorskip("matplotlib")

import pandas as pd
from PIL import Image

from bn_vgg.errors import UserError
from experiments import comparison
from experiments.runs import read_runs
from tests.conftest import ROOT, python
from tests.made_up_runs import config_of, lines_of, write_run

SGD = {"optimizer__name": "sgd", "optimizer__learning_rate": 0.01}


def write(root, folder, norm, errors, *, finished=True, **fields):
    """Writes a run for each error, of seeds from 0."""
    for seed, error in enumerate(errors):
        fields = {"num_epochs": 2, "model__norm": norm} | fields
        config = config_of("baseline_crop", "demo", seed=seed, **fields)
        lines = lines_of([0.5] * (fields["num_epochs"] - 1) + [error])
        write_run(root / folder / f"seed{seed}", config, lines, finished=finished)


def rows(table):
    return [" ".join(line.split()) for line in table.splitlines()]


def test_means_and_paired_differences_have_students_intervals(tmp_path):
    """Half of it is 4.303 / sqrt(3) = 2.484 standard deviations of three (any table).

    They are 10 and 11 points; the differences, seed by seed, are 1, 2 and 3.
    """
    write(tmp_path, "a", "full", [0.10, 0.20, 0.30])
    write(tmp_path, "b", "group", [0.11, 0.22, 0.33])
    runs, fields, besides = comparison.group(read_runs(tmp_path)[0], ["model.norm"])
    measured = comparison.measure(runs, fields)
    assert besides == []
    assert rows(comparison.table(measured)) == [
        "group seeds valid error difference test error minutes images/s",
        "full 3 20.0 ± 24.8 – 21.0 ± 24.8 10.0 ± 0.0 500 ± 0",  # noqa: RUF001
        "group 3 22.0 ± 27.3 +2.0 ± 2.5 23.0 ± 27.3 10.0 ± 0.0 500 ± 0",
    ]
    valid, difference, *_ = comparison.draw(measured, runs, fields, "").axes
    rings = [list(line.get_xdata()) for line in valid.lines if len(line.get_xdata()) == 3]
    assert rings == [pytest.approx([10, 20, 30]), pytest.approx([11, 22, 33])]
    (bar,) = difference.containers[1].lines[2][0].get_segments()
    assert bar[:, 0] == pytest.approx([2 - 2.484, 2 + 2.484], abs=1e-3)
    assert len({line.get_color() for line in valid.lines}) == 2


def test_recorded_runs_pair_where_they_share_seeds():
    """The report's interval of full - mean-only is +1.3 to +7.0."""
    runs, _, _ = read_runs(ROOT / "experiments/results/five_way")
    found = rows(comparison.table(comparison.measure(*comparison.group(runs, ["name"])[:2])))
    assert found[1].startswith("meanonly_crop-small 5 10.7 ± 0.8 – ")  # noqa: RUF001
    assert any(row.startswith("full_crop-small 5 14.8 ± 2.3 +4.2 ± 2.8 15.1 ") for row in found)
    assert any(row.startswith("meanonly-small 3 13.0 ") for row in found)
    # Of one seed there is a difference, but no interval.
    by = ["optimizer.name", "optimizer.learning_rate", "num_epochs"]
    runs, _, _ = read_runs(ROOT / "experiments/results/champion", comparison.extra_keys(by))
    found = rows(comparison.table(comparison.measure(*comparison.group(runs, by)[:2])))
    assert any(row.startswith("sgd, 0.05, 15 1 6.2 +1.5 7.1 ") for row in found)


def test_what_differs_besides_is_not_pooled_and_has_its_own_reference(tmp_path):
    write(tmp_path, "a", "full", [0.20, 0.22])
    write(tmp_path, "b", "full", [0.30, 0.32], **SGD)
    write(tmp_path, "c", "group", [0.26, 0.28], **SGD)
    runs, fields, besides = comparison.group(read_runs(tmp_path)[0], ["model.norm"])
    assert fields == ["model.norm", "optimizer.name"]
    assert besides == ["optimizer.learning_rate"]
    for against, expected in {
        None: {"full, sgd": 10, "group, sgd": 6},
        "full": {"group, sgd": -4},
        "full,sgd": {"full, rmsprop": -10, "group, sgd": -4},
    }.items():
        found = comparison.measure(runs, fields, against)["difference"].mean().dropna()
        assert found.to_dict() == pytest.approx(expected)
    with pytest.raises(UserError, match="no group is 'half'; there are: full, rmsprop; group, sgd"):
        comparison.measure(runs, fields, "half")
    with pytest.raises(UserError, match=r"no field 'norm'; did you mean model\.norm"):
        comparison.group(runs, ["norm"])
    runs["model.norm"] = runs["model.norm"].replace("full", "a,b")  # a value may have commas
    runs["group"] = runs["model.norm"] + ", " + runs["optimizer.name"]
    assert comparison.measure(runs, fields, "a,b")["difference"].mean()["group, sgd"] < 0


def test_seeds_of_two_versions_of_ones_own_code_are_not_pooled(tmp_path):
    for name, digests in (("a", "112"), ("b", "22")):
        write(tmp_path, name, "my_norms:Own", [0.2 + i / 100 for i in range(len(digests))])
        for seed, digest in enumerate(digests):
            path = tmp_path / name / f"seed{seed}" / "result.json"
            result = json.loads(path.read_text()) | {"user_code": {"my_norms:Own": digest * 32}}
            path.write_text(json.dumps(result))
    runs, fields, _ = comparison.group(read_runs(tmp_path)[0], ["model.norm"])
    assert fields == ["model.norm", "user_code"]
    assert sorted(runs.groupby("group").size()) == [2, 3]


def test_a_reference_with_settings_of_its_own_is_found(tmp_path):
    write(tmp_path, "a", "full", [0.20, 0.22])
    write(tmp_path, "b", "ghost", [0.30, 0.32], model__norm_kwargs={"ghost_size": 10})
    write(tmp_path, "c", "ghost", [0.26, 0.28], model__norm_kwargs={"ghost_size": 20})
    runs, fields, _ = comparison.group(read_runs(tmp_path)[0], ["model.norm"])
    found = comparison.measure(runs, fields, "full")["difference"].mean().dropna()
    assert sorted(found) == pytest.approx([6, 10])


def test_the_time_to_an_error_is_without_compiling():
    """The first epoch, of a minute, counts as one of ten seconds."""
    courses = {"fast": [0.3, 0.09, 0.2], "slow": [0.3, 0.2, 0.1], "never": [0.3, 0.2, 0.11]}
    epochs = pd.DataFrame(
        {"folder": name, "seconds": 60 + 10 * epoch, "valid/error_rate": error}
        for name, errors in courses.items()
        for epoch, error in enumerate(errors)
    )
    found = comparison.seconds_to(epochs, 10)
    assert found.dropna().to_dict() == {"fast": 20, "slow": 30}
    assert "never" in found
    groups = {"group": ["a", "a", "b", "b"], "seed": [0, 1, 0, 1], "best_valid_error_rate": 0.1,
              "test_error_rate": 0.1, "wall_seconds": 60.0, "images_per_second": 100.0,
              "seconds_to": [20, 30, 10, None]}  # fmt: skip
    measured = comparison.measure(pd.DataFrame(groups), ["group"], target=10)
    assert " 10.0 (1 of 2) " in " ".join(comparison.table(measured).split())


@pytest.mark.parametrize(
    ("other", "field"),
    [
        ({"model__norm_kwargs": {"num_groups": 5}}, "model.norm_kwargs"),
        ({"num_epochs": 3}, "num_epochs"),
        ({"name": "larger", "batch_size": 10}, "batch_size"),
        ({"data__source": "cartoons:300"}, "section"),
    ],
)
def test_whatever_differs_makes_a_group(other, field, tmp_path):
    write(tmp_path, "a", "group", [0.2, 0.3])
    write(tmp_path, "b", "group", [0.2, 0.3], **other)
    found, epochs, _ = read_runs(tmp_path, comparison.extra_keys(["model.norm"]))
    assert comparison.seconds_to(epochs, 25).isna().all()  # their lines have no seconds
    runs, fields, _ = comparison.group(found, ["model.norm"])
    assert fields == ["model.norm", field]
    assert list(runs["group"].value_counts()) == [2, 2]


@pytest.mark.parametrize(("statistics", "count"), [("running", 1), ("precise", 2)])
def test_what_precise_statistics_are_of_matters_where_they_are_reported(
    statistics, count, tmp_path
):
    for seed, examples in enumerate((100, 1000)):
        changes = {"eval__statistics": statistics, "eval__precise_examples": examples}
        config = config_of("baseline_crop", "demo", seed=seed, **changes)
        write_run(tmp_path / f"seed{seed}", config, lines_of([0.2]))
    runs, _, _ = comparison.group(read_runs(tmp_path)[0], ["model.norm"])
    assert runs["group"].nunique() == count


def test_a_field_that_no_run_has_recorded():
    by = ["eval.compared_examples"]
    runs, _, _ = read_runs(ROOT / "experiments/results/demo_runs", comparison.extra_keys(by))
    with pytest.raises(UserError, match=r"none of these runs has recorded eval\.compared_examples"):
        comparison.group(runs, by)


def test_the_command(tmp_path):
    write(tmp_path, "a", "full", [0.2, 0.3, 0.4])
    write(tmp_path, "b", "a_module_of_mine:" + 80 * "N", [0.2, 0.25, 0.3])
    write(tmp_path, "c", "group", [0.2], finished=False)
    *lines, figure = python("-m", "experiments.compare", tmp_path).stdout.splitlines()
    assert lines[0] == "Left out: c/seed0 (no result yet, 2 of 2 epochs)"
    assert max(map(len, lines)) <= 100
    assert f"a_module_of_mine:{80 * 'N'}" in lines
    assert figure == str(tmp_path / "compare-model.norm.png")
    with Image.open(figure) as image:
        assert len(image.convert("RGB").getcolors(2**24)) > 50
