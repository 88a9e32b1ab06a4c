"""The sweep command on this machine: real runs, really killed; and how the machine is divided."""

import json
import os
import signal

import psutil
import pytest

from bn_vgg.errors import UserError
from experiments.executors.local import Share, share_out
from tests.runs import lines, num_lines, wait_for_checkpoint
from tests.sweep_runs import finish, start, write_preset

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def sweep(cache_folder, tmp_path):
    """Starts a sweep in tmp_path/out."""
    started = []

    def start_one(*arguments):
        process = start(
            *arguments,
            f"--out={tmp_path / 'out'}",
            "--notensorboard",
            f"--cache_dir={cache_folder}",
            "--jobs=1",
        )
        started.append(process)
        return process

    yield start_one
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_killed_interrupted_crashed_and_started_again(sweep, tmp_path, cartoon_folder, run_command):
    """No run outlives its driver, none is lost, and no number changes."""
    preset = write_preset(tmp_path, cartoon_folder, epochs=80)
    folder = tmp_path / "out" / "none" / "seed0"
    for how, status in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        process = sweep(f"--preset={preset}")
        wait_for_checkpoint(folder, process, num_lines(folder) + 3)
        children = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, how)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == status
        _, alive = psutil.wait_procs(children, timeout=20)
        assert alive == []
        if how == signal.SIGINT:
            assert errors == "error: interrupted; run the same command again to go on\n"
    process = sweep(f"--preset={preset}")
    wait_for_checkpoint(folder, process, num_lines(folder) + 3)
    (run,) = psutil.Process(process.pid).children()
    run.kill()
    out, _ = finish(process)
    assert "none/seed0: its process ended with SIGKILL; it will be tried again" in out
    assert (folder / "log.txt").read_text().count("resuming after epoch") == 3
    assert max(map(len, out.splitlines())) <= max(100, len(f"python -m … {tmp_path}") + 40)
    assert "2 runs: 2 done" in out
    assert "cell       seeds  epochs  best valid error  test error" in out
    assert out.splitlines()[-1] == f"python -m experiments.report --runs={tmp_path / 'out'}"

    command = json.loads((folder / "result.json").read_text())["command"]
    arguments = command.replace(str(folder), str(tmp_path / "alone")).split()
    run_command("main", *arguments[3:])
    assert lines(tmp_path / "alone") == lines(folder)

    out, _ = finish(sweep(f"--preset={preset}"))
    assert "2 runs: 2 done" in out
    assert "to do" not in out
    table, _ = finish(start("--status", f"--out={tmp_path / 'out'}"))
    assert table.count(" done ") == 2


@pytest.mark.slow
def test_an_error_of_every_run_is_said_once(sweep, tmp_path):
    process = sweep("--preset=grid", "--variant=demo", "--set=data.source=nowhere.zip", "--seeds=2")
    out, errors = finish(process, status=2)
    assert errors.startswith("error: the first 2 runs ended with the same error")
    assert "nowhere.zip" in errors
    assert errors.count("\n") == 1
    assert "18 runs: " in out


def test_a_dry_run_prints_the_commands_and_writes_nothing(sweep, tmp_path, cartoon_folder):
    preset = write_preset(tmp_path, cartoon_folder)
    out, _ = finish(sweep(f"--preset={preset}", "--set=batch_size=4", "--dry-run"))
    assert [line.split()[:3] for line in out.splitlines()] == [["python", "-m", "bn_vgg.main"]] * 2
    assert "--config.batch_size=4" in out
    assert f"--workdir={tmp_path}/out/none/seed0" in out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--preset is missing; there are: five_way, figure1, figure2, grid, priority, norms"),
        (["--preset=figure1", "--executor=slurm"], "value should be one of <local|ray|sky>"),
        (["--preset=figure1", "--set=batchsize=3"], "no field config.batchsize; did you mean"),
        (["--status"], "holds no sweep: there is no sweep.json in it"),
        (["--preset=figure1", "--executor=sky"], "with sky it is an address that all see"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(arguments, message, sweep):
    _, errors = finish(sweep(*arguments), status=2)
    assert message in errors
    assert errors.count("\n") == 1


class TestShares:
    def test_a_processors_cores_are_shared_out_two_to_a_run(self):
        assert share_out("cpu", 1, [0, 1], None, None) == [Share("all cores")]
        cores = [0, 1, 2, 5, 7]
        assert [of.cores for of in share_out("cpu", 1, cores, None, None)] == [(0, 2), (1, 5)]
        assert [of.cores for of in share_out("cpu", 1, [3, 4], 9, None)] == [(3,), (4,)]
        assert len(share_out("cpu", 1, range(8), None, 4)) == 2

    def test_each_gpu_has_a_run_of_its_own(self, monkeypatch):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        environments = [of.environment for of in share_out("gpu", 3, [0], 2, None)]
        assert environments == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7")
        environments = [of.environment for of in share_out("gpu", 3, [0], None, 2)]
        assert environments == [{"CUDA_VISIBLE_DEVICES": "4,6"}]

    def test_each_tpu_chip_has_a_run_of_its_own(self, monkeypatch):
        monkeypatch.delenv("TPU_VISIBLE_CHIPS", raising=False)
        first, *_, last = share_out("tpu", 4, [0], None, None)
        alone = {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"}
        assert alone.items() <= first.environment.items()
        assert [of.environment["TPU_VISIBLE_CHIPS"] for of in (first, last)] == ["0", "3"]
        pairs = share_out("tpu", 4, [0], None, 2)
        assert [of.environment["TPU_VISIBLE_CHIPS"] for of in pairs] == ["0,1", "2,3"]
        (whole,) = share_out("tpu", 4, [0], None, 4)
        assert "TPU_CHIPS_PER_PROCESS_BOUNDS" not in whole.environment

    @pytest.mark.parametrize(("platform", "per_run"), [("gpu", 5), ("tpu", 3), ("tpu", 5)])
    def test_what_the_hardware_does_not_have(self, platform, per_run):
        with pytest.raises(UserError, match=f"--devices_per_run={per_run}"):
            share_out(platform, 4, [0], None, per_run)
