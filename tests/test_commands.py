"""The commands as a person types them: what they print, write and refuse."""

import csv
import json
import os
import pty
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

from bn_vgg.data.cache import choose_folder
from bn_vgg.run_dir import FORMAT
from bn_vgg.trained import load
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("quick_compilation")

TINY = "--config=tests/tiny_config.py"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("commands") / "run"


@pytest.fixture
def trained_run(workdir, run_command, cartoon_folder):
    """One run for all tests here, trained by the first that asks."""
    if not (workdir / "result.json").exists():
        run_command("main", TINY, f"--config.data.source={cartoon_folder}", f"--workdir={workdir}")
    return workdir


def error_of(done):
    """The last line of standard error; a traceback must not be all there is."""
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


class TestMain:
    def test_what_it_leaves_behind(self, trained_run):
        names = {path.name.split(".")[0] for path in trained_run.glob("[!.]*")}
        assert names == {
            "checkpoints", "config", "data", "events", "format", "log", "metrics", "result"
        }  # fmt: skip
        assert json.loads((trained_run / "format.json").read_text())["format"] == FORMAT
        data = json.loads((trained_run / "data.json").read_text())
        assert data["class_names"] == ["cat", "dog"]
        assert data["examples"] == {"train": 48, "valid": 13, "test": 11}

    def test_the_result_says_how_it_was_got(self, trained_run, cartoon_folder):
        result = json.loads((trained_run / "result.json").read_text())
        assert result["command"] == (
            f"python -m bn_vgg.main {TINY} --config.data.source={cartoon_folder} "
            f"--workdir={trained_run}"
        )
        assert result["commit"] is None or len(result["commit"].removesuffix("-dirty")) == 40
        assert result["hardware"]["platform"] == "cpu"
        assert result["versions"]["jax"]

    def test_tensorboard_reads_its_scalars_images_and_hparams(self, trained_run):
        from tensorboard.backend.event_processing import event_accumulator

        events = event_accumulator.EventAccumulator(str(trained_run), size_guidance={"tensors": 0})
        events.Reload()
        tags = set(events.Tags()["tensors"])
        assert tags >= {
            "train/loss", "train/error_rate", "train/gradient_norm", "train/images_per_second",
            "valid/loss", "valid/error_rate", "valid/best_error_rate", "test/error_rate",
            "train/windows", "valid/error_rate_precise", "mean_distance/block0",
        }  # fmt: skip
        written = [
            (event.step, float(np.frombuffer(event.tensor_proto.tensor_content, np.float32)[0]))
            for event in events.Tensors("valid/error_rate")
        ]
        lines = [json.loads(x) for x in (trained_run / "metrics.jsonl").read_text().splitlines()]
        expected = [(line["step"], line["valid/error_rate"]) for line in lines]
        assert written == [(step, pytest.approx(value)) for step, value in expected]
        for tag, plugin in (
            ("mean_distance/block0", "scalars"), ("channels/mean_distance/block0", "histograms"),
        ):  # fmt: skip
            assert events.SummaryMetadata(tag).plugin_data.plugin_name == plugin
        hparams = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        assert b"mean_only" in hparams
        assert str(trained_run).encode() in hparams  # names the row in the table of runs

    def test_a_profile_leaves_a_trace(self, run_command, cartoon_folder, tmp_path):
        run_command(
            "main", TINY, f"--config.data.source={cartoon_folder}", f"--workdir={tmp_path}",
            "--config.num_epochs=5", "--profile",
        )  # fmt: skip
        assert list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--profile", "--notensorboard"], "does not go with --notensorboard"),
            (["--profile"], "this one is too short: it has 12, in 2 dispatches, of which 4 are"),
        ],
    )
    def test_where_there_will_be_no_trace_it_says_so(
        self, arguments, message, run_command, cartoon_folder, tmp_path
    ):
        done = run_command(
            "main", TINY, f"--config.data.source={cartoon_folder}",
            f"--workdir={tmp_path / 'run'}", *arguments, status=2,
        )  # fmt: skip
        assert message in error_of(done)

    def test_a_reader_that_is_gone_ends_no_run(self, cartoon_folder, cache_folder, tmp_path):
        """As behind `| head -1`."""
        reading, writing = os.pipe()
        os.close(reading)
        command = [
            sys.executable, "-m", "bn_vgg.main", TINY, f"--config.data.source={cartoon_folder}",
            f"--workdir={tmp_path}", "--notensorboard", f"--cache_dir={cache_folder}",
        ]  # fmt: skip
        done = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True)
        os.close(writing)
        assert (done.returncode, done.stderr) == (0, "")
        assert (tmp_path / "result.json").exists()
        assert "best epoch" in (tmp_path / "log.txt").read_text()

    def test_a_terminal_that_is_gone_ends_nothing(self):
        theirs, ours = pty.openpty()
        os.close(theirs)
        code = "from bn_vgg import cli; cli.show('a'); cli.show('b'); print('c')"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=ours, stderr=ours)
        os.close(ours)
        assert done.returncode == 0

    def test_again_says_that_it_is_finished(self, trained_run, run_command, cartoon_folder):
        done = run_command(
            "main", TINY, f"--config.data.source={cartoon_folder}", f"--workdir={trained_run}"
        )
        assert "this run is finished" in done.stdout
        assert "epoch" not in done.stdout

    def test_another_config_in_its_workdir_is_refused(
        self, trained_run, run_command, cartoon_folder
    ):
        done = run_command(
            "main", TINY, f"--config.data.source={cartoon_folder}", f"--workdir={trained_run}",
            "--config.model.norm=full", status=2,
        )  # fmt: skip
        assert "holds a run of another configuration: model.norm was mean_only" in error_of(done)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "--config is missing; there are: configs/baseline.py, "),
            (["--config=configs/nope.py"], "--config: no file configs/nope.py; there are: "),
            (["--config=configs/meanonly_corp.py"], "did you mean configs/meanonly_crop.py? "),
            ([TINY, "--num_epochs=2"], "no flag --num_epochs; did you mean --config.num_epochs?"),
            (["--config", "configs/nope.py", "--config.seed=1"], "no file configs/nope.py; "),
            (["--config=pyproject.toml"], "--config=pyproject.toml: "),
            (["--config=tests/test_cache.py"], "--config=tests/test_cache.py: "),
            (["--config=configs/full.py:tiny"], "'tiny'; there are: full, small, demo"),
            (
                [TINY, "--config.model.nrom=full"],
                "no field config.model.nrom; did you mean model.no",
            ),
            (
                [TINY, "--config.variant=small"],
                "a variant is named by --config=tests/tiny_config.py",
            ),
            ([TINY, "--config.model.norm=bat"], "no 'bat'; there are: none, mean_only, full"),
            ([TINY, "--config.model.norm=batchnorm"], "no 'batchnorm'; did you mean full? there"),
            (
                [TINY, "--config.model.norm=nowhere:Norm"],
                "norm=nowhere:Norm: cannot import nowhere",
            ),
            ([TINY, "--config.model.norm_kwargs={'x': 1}"], "mean_only takes no 'x'; it takes: "),
            ([TINY, "--config.model.norm_kwargs=5"], "as a ConfigDict: `5` is not a dict"),
            ([TINY, "--config.model.norm_kwargs.x=1"], "given as a whole: --config.model.norm_kw"),
            ([TINY, "--config.model.dtype=int8"], "it takes one of float32, bfloat16"),
            ([TINY, "--config.model.precision=tensorfloat32"], "NVIDIA GPUs, and this is a CPU; "),
            ([TINY, "--config.seed=one"], "--config.seed=one"),
            ([TINY, '--config.model.features=(4,"a")'], "it takes positive integers"),
            ([TINY, "--nope"], "no flag --nope; see --help"),
            ([TINY, "stray"], "unexpected argument 'stray'"),
            ([TINY, "--config.data.source=no/where.zip"], "no file or folder 'no/where.zip'; "),
            ([TINY, "--config.data.source=./nowhere"], "'./nowhere' does not exist"),
            ([TINY, "--num_processes=2"], "go together"),
            ([TINY, "--config.data.source=cartoons", "--cache_dir=/dev/null"], "cannot write"),
        ],
    )
    def test_wrong_arguments_end_in_one_line(self, arguments, message, run_command):
        done = run_command("main", *arguments, status=2)
        assert done.stdout == ""
        assert error_of(done).startswith("error: ")
        assert message in error_of(done)

    def test_a_workdir_that_cannot_be_written(self, run_command, cartoon_folder, tmp_path):
        (tmp_path / "file").touch()
        done = run_command(
            "main", TINY, f"--config.data.source={cartoon_folder}",
            f"--workdir={tmp_path}/file/run", status=2,
        )  # fmt: skip
        assert f"cannot write the working directory {tmp_path}/file/run: " in error_of(done)

    def test_it_trains_from_the_cache_without_archive_or_tensorflow(
        self, run_command, cartoon_folder, tmp_path
    ):
        """The second time the archive is gone, and importing these packages fails."""
        for package in ("tensorflow", "tensorflow_datasets", "tensorboard"):
            (tmp_path / f"{package}.py").write_text("raise ImportError('not here')")
        archive = tmp_path / "pets.zip"
        with zipfile.ZipFile(archive, "w") as file:
            for path in cartoon_folder.iterdir():
                file.write(path, path.name)
        arguments = ("main", TINY, f"--config.data.source={archive}", "--notensorboard")
        run_command(*arguments, f"--workdir={tmp_path / 'a'}")
        archive.unlink()
        done = run_command(*arguments, f"--workdir={tmp_path / 'b'}", PYTHONPATH=str(tmp_path))
        assert f"'{archive}' does not exist" in done.stderr
        assert "using the cache" in done.stderr
        results = [json.loads((tmp_path / name / "result.json").read_text()) for name in "ab"]
        assert results[0]["test_error_rate"] == results[1]["test_error_rate"]


