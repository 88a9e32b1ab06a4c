"""The sweep command on this machine: real processes, really killed."""

import json
import os
import shutil
import signal

import psutil
import pytest

from experiments.sweeping.backend import Outcome
from experiments.sweeping.local import Share, _Worker, share_out
from experiments.sweeping.plan import PlannedRun
from tests.runs import lines, num_lines, wait_for_checkpoint
from tests.sweep_runs import finish, start, write_preset

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def preset(tmp_path, cartoon_folder):
    """Writes a preset, the first norm's runs with so many epochs."""
    return lambda epochs=2: write_preset(tmp_path, cartoon_folder, epochs)


@pytest.fixture
def sweep(cache_folder, tmp_path):
    """Starts a sweep in tmp_path/out; waits for it unless told not to."""
    started = []

    def start_one(*arguments, status=0, wait=True):
        process = start(
            *arguments,
            f"--out={tmp_path / 'out'}",
            "--notensorboard",
            f"--cache_dir={cache_folder}",
        )
        started.append(process)
        return finish(process, status) if wait else process

    yield start_one
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cartoon_folder, cache_folder):
    """A sweep of two norms and two seeds: the flags to make it again, and its folder."""
    folder = tmp_path_factory.mktemp("finished")
    preset = write_preset(folder, cartoon_folder)
    flags = [f"--preset={preset}", "--notensorboard", f"--cache_dir={cache_folder}"]
    out, _ = finish(start(*flags, "--seeds=2", f"--out={folder / 'out'}"))
    assert out.splitlines()[-1] == "4 runs: 4 done"
    return flags, folder / "out"


class TestLocal:
    @pytest.mark.slow
    def test_a_sweep_equals_its_runs_one_by_one(self, finished, tmp_path, run_command):
        """Bit for bit, here the last run after all that shares its process."""
        _, out = finished
        folders = [out / norm / f"seed{i}" for norm in ("none", "mean_only") for i in (0, 1)]
        assert all((folder / "log.txt").read_text() for folder in folders)
        command = json.loads((folders[-1] / "result.json").read_text())["command"]
        arguments = command.replace(str(folders[-1]), str(tmp_path / "alone")).split()
        assert arguments[:3] == ["python", "-m", "bn_vgg.main"]
        run_command("main", *arguments[3:])
        assert lines(tmp_path / "alone") == lines(folders[-1])

    def test_of_a_finished_sweep_nothing_is_left_to_do(self, finished):
        flags, folder = finished
        out, _ = finish(start(*flags, "--seeds=2", f"--out={folder}"))
        assert out.splitlines() == ["4 runs: 4 done", "4 runs: 4 done"]
        table, _ = finish(start("--status", f"--out={folder}"))
        assert table.count(" done ") == 4

    @pytest.mark.slow
    def test_one_runs_failure_does_not_stop_the_others(self, finished, sweep, tmp_path):
        """Of a third seed's: two workers, and a run of other data is in the way of the first."""
        flags, folder = finished
        shutil.copytree(folder, tmp_path / "out")
        other = tmp_path / "out" / "none" / "seed2"
        other.mkdir()
        (other / "config.json").write_text('{"num_epochs": 2, "seed": 5}')
        out, errors = sweep(*flags, "--seeds=3", "--attempts=2", "--jobs=2", status=1)
        assert out.splitlines()[-1] == "6 runs: 5 done, 1 failed"
        assert "none/seed2: " in errors
        assert "holds a run of another configuration" in errors
        assert out.count("it will be tried again") == 1
        assert "given up after 2 attempts" in out
        table, _ = sweep("--status")
        assert "2 attempts: " in table

    @pytest.mark.slow
    def test_a_killed_worker_is_replaced_and_its_run_goes_on(self, sweep, preset, tmp_path):
        process = sweep(f"--preset={preset(40)}", wait=False)
        wait_for_checkpoint(tmp_path / "out" / "none" / "seed0", process)
        (worker,) = [
            child for child in psutil.Process(process.pid).children()
            if "spawn_main" in " ".join(child.cmdline())
        ]  # fmt: skip
        worker.kill()
        out, _ = finish(process)
        assert "none/seed0: its process ended with signal SIGKILL; it will be tried again" in out
        assert "none/seed0: resuming after epoch" in out
        assert out.splitlines()[-1] == "2 runs: 2 done"
        # A second worker had to take over before mean_only was begun.
        assert out.index("tried again") < out.index("mean_only/seed0: mean_only seed 0")

    @pytest.mark.slow
    def test_stopped_and_started_again(self, sweep, preset, tmp_path):
        """No run is left behind by a driver that is gone, and none is lost."""
        folder = tmp_path / "out" / "none" / "seed0"
        killed = -signal.SIGKILL
        for how, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, killed)):
            enough = num_lines(folder) + 3
            process = sweep(f"--preset={preset(100)}", wait=False)
            wait_for_checkpoint(folder, process, enough)
            children = psutil.Process(process.pid).children(recursive=True)
            os.kill(process.pid, how)
            process.communicate(timeout=60)
            assert process.returncode == status
            _, alive = psutil.wait_procs(children, timeout=20)
            assert alive == []
        out, _ = sweep(f"--preset={preset(100)}")
        assert "none/seed0: resuming after epoch" in out
        assert out.splitlines()[-1] == "2 runs: 2 done"
        assert (folder / "log.txt").read_text().count("resuming after epoch") == 3

    def test_a_dry_run_prints_the_commands_and_writes_nothing(self, sweep, preset, tmp_path):
        out, _ = sweep(f"--preset={preset()}", "--set=batch_size=4", "--dry-run")
        assert [line.split()[:3] for line in out.splitlines()] == [
            ["python", "-m", "bn_vgg.main"]
        ] * 2
        assert "--config.batch_size=4" in out
        assert f"--workdir={tmp_path}/out/none/seed0" in out
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "--preset is missing; there are: five_way, figure1, figure2, grid, norms"),
            (["--preset=six"], "no preset 'six'; there are: five_way"),
            (["--preset=figure1", "--backend=slurm"], "value should be one of <local|ray|sky>"),
            (
                ["--preset=figure1", "--set=batchsize=3"],
                "no field config.batchsize; did you mean batch_size, ",
            ),
            (["--preset=figure1", "--seeds=none"], "--seeds=none: a number of seeds"),
            (["--status"], "holds no sweep: there is no sweep.json in it"),
        ],
    )
    def test_what_is_wrong_is_said_in_a_line(self, arguments, message, sweep):
        _, errors = sweep(*arguments, status=2)
        assert message in errors
        assert errors.count("\n") == 1


