"""The commands as a person types them: what they print, write and refuse."""

import csv
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from bn_vgg import provenance
from bn_vgg.api import load
from bn_vgg.data.splits import split
from tests.conftest import ROOT, python
from tests.image_files import write_zip
from tests.runs import run

pytestmark = pytest.mark.usefixtures("quick_compilation")

TINY = "--config=tests/tiny_config.py"


def test_what_it_leaves_behind(trained_run, cartoon_folder):
    names = {path.name.split(".")[0] for path in trained_run.glob("[!.]*")}
    assert names == {
        "checkpoints", "config", "data", "events", "format", "log", "metrics", "result"
    }  # fmt: skip
    data = json.loads((trained_run / "data.json").read_text())
    assert data["class_names"] == ["cat", "dog"]
    assert data["examples"] == {"train": 48, "valid": 13, "test": 11}
    result = json.loads((trained_run / "result.json").read_text())
    assert result["command"] == (
        f"python -m bn_vgg.main {TINY} --config.data.source={cartoon_folder} "
        f"--workdir={trained_run} --config.optimizer.learning_rate=1e-3"
    )
    assert result["commit"] == provenance.commit()
    assert result["hardware"]["platform"] == "cpu"
    assert result["versions"]["jax"]
    assert result["jax_settings"] == provenance.jax_settings(result["config"]["model"])


def test_another_programs_command_is_not_recorded(monkeypatch):
    for program in ("", "-c", ".venv/lib/ipykernel_launcher.py"):
        monkeypatch.setattr("sys.argv", [program])
        assert provenance.command() is None


def test_jaxs_settings_in_the_environment_change_no_number(
    trained_run, run_command, cartoon_folder, tmp_path
):
    run_command(
        "main", TINY, f"--config.data.source={cartoon_folder}", f"--workdir={tmp_path}",
        "--config.optimizer.learning_rate=1e-3", "--notensorboard",
        JAX_DEFAULT_PRNG_IMPL="rbg", JAX_THREEFRY_PARTITIONABLE="0", JAX_ENABLE_X64="1",
        JAX_RANDOM_SEED_OFFSET="5",
    )  # fmt: skip
    results = [json.loads((p / "result.json").read_text()) for p in (trained_run, tmp_path)]
    for field in ("best_valid_error_rate", "test_error_rate", "jax_settings"):
        assert results[0][field] == results[1][field]
    kernels = [load(p).state.params["hidden"]["kernel"] for p in (trained_run, tmp_path)]
    np.testing.assert_array_equal(*kernels)


def test_a_pipe_or_terminal_that_is_gone_ends_nothing():
    """As behind `| head -1`."""
    code = """
import os, pty
from bn_vgg import cli
for reader, writer in (os.pipe(), pty.openpty()):
    os.close(reader)
    os.dup2(writer, 1)
    cli.show("a")
    cli.show("b")
print("c")
"""
    assert python("-c", code).stderr == ""


WRONG = [
    ([], "--config is missing; there are: configs/baseline.py, "),
    (["--config", "configs/meanonly_corp.py"], "did you mean configs/meanonly_crop.py? "),
    ([TINY, "--num_epochs=2"], "no flag --num_epochs; did you mean --config.num_epochs?"),
    ([TINY, "--nope"], "no flag --nope; see --help"),
    ([TINY, "stray"], "unexpected argument 'stray'"),
    ([TINY, "--config.seed=one"], "--config.seed=one"),
    ([TINY, "--config.data.source=no/where.zip"], "no file or folder 'no/where.zip'; "),
    (["--config=FOLDER/exits.py"], "exits.py: SystemExit: 3"),
    ([TINY, "--num-processes=2"], "go together"),
    ([TINY, "--config.data.source=cartoons", "--cache_dir=/dev/null"], "cannot write"),
    ([TINY, "--workdir=/dev/null/run"], "cannot write the working directory /dev/null/run: "),
    ([TINY, "--config.data.source=SOURCE", "--workdir=RUN"], "learning_rate is 0.001, not 0.0003"),
]