class TestPredict:
    def predict(self, run_command, workdir, images, output, *more, status=0):
        done = run_command(
            "predict", f"--workdir={workdir}", f"--images={images}", f"--output={output}", *more,
            status=status,
        )  # fmt: skip
        rows = list(csv.reader(output.open())) if output.exists() else None
        return done, rows

    def test_rows_in_a_stable_order_and_equal_to_the_loops_evaluation(
        self, trained_run, run_command, cartoon_folder, tmp_path
    ):
        _, rows = self.predict(run_command, trained_run, cartoon_folder, tmp_path / "out.csv")
        assert rows[0] == ["file", "label", "p_cat", "p_dog"]
        names = [row[0] for row in rows[1:]]
        assert len(names) == 72
        assert names[:3] == ["cat.0.png", "cat.2.png", "cat.4.png"]
        for _, label, p_cat, p_dog in rows[1:]:
            assert float(p_cat) + float(p_dog) == pytest.approx(1, abs=2e-6)
            assert label == ("cat" if float(p_cat) >= float(p_dog) else "dog")
        # The images that the run validated on, by the split's rule.
        from bn_vgg.data.splits import split

        keys = [name.replace(".", "/", 1) for name in names]
        valid = split(keys, [""] * 72, valid_examples=13, test_examples=11).valid
        wrong = np.mean([rows[1 + i][1] != keys[i].split("/")[0] for i in valid])
        result = json.loads((trained_run / "result.json").read_text())
        assert wrong == pytest.approx(result["best_valid_error_rate"])

    def test_an_unreadable_image_gets_a_row_and_a_status(
        self, trained_run, run_command, cartoon_folder, tmp_path
    ):
        folder = tmp_path / "images"
        folder.mkdir()
        Image.new("L", (5, 40), 90).save(folder / "small, grey.png")
        (folder / "broken.jpg").write_bytes(b"rubbish")
        done, rows = self.predict(run_command, trained_run, folder, tmp_path / "out.csv", status=3)
        assert [row[0] for row in rows[1:]] == ["broken.jpg", "small, grey.png"]
        assert rows[1][1].startswith("unreadable: ")
        assert rows[1][2:] == ["", ""]
        assert rows[2][1] in ("cat", "dog")
        assert "1 images could not be read" in done.stdout

    def test_kaggles_format_is_sorted_by_id(
        self, trained_run, run_command, cartoon_folder, tmp_path
    ):
        archive = tmp_path / "test1.zip"
        with zipfile.ZipFile(archive, "w") as file:
            for i in (10, 9, 100):
                file.write(cartoon_folder / f"cat.{i // 2 * 2}.png".replace("100", "20"),
                           f"test1/{i}.png")  # fmt: skip
        _, rows = self.predict(
            run_command, trained_run, archive, tmp_path / "out.csv", "--format=kaggle"
        )
        assert rows[0] == ["id", "label"]
        assert [row[0] for row in rows[1:]] == ["9", "10", "100"]
        assert {row[1] for row in rows[1:]} <= {"0", "1"}

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--images=/nope"], "'/nope' does not exist"),
            (["--workdir=/nope"], "/nope holds no run"),
            (["--output=/nope/out.csv"], "cannot write /nope/out.csv"),
            (["--format=kaggle"], "cat.0.png is not called by its id"),
        ],
    )
    def test_wrong_arguments(
        self, more, message, trained_run, run_command, cartoon_folder, tmp_path
    ):
        done, rows = self.predict(
            run_command, trained_run, cartoon_folder, tmp_path / "out.csv", *more, status=2
        )
        assert rows is None
        assert message in error_of(done)


