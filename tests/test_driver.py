"""What becomes of a sweep's processes (stand-ins for runs), its files and its tables."""

import json
import time

import pytest

from bn_vgg.errors import UserError
from experiments import state, status
from experiments.driver import Driver
from experiments.executors import Ended
from experiments.state import DONE, FAILED, RUNNING, TO_DO, DriverState, RunState
from tests.sweep_runs import FakeRuns, planned

RUNS = [planned(name) for name in "abc"]


def drive(out, runs=RUNS, modes=None, say=None, executor=None, until=float("inf"), attempts=3):
    """Drives stand-ins; returns the driver, what it said and sweep_state.json's runs."""
    said = []
    executor = executor or FakeRuns(out, modes or {})
    work = executor.divide(runs)
    slots = executor.open(work)
    out.mkdir(exist_ok=True)
    driver_state = DriverState(str(out))
    driver = Driver(executor, driver_state, str(out), say or said.append, attempts)
    driver.drive(work, runs, len(slots), until)
    return driver, said, driver_state.runs


def states(out, runs=RUNS):
    return [of.state for of in state.read_states(str(out), list(runs))]


def starts(out, name):
    path = out / name / "seed0" / "starts"
    return len(path.read_text()) if path.exists() else 0


class TestDriver:
    def test_every_run_is_made_once_and_its_epochs_are_said(self, tmp_path):
        driver, said, _ = drive(tmp_path / "out")
        assert states(tmp_path / "out") == [DONE] * 3
        assert [starts(tmp_path / "out", name) for name in "abc"] == [1, 1, 1]
        assert said.count("a/seed0  epoch  1/2  train error 0.250  valid error 0.500") == 1
        estimates = [line for line in said if line.startswith("3 runs: ")]
        assert len(estimates) == 1
        assert "left with" in estimates[0]
        assert driver.failed == []

    def test_a_crash_is_tried_again_a_user_error_is_not(self, tmp_path):
        modes = {"a": "crash once", "b": "user error"}
        driver, said, noted = drive(tmp_path / "out", modes=modes)
        assert states(tmp_path / "out") == [DONE, FAILED, DONE]
        assert [starts(tmp_path / "out", name) for name in "abc"] == [2, 1, 1]
        assert "a/seed0: its process ended with SIGSEGV; it will be tried again" in said
        assert [(work.name, error) for work, error in driver.failed] == [
            ("b/seed0", "no data for b/seed0")
        ]
        assert noted["b/seed0"]["error"] == "no data for b/seed0"

    def test_what_crashes_always_is_given_up(self, tmp_path):
        driver, _, _ = drive(tmp_path / "out", modes={"b": "crash"}, attempts=2)
        assert states(tmp_path / "out") == [DONE, FAILED, DONE]
        assert starts(tmp_path / "out", "b") == 2
        assert [work.name for work, _ in driver.failed] == ["b/seed0"]

    def test_an_error_that_every_run_meets_ends_the_sweep(self, tmp_path):
        runs = [planned(name) for name in "abcdefgh"]
        modes = dict.fromkeys("abcdefgh", "user error")
        with pytest.raises(UserError, match=r"the first 2 runs ended .* no data for a/seed0"):
            drive(tmp_path / "out", runs, modes)
        assert starts(tmp_path / "out", "h") == 0

    def test_ctrl_c_lets_runs_keep_what_they_have(self, tmp_path):
        out = tmp_path / "out"

        def say(line):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            drive(out, modes=dict.fromkeys("abc", "hang"), say=say)
        assert (out / "a" / "seed0" / "kept").exists()
        assert states(out) == [TO_DO] * 3
        drive(out)
        assert states(out) == [DONE] * 3
        assert len((out / "a" / "seed0" / "metrics.jsonl").read_text().splitlines()) == 2

    def test_the_time_is_limited(self, tmp_path):
        out = tmp_path / "out"
        executor = FakeRuns(out, dict.fromkeys("abc", "hang"))
        until = time.monotonic() + 1
        driver, _, _ = drive(out, executor=executor, until=until)
        assert time.monotonic() < until + executor.stop_seconds
        assert (out / "a" / "seed0" / "kept").exists()
        assert driver.failed == []
        target = state.copy_small_files(str(out), RUNS)
        assert target == tmp_path / "out_results"
        copied = {path.name for path in target.rglob("*") if path.is_file()}
        assert copied == {state.STATE, "metrics.jsonl"}

    def test_machines_that_go_away_are_not_counted(self, tmp_path):
        class Lossy(FakeRuns):
            lost = 5

            def poll(self, process):
                ended = super().poll(process)
                if ended and self.lost:
                    self.lost -= 1
                    return Ended(1, "preempted", lost=True)
                return ended

        runs = [planned("a")]
        out = tmp_path / "out"
        _, said, _ = drive(out, runs, executor=Lossy(out, {"a": "crash once"}), attempts=1)
        assert states(out, runs) == [DONE]
        assert said.count("a/seed0: preempted; it will be tried again") == 5

    def test_a_full_disk_ends_no_run_and_is_said_once(self, tmp_path, monkeypatch, capsys):
        def write(path, content):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(state, "_write", write)
        drive(tmp_path / "out")
        assert states(tmp_path / "out") == [DONE] * 3
        assert capsys.readouterr().out.count("No space left on device; the runs go on") == 1


