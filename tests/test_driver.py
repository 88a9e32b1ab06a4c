"""What becomes of a sweep's processes (stand-ins for runs), its folder and its tables."""

import json
import time
from dataclasses import replace
from unittest.mock import Mock

import pytest

from bn_vgg import cli
from bn_vgg.errors import UserError
from experiments import state, status
from experiments.driver import Driver
from experiments.executors import Outcome
from experiments.state import DONE, FAILED, RUNNING, TO_DO, RunState, Sweep
from tests.sweep_runs import FakeRuns, planned

RUNS = [planned(name) for name in "abc"]


def drive(out, runs=RUNS, modes=None, executor=None, until=float("inf"), attempts=3):
    """Drives stand-ins; returns the driver and the states that the runs are in."""
    executor = executor or FakeRuns(out, modes or {})
    work = executor.divide(runs)
    with state.open_sweep(str(out), list(runs)) as sweep:
        driver = Driver(executor, sweep, len(executor.open(work)), attempts)
        driver.drive(work, until)
    return driver, states(out)


def plan_sweep(out, runs=RUNS):
    """Plans a sweep in its folder, and makes none of its runs."""
    with state.open_sweep(str(out), list(runs)):
        pass


def states(out):
    sweep = state.read_sweep(str(out))
    return [of.state for of in sweep.states(active=state.is_active(str(out)))]


def starts(out, *names):
    paths = [out / name / "seed0" / "starts" for name in names]
    return [len(path.read_text()) if path.exists() else 0 for path in paths]