class TestExport:
    def test_arrays_in_the_networks_order_and_the_config(self, trained_run, run_command, tmp_path):
        output = tmp_path / "weights.npz"
        run_command("export", f"--workdir={trained_run}", f"--output={output}")
        with np.load(output, allow_pickle=False) as file:
            arrays = dict(file)
        names = list(arrays)
        blocks = [
            f"params/block{i}/{name}" for i in range(4) for name in ("conv/kernel", "norm/bias")
        ]
        dense = [f"params/{name}/{x}" for name in ("hidden", "output") for x in ("bias", "kernel")]
        stats = [f"batch_stats/block{i}/norm/mean" for i in range(4)]
        assert names == blocks + dense + stats
        state = load(str(trained_run)).state
        np.testing.assert_array_equal(
            arrays["params/block2/conv/kernel"], state.params["block2"]["conv"]["kernel"]
        )
        about = json.loads((tmp_path / "weights.json").read_text())
        assert about["config"]["model"]["norm"] == "mean_only"
        assert about["class_names"] == ["cat", "dog"]

    def test_the_latest(self, trained_run, run_command, tmp_path):
        run_command(
            "export", f"--workdir={trained_run}", f"--output={tmp_path}/w.npz", "--which=latest"
        )
        assert json.loads((tmp_path / "w.json").read_text())["step"] == 12

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            (["--output=w.txt"], "w.txt does not end in .npz"),
            (["--output=/nope/w.npz"], "cannot write /nope/w.npz"),
            (["--workdir=/nope"], "/nope holds no run"),
            (["--which=newest"], "--which=newest"),
        ],
    )
    def test_wrong_arguments(self, more, message, trained_run, run_command, tmp_path):
        done = run_command(
            "export", f"--workdir={trained_run}", f"--output={tmp_path}/w.npz", *more, status=2
        )
        assert message in error_of(done)


