"""Who gets which run, what is tried again, and what a stopped sweep leaves behind."""

import json
import os
import threading
import time

import pytest

from bn_vgg.errors import UserError
from experiments.sweeping import state
from experiments.sweeping.backend import Outcome
from experiments.sweeping.driver import Driver
from experiments.sweeping.plan import PlannedRun
from experiments.sweeping.state import DONE, FAILED, RUNNING, TO_DO, DriverState
from experiments.sweeping.status import summary, table


def run_called(name, seed=0):
    return PlannedRun(name, seed, "configs/baseline.py", {}, num_epochs=4)


RUNS = [run_called(name) for name in "abcd"]


class FakeSlot:
    """Executes runs by popping what was foretold for each; done where nothing was."""

    def __init__(self, name, foretold):
        self.name, self.foretold = name, foretold
        self.executed, self.closed, self.stopped = [], 0, threading.Event()

    def execute(self, run):
        self.executed.append(run.name)
        outcome = self.foretold.get(run.name, [])
        outcome = outcome.pop(0) if outcome else Outcome()
        if isinstance(outcome, Exception):
            raise outcome
        if outcome == "wait":
            assert self.stopped.wait(20)
            return Outcome("it was stopped")
        return outcome

    def stop(self):
        self.stopped.set()

    def close(self):
        self.closed += 1


def drive(tmp_path, slots, runs=RUNS, **options):
    said = []
    driver_state = DriverState(str(tmp_path))
    driver = Driver(list(runs), driver_state, said.append, **options)
    driver.drive(slots)
    return driver, said, driver_state.runs


class TestDriver:
    def test_every_run_is_executed_once_by_some_slot(self, tmp_path):
        slots = [FakeSlot("one", {}), FakeSlot("two", {})]
        driver, said, _ = drive(tmp_path, slots)
        assert sorted(name for slot in slots for name in slot.executed) == list("abcd")
        assert [slot.closed for slot in slots] == [1, 1]
        assert (driver.failed, said) == ([], [])

    def test_a_failure_is_tried_again_last_and_given_up_after_so_many(self, tmp_path):
        slot = FakeSlot("one", {"a": [Outcome("bad")] * 9, "b": [UserError("once")]})
        driver, said, noted = drive(tmp_path, [slot], attempts=2)
        assert slot.executed == ["a", "b", "c", "d", "a", "b"]
        assert [run.name for run in driver.failed] == ["a"]
        assert said == [
            "a/seed0: bad; it will be tried again",
            "b/seed0: once; it will be tried again",
            "a/seed0: bad; given up after 2 attempts",
        ]
        assert noted["a/seed0"] | {"where": ""} == {
            "state": FAILED, "attempts": 2, "error": "bad", "where": "",
        }  # fmt: skip

    def test_a_bug_in_one_run_does_not_end_the_others(self, tmp_path):
        slot = FakeSlot("one", {"a": [ZeroDivisionError("oh")] * 3})
        driver, said, _ = drive(tmp_path, [slot])
        assert slot.executed.count("d") == 1
        assert [run.name for run in driver.failed] == ["a"]
        assert said[0] == "a/seed0: ZeroDivisionError: oh; it will be tried again"

    def test_machines_that_go_away_are_not_counted(self, tmp_path):
        slot = FakeSlot("one", {"a": [Outcome("preempted", lost=True)] * 9})
        driver, _, noted = drive(tmp_path, [slot], attempts=2)
        assert slot.executed.count("a") == 10
        assert driver.failed == []
        assert noted["a/seed0"]["attempts"] == 1

    def test_an_idle_slot_takes_what_fails_elsewhere(self, tmp_path):
        """It must not leave while a run is going that may come back."""
        slow = FakeSlot("slow", {})
        execute = slow.execute
        slow.execute = lambda run: (time.sleep(0.3), execute(run))[1]
        slow.foretold["a"] = [Outcome("bad")]
        quick = FakeSlot("quick", {})
        drive(tmp_path, [slow, quick], RUNS[:1])
        assert slow.executed + quick.executed == ["a", "a"]

    def test_ctrl_c_stops_what_is_going_and_begins_nothing(self, tmp_path, monkeypatch):
        slots = [FakeSlot("one", {"a": ["wait"]}), FakeSlot("two", {"b": ["wait"]})]

        with monkeypatch.context() as patched:
            driver_state = DriverState(str(tmp_path))
            driver = Driver(list(RUNS), driver_state, print)
            original = threading.Thread.join
            calls = []

            def join(self, timeout=None):
                calls.append(self)
                if len(calls) == 1:
                    while not all(slot.executed for slot in slots):
                        time.sleep(0.01)
                    raise KeyboardInterrupt
                return original(self, timeout)

            patched.setattr(threading.Thread, "join", join)
            with pytest.raises(KeyboardInterrupt):
                driver.drive(slots)
        assert sorted(slots[0].executed + slots[1].executed) == ["a", "b"]
        assert [slot.closed for slot in slots] == [1, 1]
        assert {run["state"] for run in driver_state.runs.values()} == {TO_DO}
        assert not state.is_alive(state.read_driver(str(tmp_path)))

    @pytest.mark.parametrize("which", range(1, 9))
    def test_a_full_disk_ends_no_run_and_is_said_once(self, tmp_path, which, monkeypatch):
        """At whichever write of the state it is met, and from then on."""
        driver_state = DriverState(str(tmp_path))
        written, original = [], state._write

        def write(path, content):
            written.append(path)
            if len(written) >= which:
                raise UserError(f"cannot write {path}: No space left on device")
            original(path, content)

        monkeypatch.setattr(state, "_write", write)
        said, slots = [], [FakeSlot("one", {}), FakeSlot("two", {})]
        driver = Driver(list(RUNS), driver_state, said.append)
        driver.drive(slots)
        assert sorted(slots[0].executed + slots[1].executed) == list("abcd")
        assert driver.failed == []
        assert len(said) == 1
        assert "sweep_state.json: No space left on device; the runs go on" in said[0]

    def test_where_nobody_listens_the_slots_are_stopped_and_it_is_raised(self, tmp_path):
        """As with a pipe whose reader is gone: no slot may wait for ever for the other's run."""
        slots = [FakeSlot("one", {"a": [Outcome("bad")]}), FakeSlot("two", {"b": ["wait"]})]

        def say(line):
            raise BrokenPipeError(line)

        driver = Driver(list(RUNS), DriverState(str(tmp_path)), say)
        with pytest.raises(BrokenPipeError, match="bad"):
            driver.drive(slots)
        assert [slot.closed for slot in slots] == [1, 1]
        assert not state.is_alive(state.read_driver(str(tmp_path)))