def assert_refused(done, message):
    """In one line."""
    assert done.stdout == ""
    assert re.fullmatch(r"error: .*\n", done.stderr), done.stderr
    assert message in done.stderr


def test_wrong_arguments_end_in_one_line(fork_command, trained_run, cartoon_folder, tmp_path):
    (tmp_path / "exits.py").write_text("import sys; sys.exit(3)")
    places = {"FOLDER": tmp_path, "SOURCE": cartoon_folder, "RUN": trained_run}
    for arguments, message in WRONG:
        for name, path in places.items():
            arguments = [argument.replace(name, str(path)) for argument in arguments]
        assert_refused(fork_command("main", *arguments, status=2), message)


def test_it_trains_from_the_cache_without_archive_or_tensorflow(
    run_command, tiny_config, cartoon_folder, cache_folder, tmp_path
):
    """The second time the archive is gone, and importing these packages fails."""
    for package in ("tensorflow", "tensorflow_datasets", "tensorboard"):
        (tmp_path / f"{package}.py").write_text("raise ImportError('not here')")
    drawings = {path.name: path.read_bytes() for path in cartoon_folder.iterdir()}
    archive = write_zip(tmp_path / "pets.zip", drawings)
    tiny_config.data.source, tiny_config.num_epochs = str(archive), 1
    result = run(tiny_config, tmp_path / "a", cache_folder)
    archive.unlink()
    done = run_command(
        "main", TINY, f"--config.data.source={archive}", "--config.num_epochs=1",
        "--notensorboard", f"--workdir={tmp_path / 'b'}", PYTHONPATH=str(tmp_path),
    )  # fmt: skip
    assert f"'{archive}' does not exist" in done.stderr
    assert "using the cache" in done.stderr
    again = json.loads((tmp_path / "b/result.json").read_text())
    assert again["test_error_rate"] == result["test_error_rate"]


@pytest.fixture
def predict(trained_run, tmp_path):
    """Runs the command by `command`; returns what it printed, and the rows that it wrote."""

    def run(command, images, *more, status=0):
        output = tmp_path / "out.csv"
        done = command(
            "predict", f"--workdir={trained_run}", f"--images={images}", f"--output={output}",
            *more, status=status,
        )  # fmt: skip
        return done, list(csv.reader(output.open()))

    return run


def test_predict_writes_rows_in_a_stable_order_equal_to_the_loops_evaluation(
    predict, run_command, trained_run, cartoon_folder
):
    _, rows = predict(run_command, cartoon_folder)
    assert rows[0] == ["file", "label", "p_cat", "p_dog"]
    names = [row[0] for row in rows[1:]]
    assert len(names) == 72
    assert names[:3] == ["cat.0.png", "cat.2.png", "cat.4.png"]
    for _, label, p_cat, p_dog in rows[1:]:
        assert float(p_cat) + float(p_dog) == pytest.approx(1, abs=2e-6)
        assert label == ("cat" if float(p_cat) >= float(p_dog) else "dog")
    # The images that the run validated on, by the split's rule.
    keys = [name.replace(".", "/", 1) for name in names]
    valid = split(keys, [""] * 72, valid_examples=13, test_examples=11).valid
    wrong = np.mean([rows[1 + i][1] != keys[i].split("/")[0] for i in valid])
    result = json.loads((trained_run / "result.json").read_text())
    assert wrong == pytest.approx(result["best_valid_error_rate"])