class TestDriver:
    def test_every_run_is_made_once_and_its_epochs_are_said(self, tmp_path, capsys):
        driver, found = drive(tmp_path)
        assert found == [DONE] * 3
        assert starts(tmp_path, *"abc") == [1, 1, 1]
        assert driver.failed == []
        said = capsys.readouterr().out.splitlines()
        assert said.count("a/seed0  epoch  1/2  train error 0.250  valid error 0.500") == 1
        (estimate,) = [line for line in said if line.startswith("3 runs: ")]
        assert "left with" in estimate

    def test_a_crash_is_tried_again_a_user_error_is_not(self, tmp_path, capsys):
        modes = {"a": "crash once", "b": "user error", "c": "crash"}
        driver, found = drive(tmp_path, modes=modes, attempts=2)
        assert found == [DONE, FAILED, FAILED]
        assert starts(tmp_path, *"abc") == [2, 1, 2]
        said = capsys.readouterr().out
        assert "a/seed0: its process ended with SIGSEGV; it will be tried again\n" in said
        assert {work.name: error for work, error in driver.failed} == {
            "b/seed0": "no data for b/seed0", "c/seed0": "its process ended with SIGSEGV",
        }  # fmt: skip
        attempts = state.read_sweep(str(tmp_path)).attempts
        assert attempts["b/seed0"] == {"state": FAILED, "error": "no data for b/seed0"}

    def test_an_error_that_every_run_meets_ends_the_sweep(self, tmp_path):
        runs = [planned(name) for name in "abcdefgh"]
        with pytest.raises(UserError, match=r"the first 2 runs ended .* no data for [ab]/seed0"):
            drive(tmp_path, runs, dict.fromkeys("abcdefgh", "user error"))
        assert starts(tmp_path, "h") == [0]

    def test_one_names_error_does_not(self, tmp_path):
        runs = [planned("a"), planned("a", seed=1), planned("b")]
        _, found = drive(tmp_path, runs, {"a": "user error"})
        assert found == [FAILED, FAILED, DONE]

    def test_ctrl_c_lets_runs_keep_what_they_have(self, tmp_path, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(cli, "show", Mock(side_effect=KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                drive(tmp_path, modes=dict.fromkeys("abc", "hang"))
        assert (tmp_path / "a" / "seed0" / "kept").exists()
        assert states(tmp_path) == [TO_DO] * 3
        assert drive(tmp_path)[1] == [DONE] * 3
        assert len((tmp_path / "a" / "seed0" / "metrics.jsonl").read_text().splitlines()) == 2

    def test_the_time_is_limited(self, tmp_path):
        out = tmp_path / "out"
        executor = FakeRuns(out, dict.fromkeys("abc", "hang"))
        until = time.monotonic() + 1
        driver, _ = drive(out, executor=executor, until=until)
        assert time.monotonic() < until + executor.stop_seconds
        assert (out / "a" / "seed0" / "kept").exists()
        assert driver.failed == []
        for name in ("checkpoints/12/weights", "damaged/6/weights", "events.out.tfevents.1"):
            (out / "a/seed0" / name).parent.mkdir(parents=True, exist_ok=True)
            (out / "a/seed0" / name).touch()
        for _ in range(2):  # a sweep that goes on copies again
            target = state.read_sweep(str(out)).copy_small_files()
        assert target == tmp_path / "out_results"
        copied = {path.name for path in target.rglob("*") if path.is_file()}
        assert copied == {state.SWEEP, "metrics.jsonl", "seed0.out", "starts", "kept"}

    def test_machines_that_go_away_are_not_counted(self, tmp_path, capsys):
        class Lossy(FakeRuns):
            lost = 5

            def poll(self, process):
                ended = super().poll(process)
                if ended and self.lost:
                    self.lost -= 1
                    return Outcome(1, "preempted", lost=True)
                return ended

        executor = Lossy(tmp_path, {"a": "crash once"})
        assert drive(tmp_path, RUNS[:1], executor=executor, attempts=1)[1] == [DONE]
        assert capsys.readouterr().out.count("a/seed0: preempted; it will be tried again") == 5

    def test_a_full_disk_ends_no_run_and_is_said_once(self, tmp_path, monkeypatch, capsys):
        executor = FakeRuns(tmp_path, {})
        sweep = Sweep(str(tmp_path), RUNS, writes=True)
        full = UserError("No space left on device")
        monkeypatch.setattr(Sweep, "write", Mock(side_effect=full))
        work = executor.divide(RUNS)
        Driver(executor, sweep, len(executor.open(work))).drive(work)
        assert sweep.unfinished() == []
        assert capsys.readouterr().out.count("No space left on device") == 1


class TestFolder:
    def begin(self, path, *runs):
        """Plans a sweep of all runs and begins some."""
        plan_sweep(path)
        for run in runs:
            (path / run.folder).mkdir(parents=True)
            (path / run.folder / "config.json").write_text("{}")

    def test_a_first_write_that_was_killed_is_in_nobodys_way(self, tmp_path):
        (tmp_path / f"{state.SWEEP}.partial").touch()
        plan_sweep(tmp_path)
        assert states(tmp_path) == [TO_DO] * 3

    def test_more_seeds_and_epochs_may_be_asked_for_and_what_has_begun_stays(self, tmp_path):
        self.begin(tmp_path, *RUNS[:2])
        settings = {"num_epochs": "9", "resources.CPU": "4"}
        more = [replace(RUNS[0], num_epochs=9, overrides=settings), planned("a", seed=1)]
        plan_sweep(tmp_path, more)
        assert state.read_sweep(str(tmp_path)).runs == [RUNS[1], *more]

    def test_other_settings_are_refused_once_a_run_has_begun(self, tmp_path):
        other = [replace(run, overrides={"batch_size": "50"}) for run in RUNS]
        plan_sweep(tmp_path)
        plan_sweep(tmp_path, other)
        self.begin(tmp_path, RUNS[0])
        message = r"holds a/seed0 with .*, but this command asks for .* batch_size=50"
        with pytest.raises(UserError, match=message):
            plan_sweep(tmp_path, other)

    def test_a_folder_of_other_things_is_refused_and_left_alone(self, tmp_path):
        (tmp_path / "thesis.tex").touch()
        with pytest.raises(UserError, match=r"holds other files, but no sweep\.json"):
            plan_sweep(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

    def test_a_folder_where_no_run_could_keep_a_checkpoint(self, tmp_path):
        with pytest.raises(UserError, match=r"no checkpoint can be kept in .*, because of '\['"):
            plan_sweep(tmp_path / "a[1]")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("content", "message"),
        [("{", "is damaged"), ('{"format": 1}', "is of format 1"), ("[]", "is damaged")],
    )
    def test_a_damaged_or_another_versions_plan_is_refused(self, tmp_path, content, message):
        (tmp_path / state.SWEEP).write_text(content)
        with pytest.raises(UserError, match=message):
            state.read_sweep(str(tmp_path))

    def test_two_drivers_are_one_too_many(self, tmp_path):
        with state.open_sweep(str(tmp_path), RUNS) as sweep:
            sweep.record(RUNS[0], RUNNING)
            assert states(tmp_path)[0] == RUNNING
            with pytest.raises(UserError, match=f"{tmp_path} is in use by process"):
                plan_sweep(tmp_path)
        assert states(tmp_path)[0] == TO_DO
        with state.open_sweep(str(tmp_path), RUNS):  # which goes on without it for a while
            assert states(tmp_path)[0] == TO_DO

    def test_a_damaged_run_and_a_result_of_fewer_epochs(self, tmp_path):
        self.begin(tmp_path, *RUNS[:2])
        (tmp_path / "a/seed0/metrics.jsonl").write_text("{")
        result = {"config": {"num_epochs": 2}, "test_error_rate": 0.1}
        (tmp_path / "b/seed0/result.json").write_text(json.dumps(result))
        damaged, done, _ = state.read_sweep(str(tmp_path)).states()
        assert damaged.state == FAILED
        assert "its folder is damaged" in damaged.error
        assert done.state == DONE
        assert Sweep(str(tmp_path), [planned("b", num_epochs=3)]).unfinished()


class TestTables:
    def test_runs(self):
        runs = [planned(name, num_epochs=4) for name in "abcd"]
        of = [
            RunState(DONE, 4, 0.25, 0.3, 240.0), RunState(RUNNING, 2, 0.25, None, 120.0),
            RunState(FAILED, 1, 0.25, None, 60.0, "out of memory"), RunState(TO_DO),
        ]  # fmt: skip
        assert status.run_table(runs, of).splitlines() == [
            "run      state    epochs  best valid error  left",
            "a/seed0  done     4/4     25.0%",
            "b/seed0  running  2/4     25.0%             2m00s",
            "c/seed0  failed   1/4     25.0%",
            "d/seed0  to do    0/4                       4m00s",
            "",
            "c/seed0: out of memory",
            "4 runs: 1 done, 1 running, 1 failed, 1 to do; about 6m00s left with 1 at once",
        ]

    def test_cells(self):
        runs = [planned("a", seed) for seed in range(3)] + [planned("b")]
        of = [RunState(DONE, 2, best, best + 0.1) for best in (0.1, 0.2, 0.3)] + [RunState(TO_DO)]
        assert status.cell_table(runs, of).splitlines() == [
            "cell  seeds  epochs  best valid error  test error",
            "a     3      2       20.0% ± 5.8       30.0% ± 5.8",
            "b     0",
        ]

    def test_they_fit_a_terminal(self):
        name = "baseline_crop-norm=mine_MedianMeanNorm-" + "x" * 60
        for width in (60, 100):
            table = status.run_table([planned(name)], [RunState(RUNNING, 1)], width).splitlines()
            assert len(table[1]) <= width
            assert "…" in table[1]
            assert "running" in table[1]