class TestFolder:
    def claim(self, path, preset="p", variant="small", settings=None, runs=RUNS):
        path.mkdir(exist_ok=True)
        state.claim(str(path), preset, variant, settings or {}, list(runs))

    def begin(self, path, *names):
        for name in names:
            (path / name / "seed0").mkdir(parents=True)
            (path / name / "seed0" / "config.json").write_text("{}")

    def test_more_seeds_and_epochs_may_be_asked_for_later(self, tmp_path):
        self.claim(tmp_path, settings={"num_epochs": "2"})
        self.begin(tmp_path, "a")
        more = [*(planned(name, num_epochs=9) for name in "abc"), planned("a", seed=1)]
        self.claim(tmp_path, settings={"num_epochs": "9", "resources.CPU": "4"}, runs=more)
        assert state.read_plan(str(tmp_path))["runs"] == more

    def test_what_has_not_begun_and_is_not_asked_for_is_forgotten(self, tmp_path):
        self.claim(tmp_path)
        self.begin(tmp_path, "a", "b")
        self.claim(tmp_path, runs=RUNS[:1])
        assert state.read_plan(str(tmp_path))["runs"] == RUNS[:2]

    @pytest.mark.parametrize(
        ("other", "message"),
        [
            ({"preset": "q"}, "its preset was p and is q"),
            ({"variant": "full"}, "its variant was small and is full"),
            ({"settings": {"batch_size": "50"}}, "its settings was"),
        ],
    )
    def test_another_sweeps_is_refused_once_a_run_has_begun(self, tmp_path, other, message):
        self.claim(tmp_path)
        self.claim(tmp_path, settings={"data.source": "misspelt.zip"})
        self.claim(tmp_path)
        self.begin(tmp_path, "a")
        with pytest.raises(UserError, match=message):
            self.claim(tmp_path, **other)

    def test_a_folder_of_other_things_is_refused_and_left_alone(self, tmp_path):
        (tmp_path / "thesis.tex").touch()
        with (
            pytest.raises(UserError, match=r"holds no sweep .* but other files"),
            state.driving(str(tmp_path)),
        ):
            pass
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]

    @pytest.mark.parametrize(
        ("content", "message"),
        [("{", "is damaged"), ('{"format": 99}', "is of format 99"), ("[]", "is damaged")],
    )
    def test_a_damaged_or_later_plan_is_refused(self, tmp_path, content, message):
        (tmp_path / state.PLAN).write_text(content)
        with pytest.raises(UserError, match=message):
            state.read_plan(str(tmp_path))

    def test_two_drivers_are_one_too_many(self, tmp_path):
        with state.driving(str(tmp_path)) as driver_state:
            self.claim(tmp_path)
            driver_state.note("a/seed0", RUNNING)
            assert states(tmp_path)[0] == RUNNING
            with (
                pytest.raises(UserError, match="is driven by process"),
                state.driving(str(tmp_path)),
            ):
                pass
        assert states(tmp_path)[0] == TO_DO
        with state.driving(str(tmp_path)):
            pass

    def test_a_damaged_run_is_said_to_be(self, tmp_path):
        self.begin(tmp_path, "a")
        (tmp_path / "a" / "seed0" / "metrics.jsonl").write_text("{")
        (found, *_) = state.read_states(str(tmp_path), RUNS)
        assert found.state == FAILED
        assert "its folder is damaged" in found.error

    def test_a_result_of_fewer_epochs_is_not_the_end(self, tmp_path):
        self.begin(tmp_path, "a")
        result = {"config": {"num_epochs": 2}, "test_error_rate": 0.1}
        (tmp_path / "a" / "seed0" / "result.json").write_text(json.dumps(result))
        assert state.unfinished(str(tmp_path), [planned("a", num_epochs=3)])
        assert not state.unfinished(str(tmp_path), [planned("a", num_epochs=2)])


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
