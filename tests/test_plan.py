"""A sweep's runs: which they are, how they are called, and the command of each."""

import pytest

from bn_vgg import config_file
from bn_vgg.errors import UserError
from experiments.plan import find_preset, parse_seeds, parse_settings, parse_shard, plan
from experiments.presets import CELLS, PRESETS

FIVE_WAY = {
    "meanonly", "meanonly_crop", "full_crop", "meanonly_crop_dropout", "full_crop_dropout",
    "baseline",
}  # fmt: skip


def planned(preset, variant="small", seeds=(0,), **settings):
    return plan(find_preset(preset), variant=variant, seeds=seeds, settings=settings)


@pytest.fixture
def own_preset(tmp_path):
    """Writes a preset of the user's and returns its path."""

    def write(body):
        path = tmp_path / "mine.py"
        path.write_text(f"def sweep():\n    {body}\n")
        return str(path)

    return write


class TestPresets:
    @pytest.mark.parametrize("preset", PRESETS)
    def test_all_can_be_planned(self, preset):
        runs = planned(preset, seeds=(0, 1))
        assert len({run.folder for run in runs}) == 2 * len(PRESETS[preset])
        assert all(run.name.endswith("-small") for run in runs)

    def test_by_priority_what_matters_most_comes_first(self):
        assert {entry["config"] for entry in PRESETS["five_way"]} == FIVE_WAY
        runs = planned("priority", "full", (0, 1, 2))
        assert len(runs) == 3 * len(CELLS)
        assert [(run.name, run.seed) for run in runs[:6]] == [
            (name, seed) for seed in range(3) for name in ("meanonly_crop", "full_crop")
        ]
        assert {run.name for run in runs[:18]} == FIVE_WAY
        assert [run.seed for run in runs[6:18]] == [0] * 4 + [1] * 4 + [2] * 4
        assert FIVE_WAY.isdisjoint(run.name for run in runs[18:])

    def test_those_of_questions_compare_what_they_ask_for(self):
        configs = [config_file.load_config(run.config_arguments) for run in planned("early")]
        assert [(config.model.norm, config.model.norm_decay, config.batch_size, config.num_epochs)
                for config in configs] == [
            ("mean_only", 0.995, 100, 5), ("mean_only", 0.9, 100, 5),
            ("mean_only", 0.995, 400, 5), ("none", 0.995, 100, 5),
        ]  # fmt: skip
        assert [run.name for run in planned("dropout")[2:]] == [
            "meanonly_crop_dropout-stats_pass=dropout-small",
            "full_crop_dropout-stats_pass=dropout-small",
        ]
        assert {run.num_epochs for run in planned("spikes", num_epochs="30")} == {30}

    def test_an_unknown_one_lists_the_known(self):
        with pytest.raises(UserError, match="no preset 'five'; there are: five_way, figure1"):
            find_preset("five")
        with pytest.raises(UserError, match=r"No such file or directory: .*nowhere\.py"):
            find_preset("nowhere.py")

    def test_a_file_of_the_users(self, own_preset):
        path = own_preset(
            'yield {"config": "full", "stage": 1, "model.norm_decay": 0.9, "resources.GPU": 0.5}\n'
            '    yield {"config": "baseline", "seed": 7, "name": "mine",'
            ' "model.norm": "ghost", "model.norm_kwargs": {"ghost_size": 10}}'
        )
        mine, full = planned(path)
        assert full.folder == "full-norm_decay=0.9-GPU=0.5-small/seed0"
        assert full.resources == {"CPU": 1.0, "GPU": 0.5}
        assert (full.num_epochs, full.batch_size) == (60, 100)
        assert mine.folder == "mine-small/seed7"
        config = config_file.load_config(mine.config_arguments)
        assert config.model.norm_kwargs.to_dict() == {"ghost_size": 10}
        assert config.name == "mine-small"

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ("pass", "TypeError: 'NoneType' object is not iterable"),
            ("yield from ()", "yields nothing"),
            ('yield {"seed": 1}', "{'seed': 1} is not a dict as in presets.py"),
            ('yield {"config": "full", "seed": None}', "None} is not a dict as in presets.py"),
            ('yield {"config": "full", "stage": "a"}', "'a'} is not a dict as in presets.py"),
            ("yield 1 / 0", "ZeroDivisionError"),
            ('yield {"config": "half"}', r"no file configs/half\.py; .*there are: configs/base"),
            ('yield {"config": "full", "model": {"norm": "full"}}', "field model is a dict"),
            (
                'yield {"config": "full"}\n    yield {"config": "full"}',
                "two runs of the sweep are called full-small/seed0",
            ),
        ],
    )
    def test_a_file_that_is_none(self, body, message, own_preset):
        with pytest.raises(UserError, match=message):
            planned(own_preset(body))


class TestRuns:
    def test_the_command_makes_the_planned_configuration(self):
        (run,) = planned("figure1", "demo", (3,), num_epochs="4")[:1]
        assert run.arguments("out/", "--notensorboard") == [
            "-m", "bn_vgg.main", "--config=configs/baseline.py:demo", "--config.seed=3",
            "--config.num_epochs=4", "--config.name=baseline-demo",
            "--workdir=out/baseline-demo/seed3", "--notensorboard",
        ]  # fmt: skip
        config = config_file.load_config(run.config_arguments)
        assert (config.seed, config.num_epochs, run.num_epochs) == (3, 4, 4)

    def test_what_is_set_in_all_runs_changes_no_cells_name(self):
        runs = planned("five_way", batch_size="50", **{"data.source": "photos.zip"})
        configs = [config_file.load_config(run.config_arguments) for run in runs]
        assert {config.name for config in configs} == {f"{name}-small" for name in FIVE_WAY}
        assert {config.batch_size for config in configs} == {50}

    @pytest.mark.parametrize(
        ("preset", "field", "value", "message"),
        [
            ("figure1", "num_epoch", "4", "no field config.num_epoch"),
            ("figure1", "num_epochs", "many", "many"),
            ("figure1", "model.dropout_rate", "2", "it takes a number from 0 to less than 1"),
            ("norms", "model.norm", "none", "--set=model.norm: the preset's runs differ in it"),
        ],
    )
    def test_a_wrong_setting_is_refused_before_anything_runs(self, preset, field, value, message):
        with pytest.raises(UserError, match=message):
            planned(preset, **{field: value})

    def test_every_seed_is_checked(self):
        with pytest.raises(UserError, match="seed"):
            planned("figure1", seeds=(2**32, 0))


class TestFlags:
    def test_seeds(self):
        given = {"3": [0, 1, 2], "0,5,7": [0, 5, 7], "4,": [4]}
        assert {text: parse_seeds(text) for text in given} == given

    def test_settings_and_shards(self):
        assert parse_settings(["a.b=1=2", "c="]) == {"a.b": "1=2", "c": ""}
        assert parse_shard("1/3") == (1, 3)

    @pytest.mark.parametrize(
        ("parse", "flag", "wrong"),
        [
            (parse_seeds, "seeds", ["0", "1,1", "a", "-1,2", ""]),
            (lambda text: parse_settings([text]), "set", ["num_epochs", "=3", "seed=1", "name=x"]),
            (parse_shard, "shard", ["3/3", "1", "0/0"]),
        ],
    )
    def test_what_is_none(self, parse, flag, wrong):
        for text in wrong:
            with pytest.raises(UserError, match=f"--{flag}={text}"):
                parse(text)