def test_a_sweep_by_skypilot_has_its_folder_in_a_bucket():
    _, errors = finish(start("--preset=figure1", "--backend=sky", "--out=runs/f"), status=2)
    assert errors.startswith("error: --out=runs/f: with sky it is an address that all see")


class TestWorker:
    """A slot whose process is not there when it is needed."""

    RUN = PlannedRun("a", 0, "configs/baseline.py", {})

    @pytest.fixture
    def worker(self, tmp_path):
        worker = _Worker(Share("all cores"), str(tmp_path / "out"), [], tmp_path, print)
        yield worker
        worker.close()

    @pytest.mark.parametrize("after", [0, 5])
    def test_it_is_replaced_wherever_it_died(self, worker, after):
        """While it starts, when it has read nothing; or when it waits for its next run."""
        worker._start()
        first = worker._process
        first.join(after)
        first.kill()
        assert worker.execute(self.RUN) == Outcome("its process ended with signal SIGKILL")
        worker._start()
        assert worker._process.is_alive()
        assert worker._process.pid != first.pid

    def test_stopped_before_there_was_one(self, worker):
        worker.stop()
        assert worker.execute(self.RUN).error is not None


class TestShares:
    def test_a_processors_cores_are_shared_out_two_to_a_run(self):
        assert share_out("cpu", 1, None, [0, 1]) == [Share("all cores")]
        assert [of.cores for of in share_out("cpu", 1, None, [0, 1, 2, 5, 7])] == [
            (0, 2, 7), (1, 5),
        ]  # fmt: skip
        assert [of.cores for of in share_out("cpu", 1, 9, [3, 4])] == [(3,), (4,)]

    def test_each_gpu_has_a_run_of_its_own(self, monkeypatch):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        environments = [of.environment for of in share_out("gpu", 3, 2, [0])]
        assert environments == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
        environments = [of.environment for of in share_out("gpu", 2, None, [0])]
        assert environments == [{"CUDA_VISIBLE_DEVICES": "4"}, {"CUDA_VISIBLE_DEVICES": "6"}]

    def test_a_tpus_chips_serve_one_run(self):
        assert share_out("tpu", 8, 4, [0]) == [Share("8 tpu device(s)")]