class TestFolder:
    def claim(self, path, preset="p", variant="small", settings=None, runs=RUNS):
        state.claim(str(path), preset, variant, settings or {}, list(runs))

    def test_more_seeds_and_epochs_may_be_asked_for_later(self, tmp_path):
        self.claim(tmp_path, settings={"num_epochs": "5"})
        more = [run_called("a", seed=1)]
        self.claim(tmp_path, settings={"num_epochs": "7"}, runs=[*RUNS, *more])
        plan = state.read_plan(str(tmp_path))
        assert plan["runs"] == [*RUNS, *more]
        shorter = [RUNS[0]._replace(num_epochs=3)]
        (tmp_path / "a" / "seed0").mkdir(parents=True)
        (tmp_path / "a" / "seed0" / "config.json").write_text("{}")
        with pytest.raises(UserError, match="a/seed0 was begun for 4 epochs and cannot be shorten"):
            self.claim(tmp_path, settings={"num_epochs": "3"}, runs=shorter)
        assert state.read_plan(str(tmp_path)) == plan
        others = [RUNS[0]._replace(num_epochs=9), RUNS[1]._replace(num_epochs=3)]
        self.claim(tmp_path, runs=others)
        assert state.read_plan(str(tmp_path))["runs"] == others

    def test_what_has_not_begun_and_is_not_asked_for_is_forgotten(self, tmp_path):
        self.claim(tmp_path)
        for name in "ab":
            (tmp_path / name / "seed0").mkdir(parents=True)
            (tmp_path / name / "seed0" / "config.json").write_text("{}")
        self.claim(tmp_path, runs=RUNS[:1])
        assert state.read_plan(str(tmp_path))["runs"] == RUNS[:2]

    def test_what_changes_the_speed_alone_may_be_asked_for_later(self, tmp_path):
        self.claim(tmp_path, settings={"resources.CPU": "4"})
        self.claim(tmp_path, settings={"checkpoint.every_steps": "50"})

    @pytest.mark.parametrize(
        ("other", "message"),
        [
            ({"preset": "q"}, "its preset was p and is q"),
            ({"variant": "full"}, "its variant was small and is full"),
            ({"settings": {"batch_size": "50"}}, "its settings was"),
        ],
    )
    def test_another_sweeps_is_refused(self, tmp_path, other, message):
        self.claim(tmp_path)
        with pytest.raises(UserError, match=message):
            self.claim(tmp_path, **other)

    def test_a_folder_of_other_things_is_refused(self, tmp_path):
        (tmp_path / "thesis.tex").touch()
        with pytest.raises(UserError, match=r"holds no sweep .* but other files"):
            self.claim(tmp_path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [("{", "is damaged"), ('{"format": 99}', "is of format 99"), ("[]", "is damaged")],
    )
    def test_a_damaged_or_later_plan_is_refused(self, tmp_path, content, message):
        (tmp_path / "sweep.json").write_text(content)
        with pytest.raises(UserError, match=message):
            state.read_plan(str(tmp_path))

    def test_two_drivers_are_one_too_many(self, tmp_path):
        self.claim(tmp_path)
        plan = state.read_plan(str(tmp_path))
        DriverState(str(tmp_path))
        message = f"is driven by process {os.getpid()} on "
        with pytest.raises(UserError, match=message):
            DriverState(str(tmp_path))
        with pytest.raises(UserError, match=message):
            self.claim(tmp_path, settings={"num_epochs": "9"})
        assert state.read_plan(str(tmp_path)) == plan

    def test_another_process_may_have_a_dead_drivers_number(self, tmp_path):
        """As after a container's restart."""
        DriverState(str(tmp_path))
        found = json.loads((tmp_path / "sweep_state.json").read_text())
        found["driver"]["started"] = "1"
        (tmp_path / "sweep_state.json").write_text(json.dumps(found))
        DriverState(str(tmp_path))

    @pytest.mark.parametrize(
        ("driver", "alive"),
        [
            ({"host": "elsewhere", "pid": 1, "since": 0.0}, True),
            ({"host": "elsewhere", "pid": 1, "since": 0.0, "old": True}, False),
            (None, False),
        ],
    )
    def test_a_driver_elsewhere_is_known_by_its_signs_of_life(self, tmp_path, driver, alive):
        old = bool(driver and driver.pop("old", False))
        seen = time.time() - (state.GONE_AFTER_SECONDS + 1 if old else 0)
        assert state.is_alive({"driver": driver, "seen": seen, "runs": {}}) == alive