def test_predict_gives_an_unreadable_image_a_row_and_a_status(predict, fork_command, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("L", (5, 40), 90).save(folder / "small, grey.png")
    (folder / "broken.jpg").write_bytes(b"rubbish")
    done, rows = predict(fork_command, folder, status=3)
    assert [row[0] for row in rows[1:]] == ["broken.jpg", "small, grey.png"]
    assert rows[1][1].startswith("unreadable: ")
    assert rows[1][2:] == ["", ""]
    assert rows[2][1] in ("cat", "dog")
    assert "1 images could not be read" in done.stdout


def test_export_writes_arrays_in_the_networks_order(trained_run, run_command, tmp_path):
    """Below the home folder: a shell expands `--output ~/x`, but not `--output=~/x`."""
    run_command(
        "export", f"--workdir={trained_run}", "--output=~/new/w.npz", "--which=latest",
        HOME=str(tmp_path),
    )  # fmt: skip
    with np.load(tmp_path / "new/w.npz", allow_pickle=False) as file:
        arrays = dict(file)
    blocks = [f"params/block{i}/{name}" for i in range(2) for name in ("conv/kernel", "norm/bias")]
    dense = [f"params/{name}/{x}" for name in ("hidden", "output") for x in ("bias", "kernel")]
    stats = [f"batch_stats/block{i}/norm/mean" for i in range(2)]
    assert list(arrays) == blocks + dense + stats
    kernel = load(trained_run, "latest").state.params["block1"]["conv"]["kernel"]
    np.testing.assert_array_equal(arrays["params/block1/conv/kernel"], kernel)
    about = json.loads((tmp_path / "new/w.json").read_text())
    assert about["config"]["model"]["norm"] == "mean_only"
    assert (about["class_names"], about["step"]) == (["cat", "dog"], 12)


def test_wrong_arguments_of_predict_and_export(fork_command, trained_run, cartoon_folder, tmp_path):
    given = [f"--workdir={trained_run}", f"--output={tmp_path}/out.npz"]
    images = [*given, f"--images={cartoon_folder}"]
    for name, arguments, message in (
        ("predict", [*images, "--images=/nope"], "'/nope' does not exist"),
        ("predict", [*images, "--output=/dev/null/x/o"], "cannot write /dev/null/x/o: Not a dir"),
        ("predict", [*images, f"--output={tmp_path}"], f"cannot write {tmp_path}: it is a folder"),
        ("predict", [*images, "--workdir=/nope"], "/nope holds no run: there is no config.json in"),
        ("export", [*given, "--output=w.txt"], "w.txt does not end in .npz"),
        ("export", [*given, "--output=/dev/null/w.npz"], "cannot write /dev/null/w.npz"),
        ("export", [*given, "--which=newest"], "--which=newest"),
        ("export", given[1:], "--workdir is missing; see --help"),
    ):
        assert_refused(fork_command(name, *arguments, status=2), message)
    assert list(tmp_path.iterdir()) == []


def test_a_backend_that_is_not_there_is_named_before_anything_else(run_command):
    done = run_command(
        "predict", "--images=/nope", "--output=o.csv", "--workdir=/nope/run", status=2,
        JAX_PLATFORMS="cuda",
    )  # fmt: skip
    assert_refused(done, "usable device with JAX_PLATFORMS=cuda: there is no such device")


def test_a_command_explains_itself(fork_command):
    done = fork_command("main", "--help")
    assert "python -m bn_vgg.main" in done.stdout
    assert "--workdir" in done.stdout


def test_the_commit_of_another_users_checkout(tmp_path):
    """As in a container: git calls its ownership dubious, and tells root nothing."""
    copy = tmp_path / "checkout"
    try:
        clone = ["git", "clone", "--quiet", "--depth=1", f"file://{ROOT}", str(copy)]
        subprocess.run(clone, check=True, capture_output=True)
        subprocess.run(["chown", "-R", "nobody", str(copy)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no git checkout, or this is not root: {error}")
    code = "from bn_vgg import provenance; print(provenance.commit())"
    done = subprocess.run([sys.executable, "-c", code], cwd=copy, capture_output=True, text=True)
    assert len(done.stdout.strip()) == 40, done.stderr