def test_a_home_folder_after_an_equals_sign(trained_run, run_command, tmp_path, monkeypatch):
    """A shell expands `--output ~/w.npz` alone."""
    run_command("export", f"--workdir={trained_run}", "--output=~/w.npz", HOME=str(tmp_path))
    assert (tmp_path / "w.npz").exists()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("BN_VGG_CACHE", "~/c")
    assert choose_folder() == tmp_path / "c"


def test_a_folder_called_config_is_no_flag(run_command):
    failed = run_command("predict", "--workdir=nowhere", "--images", "config", "--output=o.csv",
                         status=2)  # fmt: skip
    assert error_of(failed).startswith("error: nowhere holds no run")


def test_a_run_without_a_checkpoint_has_nothing_to_give(trained_run, run_command, tmp_path):
    for name in ("config.json", "data.json"):
        (tmp_path / name).write_bytes((trained_run / name).read_bytes())
    done = run_command("export", f"--workdir={tmp_path}", f"--output={tmp_path}/w.npz", status=2)
    assert "has no checkpoint yet" in error_of(done)
    assert not (tmp_path / "checkpoints").exists()


def test_every_command_explains_itself(run_command):
    for name in ("main", "predict", "export"):
        done = run_command(name, "--help")
        assert f"python -m bn_vgg.{name}" in done.stdout
        assert "--workdir" in done.stdout
    assert (ROOT / "README.md").exists()