def write_run(path, epochs, planned=4, best=0.25, done=False):
    path.mkdir(parents=True)
    lines = [
        {"epoch": epoch, "valid/best_error_rate": best, "seconds": 60.0 * epoch}
        for epoch in range(1, epochs + 1)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if done:
        (path / "result.json").write_text(json.dumps({"config": {"num_epochs": planned}}))


class TestStatus:
    @pytest.fixture
    def sweep(self, tmp_path):
        """Done, running, failed, to do; and one whose result is of fewer epochs."""
        write_run(tmp_path / "a" / "seed0", 4, done=True)
        write_run(tmp_path / "b" / "seed0", 2)
        write_run(tmp_path / "c" / "seed0", 1)
        runs = [*RUNS, run_called("e")]
        write_run(tmp_path / "e" / "seed0", 3, planned=3, done=True)
        driver_state = DriverState(str(tmp_path))
        driver_state.runs["b/seed0"] = {
            "state": RUNNING, "attempts": 1, "error": None, "where": "GPU 0",
        }  # fmt: skip
        driver_state.runs["c/seed0"] = {
            "state": FAILED, "attempts": 3, "error": "out of memory", "where": "GPU 1",
        }  # fmt: skip
        driver_state.write()
        return tmp_path, runs

    def test_each_run_is_what_its_folder_says(self, sweep):
        path, runs = sweep
        states = state.read_states(str(path), runs)
        assert [of.state for of in states] == [DONE, RUNNING, FAILED, TO_DO, TO_DO]
        assert [of.epochs for of in states] == [4, 2, 1, 0, 3]
        assert states[2].error == "out of memory"

    def test_what_waits_to_be_tried_again_is_to_do(self, sweep):
        path, runs = sweep
        found = json.loads((path / "sweep_state.json").read_text())
        found["runs"]["c/seed0"] |= {"state": TO_DO, "error": "taken away"}
        (path / "sweep_state.json").write_text(json.dumps(found))
        again = state.read_states(str(path), runs)[2]
        assert (again.state, again.error) == (TO_DO, "taken away")

    def test_nothing_runs_without_a_driver(self, sweep):
        path, runs = sweep
        found = json.loads((path / "sweep_state.json").read_text())
        found["driver"]["pid"] = 2**22 + 1  # above Linux's largest
        (path / "sweep_state.json").write_text(json.dumps(found))
        assert state.read_states(str(path), runs)[1].state == TO_DO

    def test_a_damaged_folder_is_said_to_be(self, sweep):
        path, runs = sweep
        (path / "b" / "seed0" / "metrics.jsonl").write_text("{")
        found = state.read_states(str(path), runs)[1]
        assert found.state == FAILED
        assert "its folder is damaged" in found.error

    def test_the_table(self, sweep):
        path, runs = sweep
        lines = table(runs, state.read_states(str(path), runs)).splitlines()
        assert lines == [
            "run      state    epochs  error  left",
            "a/seed0  done     4/4     25.0%",
            "b/seed0  running  2/4     25.0%  2m00s  on GPU 0",
            "c/seed0  failed   1/4     25.0%",
            "d/seed0  to do    0/4            4m00s",
            "e/seed0  to do    3/4     25.0%  1m00s",
            "",
            "c/seed0: 3 attempts: out of memory",
            "5 runs: 1 done, 1 running, 1 failed, 2 to do; about 7m00s left with 1 at once",
        ]

    def test_the_table_fits_a_narrow_terminal(self):
        name = "baseline_crop-norm=mine_MedianMeanNorm-demo"
        (line,) = table([run_called(name)], [state.RunState(RUNNING, 2)], 60).splitlines()[1:2]
        assert len(line) <= 60
        assert line.startswith("baseline_c")
        assert "…" in line
        assert "demo/seed0  running  2/4" in line

    def test_before_anything_has_run_no_time_is_guessed(self, tmp_path):
        states = state.read_states(str(tmp_path), RUNS)
        assert summary(RUNS, states) == "4 runs: 4 to do"
