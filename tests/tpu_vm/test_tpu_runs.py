"""TPU VMs as a sweep's backend: runs, and what happens to them."""

import time

import pytest

from experiments.sweeping.backend import Outcome
from tests.tpu_vm.conftest import RUNS, git, in_thread, is_running, read


class TestARun:
    def test_is_made_collected_and_its_vm_deleted(self, cloud, slot, out, said, checkout):
        slot = slot()
        assert slot.name == "bn-vgg-0"
        assert cloud.queued == {}  # nothing that costs money before there is something to do
        assert slot.execute(RUNS[0]) == Outcome()
        folder = out / RUNS[0].folder
        names = {"config.json", "data.json", "metrics.jsonl", "result.json", "log.txt"}
        assert {path.name for path in folder.iterdir()} == names
        assert [line["epoch"] for line in read(folder / "metrics.jsonl")] == [1, 2]
        assert "epoch   2/2" in (folder / "log.txt").read_text()
        home = cloud.home("bn-vgg-0")
        assert git(home / "bn_vgg", "rev-parse", "HEAD") == git(checkout, "rev-parse", "HEAD")
        assert "-m uv pip install" in (home / "python3_calls").read_text()
        assert list(cloud.queued) == ["bn-vgg-0"]
        slot.close()
        assert cloud.queued == {}
        assert not any("costing" in line for line in said)

    def test_gets_exactly_its_arguments(self, cloud, slot):
        slot().execute(RUNS[0])
        (started,) = cloud.bucket("sweep/cell/seed0/starts0").read_text().splitlines()
        assert started == (
            "t1v-bn-vgg-0-w-0 --config=configs/cell.py:small --config.seed=0 "
            "--config.model.norm=a b:C --workdir=gs://BUCKET/sweep/cell/seed0 --notensorboard"
        )

    def test_is_followed_by_the_next_on_the_same_vm(self, cloud, slot):
        slot = slot()
        assert [slot.execute(run) for run in RUNS] == [Outcome(), Outcome()]
        assert cloud.count("queued-resources", "create") == 1
        assert cloud.count("git clone") == 1

    def test_that_fails_is_told_by_its_last_line(self, cloud, slot, out):
        cloud.order(seed0=["fail"])
        slot = slot()
        outcome = slot.execute(RUNS[0])
        assert outcome == Outcome("ValueError: no such image")
        assert "Traceback" in (out / RUNS[0].folder / "log.txt").read_text()
        assert slot.execute(RUNS[0]) == Outcome()
        assert cloud.count("queued-resources", "create") == 1

    def test_that_ends_without_a_result_is_not_done(self, cloud, slot):
        cloud.order(seed0=["silent"])
        outcome = slot().execute(RUNS[0])
        assert "no result.json in gs://BUCKET/sweep/cell/seed0" in outcome.error
        assert not outcome.lost

    def test_shows_its_epochs_while_it_goes_on(self, cloud, slot, out, said):
        cloud.order(seed0=["hang"])
        slot = slot()
        thread = in_thread(slot.execute, RUNS[0])
        said.wait_for("cell/seed0: epoch   1/2  valid error 0.250")
        metrics = out / RUNS[0].folder / "metrics.jsonl"
        while not metrics.exists() and thread.is_alive():
            time.sleep(0.02)
        assert [line["epoch"] for line in read(metrics)] == [1]
        assert sum("epoch   1/2" in line for line in said) == 1
        slot.stop()
        thread.join(60)


