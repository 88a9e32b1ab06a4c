"""The sweep command on this machine: real runs, really killed; and how the machine is divided."""

import psutil
import pytest

from bn_vgg.errors import UserError
from experiments import state
from experiments.executors.local import Resources, divide_hardware
from tests.runs import lines, num_lines, wait_for_checkpoint
from tests.sweep_runs import finish, run_alone, start, write_preset

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def sweep(cache_folder, tmp_path):
    """Starts a sweep in tmp_path/out."""
    started, folders = [], (f"--out={tmp_path / 'out'}", f"--cache_dir={cache_folder}")

    def start_one(*arguments):
        started.append(start(*arguments, *folders, "--notensorboard", "--jobs=1"))
        return started[-1]

    yield start_one
    for process in started:
        process.kill()
        process.communicate()


def test_killed_crashed_and_started_again(
    sweep, tmp_path, cartoon_folder, tiny_config, cache_folder
):
    """No run outlives its driver, none is lost, and no number changes."""
    preset = write_preset(tmp_path, cartoon_folder, epochs=20, short=False)
    folder = tmp_path / "out" / "long" / "seed0"
    process = sweep(f"--preset={preset}")
    wait_for_checkpoint(folder, process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []

    process = sweep(f"--preset={preset}")
    wait_for_checkpoint(folder, process, num_lines(folder) + 2)
    (run,) = psutil.Process(process.pid).children()
    run.kill()
    out, _ = finish(process)
    assert "long/seed0: its process ended with SIGKILL; it will be tried again" in out
    assert (folder / "log.txt").read_text().count("resuming after epoch") == 2
    assert max(map(len, out.splitlines())) <= max(100, len(f"python -m … {tmp_path}") + 40)
    assert "1 runs: 1 done" in out
    assert "cell  seeds  epochs  best valid error  test error" in out
    assert out.splitlines()[-1] == f"python -m experiments.report --runs={tmp_path / 'out'}"
    assert run_alone(tiny_config, 20, tmp_path / "alone", cache_folder) == lines(folder)

    found = state.read_sweep(str(tmp_path / "out"))
    assert [of.state for of in found.states()] == [state.DONE]


def test_a_dry_run_prints_the_commands_and_writes_nothing(sweep, tmp_path, cartoon_folder):
    preset = write_preset(tmp_path, cartoon_folder)
    out, _ = finish(sweep(f"--preset={preset}", "--set=batch_size=4", "--dry-run"))
    assert [line.split()[:3] for line in out.splitlines()] == [["python", "-m", "bn_vgg.main"]] * 2
    assert "--config.batch_size=4" in out
    assert f"--workdir={tmp_path}/out/long/seed0" in out
    assert not (tmp_path / "out").exists()


def test_what_is_wrong_is_said_in_a_line(sweep):
    _, errors = finish(sweep("--preset=figure1", "--set=batchsize=3"), status=2)
    assert "no field config.batchsize; did you mean" in errors
    assert errors.count("\n") == 1


class TestShares:
    def test_a_processors_cores_are_shared_out_two_to_a_run(self):
        assert divide_hardware("cpu", 1, [0, 1], None, None) == [Resources("all cores")]
        cores = [0, 1, 2, 5, 7]
        assert [of.cores for of in divide_hardware("cpu", 1, cores, None, None)] == [(0, 2), (1, 5)]
        assert [of.cores for of in divide_hardware("cpu", 1, [3, 4], 9, None)] == [(3,), (4,)]
        assert len(divide_hardware("cpu", 1, range(8), None, 4)) == 2
        assert [of.cores for of in divide_hardware("cpu", 1, range(8), 1, 2)] == [(0, 1)]
        assert [len(of.cores) for of in divide_hardware("cpu", 1, range(8), 3, 4)] == [4, 4]
        assert divide_hardware("cpu", 1, range(8), 1, None) == [Resources("all cores")]

    def test_each_gpu_has_a_run_of_its_own(self, monkeypatch):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        environments = [of.environment for of in divide_hardware("gpu", 3, [0], 2, None)]
        assert environments == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6,7")
        environments = [of.environment for of in divide_hardware("gpu", 3, [0], None, 2)]
        assert environments == [{"CUDA_VISIBLE_DEVICES": "4,6"}]

    def test_each_tpu_chip_has_a_run_of_its_own(self, monkeypatch):
        monkeypatch.delenv("TPU_VISIBLE_CHIPS", raising=False)
        first, *_, last = divide_hardware("tpu", 4, [0], None, None)
        alone = {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"}
        assert alone.items() <= first.environment.items()
        assert [of.environment["TPU_VISIBLE_CHIPS"] for of in (first, last)] == ["0", "3"]
        (whole,) = divide_hardware("tpu", 4, [0], None, 4)
        assert "TPU_CHIPS_PER_PROCESS_BOUNDS" not in whole.environment

    @pytest.mark.parametrize(("platform", "per_run"), [("gpu", 5), ("tpu", 2), ("tpu", 5)])
    def test_what_the_hardware_does_not_have(self, platform, per_run):
        with pytest.raises(UserError, match=f"--devices_per_run={per_run}"):
            divide_hardware(platform, 4, [0], None, per_run)