class TestAPod:
    def test_runs_on_all_workers(self, cloud, slot, out):
        cloud.order(workers=2)
        assert slot(accelerator_type="v5litepod-16").execute(RUNS[0]) == Outcome()
        starts = [cloud.bucket(f"sweep/cell/seed0/starts{worker}").read_text() for worker in (0, 1)]
        assert [text.count("--workdir") for text in starts] == [1, 1]
        assert (out / RUNS[0].folder / "result.json").exists()
        (create,) = [call for call in cloud.calls if "create" in call]
        assert "--accelerator-type=v5litepod-16" in create

    def test_waits_for_all_workers(self, cloud, slot, said):
        cloud.order(workers=2, seed0_1=["hang"])
        slot = slot()
        thread = in_thread(slot.execute, RUNS[0])
        said.wait_for("epoch   2/2")
        looks = cloud.count("kill -0")
        while cloud.count("kill -0") < looks + 3 and thread.is_alive():
            time.sleep(0.02)
        assert thread.is_alive()
        slot.stop()
        thread.join(60)

    def test_fails_with_any_worker_and_ends_the_others(self, cloud, slot):
        cloud.order(workers=2, seed0=["hang"], seed0_1=["fail"])
        outcome = slot().execute(RUNS[0])
        assert outcome == Outcome("ValueError: no such image (on t1v-bn-vgg-0-w-1)")
        assert not is_running(cloud)


class TestPreemption:
    def test_loses_the_vm_and_the_run_goes_on_with_the_next(self, cloud, slot, out, said):
        cloud.order(seed0=["hang"])
        slot = slot()
        thread = in_thread(slot.execute, RUNS[0])
        said.wait_for("epoch   1/2")
        cloud.order(("kill -0", "preempt", 1), seed0=["hang"])
        thread.join(60)
        assert thread.result == Outcome("bn-vgg-0 was taken away (SUSPENDED)", lost=True)
        assert cloud.queued == {}
        assert slot.execute(RUNS[0]) == Outcome()
        assert cloud.count("queued-resources", "create") == 2
        assert cloud.count("git clone") == 2
        lines = read(out / RUNS[0].folder / "metrics.jsonl")
        assert lines == [{"epoch": 1, "attempt": 1}, {"epoch": 2, "attempt": 2}]

    def test_while_setting_up(self, cloud, slot):
        cloud.order(("git clone", "preempt", 1))
        slot = slot()
        assert slot.execute(RUNS[0]).lost
        assert slot.execute(RUNS[0]) == Outcome()

    def test_between_two_runs(self, cloud, slot):
        slot = slot()
        slot.execute(RUNS[0])
        cloud.order(("setsid", "preempt", 1))
        assert slot.execute(RUNS[1]).lost
        assert slot.execute(RUNS[1]) == Outcome()

    def test_ends_processes_first_which_is_no_failure_of_the_run(self, cloud, slot, monkeypatch):
        cloud.order(seed0=["fail"])
        slot = slot()
        # Between the report of the end and the next look at the VM.
        monkeypatch.setattr(slot._machine, "pause", lambda: None)
        require = slot._machine.require_active
        monkeypatch.setattr(
            slot._machine,
            "require_active",
            lambda: cloud.queue("bn-vgg-0", "SUSPENDING") or require(),
        )
        outcome = slot.execute(RUNS[0])
        assert outcome == Outcome("bn-vgg-0 was taken away (SUSPENDING)", lost=True)

    def test_a_host_that_started_anew_has_lost_the_run(self, cloud, slot, said):
        cloud.order(seed0=["hang"])
        slot = slot()
        thread = in_thread(slot.execute, RUNS[0])
        said.wait_for("epoch   1/2")
        cloud.end()
        thread.join(60)
        assert thread.result == Outcome("bn-vgg-0 has started anew", lost=True)


class TestTrouble:
    """Calls that fail although the VM is there."""

    def test_passes(self, cloud, slot):
        every = ("kill -0", "setsid", "git clone", ".bundle")
        cloud.order(*[(match, "(gcloud.x) exited with return code [255].", 1) for match in every])
        slot = slot()
        assert slot.execute(RUNS[0]) == Outcome()
        for match in every:
            assert cloud.count(match) >= 2, match

    def test_of_the_bucket_passes(self, cloud, slot):
        slot = slot()
        cloud.order(("storage cp", "503", 2))
        assert slot.execute(RUNS[0]) == Outcome()

    def test_of_the_bucket_stays(self, cloud, slot, out):
        slot = slot()
        cloud.order(("storage cp", "503 Service Unavailable", -1))
        assert slot.execute(RUNS[0]) == Outcome("bn-vgg-0: 503 Service Unavailable")
        assert {path.name for path in (out / RUNS[0].folder).iterdir()} == {"log.txt"}

    def test_a_vm_that_stops_to_answer_is_lost(self, cloud, slot):
        slot = slot()
        cloud.order(("kill -0", "(gcloud.ssh) exited with return code [255].", -1))
        outcome = slot.execute(RUNS[0])
        assert outcome.lost
        assert "does not answer any more" in outcome.error
        assert "255" in outcome.error
        assert cloud.queued == {}

    def test_a_vm_that_never_answers_is_an_error(self, cloud, slot):
        cloud.order(("tpu-vm", "SSH Key is not present in the SSH agent.", -1))
        outcome = slot().execute(RUNS[0])
        assert outcome == Outcome("bn-vgg-0: SSH Key is not present in the SSH agent.")

    def test_no_network_here_is_an_error_and_the_run_does_not_go_on(self, cloud, slot, said):
        cloud.order(seed0=["hang"])
        slot = slot()
        thread = in_thread(slot.execute, RUNS[0])
        said.wait_for("epoch   1/2")
        # Neither the VM nor its state can be seen; the VM may well be there.
        cloud.order(("kill -0", "no route", -1), ("describe", "no route", -1), seed0=["hang"])
        thread.join(60)
        assert thread.result == Outcome("bn-vgg-0: no route")
        assert not is_running(cloud)
        assert list(cloud.queued) == ["bn-vgg-0"]

    def test_a_run_that_cannot_be_ended_costs_the_vm(self, cloud, slot, said):
        cloud.order(seed0=["hang"])
        slot = slot()
        thread = in_thread(slot.execute, RUNS[0])
        said.wait_for("epoch   1/2")
        cloud.order(("ssh", "no route", -1), ("describe", "no route", -1), seed0=["hang"])
        thread.join(60)
        assert thread.result == Outcome("bn-vgg-0: no route")
        assert cloud.queued == {}

    def test_a_log_that_cannot_be_had_does_not_matter(self, cloud, slot, said, out):
        cloud.order(("--worker=0", "lost connection", -1))
        assert slot().execute(RUNS[0]) == Outcome()
        assert not (out / RUNS[0].folder / "log.txt").exists()
        assert "cell/seed0: its log stays on bn-vgg-0: lost connection" in said


class TestStopping:
    def test_ends_the_run_soon(self, cloud, slot, said):
        cloud.order(seed0=["hang"])
        slot = slot()
        thread = in_thread(slot.execute, RUNS[0])
        said.wait_for("epoch   1/2")
        assert is_running(cloud)
        slot.stop()
        thread.join(60)
        assert thread.result == Outcome("stopped", lost=True)
        assert not is_running(cloud)
        slot.close()
        assert cloud.queued == {}

    @pytest.mark.parametrize("match", ["queued-resources create", "git clone"])
    def test_does_not_wait_for_a_call(self, cloud, slot, match):
        cloud.order((match, "hang", 1))
        slot = slot()
        thread = in_thread(slot.execute, RUNS[0])
        while not cloud.count(match):
            time.sleep(0.02)
        slot.stop()
        thread.join(60)
        assert thread.result == Outcome("stopped", lost=True)
        slot.close()
        assert cloud.queued == {}

    def test_does_not_wait_for_a_vm(self, cloud, slot, said):
        cloud.order(states=["WAITING_FOR_RESOURCES"])
        slot = slot()
        thread = in_thread(slot.execute, RUNS[0])
        said.wait_for("WAITING_FOR_RESOURCES")
        slot.stop()
        thread.join(60)
        assert thread.result.lost
        slot.close()
        assert cloud.queued == {}
