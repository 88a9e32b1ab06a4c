"""TPU VMs as a sweep's backend: how they are made, taken over and deleted."""

import os
import time

import pytest

from bn_vgg.errors import UserError
from experiments.sweeping.backend import Outcome
from experiments.sweeping.tpu_commands import Settings
from experiments.tpu_vm import TpuVms
from tests.tpu_vm.conftest import RUNS, SWEEP, git, in_thread, is_running


class TestCreating:
    def test_spot_and_a_project(self, cloud, slot):
        slot(project="P").execute(RUNS[0])
        (create,) = [call for call in cloud.calls if "create" in call]
        assert create == [
            "compute", "tpus", "queued-resources", "create", "bn-vgg-0", "--node-id=bn-vgg-0",
            "--accelerator-type=v5litepod-1", "--runtime-version=v2-alpha-tpuv5-lite", "--spot",
            f"--labels=bn_vgg_sweep={SWEEP}", "--zone=Z", "--project=P", "--quiet",
        ]  # fmt: skip
        for call in cloud.calls:
            assert call[0] == "storage" or {"--zone=Z", "--project=P"} <= set(call)

    def test_on_demand(self, cloud, slot):
        slot(spot=False).execute(RUNS[0])
        (create,) = [call for call in cloud.calls if "create" in call]
        assert "--spot" not in create
        assert not any("--project" in argument for call in cloud.calls for argument in call)

    def test_refused(self, cloud, slot):
        cloud.order(("queued-resources create", "(gcloud.x) RESOURCE_EXHAUSTED: no quota", 1))
        slot = slot()
        outcome = slot.execute(RUNS[0])
        assert outcome == Outcome("bn-vgg-0: (gcloud.x) RESOURCE_EXHAUSTED: no quota")
        assert slot.execute(RUNS[0]) == Outcome()

    @pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
    def test_that_ends_badly_names_the_state(self, cloud, slot, said, state):
        cloud.order(states=["WAITING_FOR_RESOURCES", "PROVISIONING", state])
        outcome = slot().execute(RUNS[0])
        assert f"ended up {state}" in outcome.error
        assert "v5litepod-1 in Z" in outcome.error
        assert not outcome.lost
        assert cloud.queued == {}
        assert "bn-vgg-0: PROVISIONING" in said

    def test_installation_that_fails(self, cloud, slot):
        (cloud.folder / "no_packages").touch()
        slot = slot()
        outcome = slot.execute(RUNS[0])
        assert outcome.error == "bn-vgg-0: setting up t1v-bn-vgg-0-w-0 failed: no network"
        (cloud.folder / "no_packages").unlink()
        assert slot.execute(RUNS[0]) == Outcome()
        assert cloud.count("queued-resources", "create") == 1

    def test_the_users_own_setup_comes_last(self, cloud, slot):
        slot = slot(setup="cd .. && echo 'my data' >data && exit 0")
        assert slot.execute(RUNS[0]) == Outcome()
        assert (cloud.home("bn-vgg-0") / "data").read_text() == "my data\n"

    def test_the_users_own_setup_fails(self, cloud, slot):
        outcome = slot(setup="echo no such bucket >&2; false").execute(RUNS[0])
        assert outcome.error == "bn-vgg-0: setting up t1v-bn-vgg-0-w-0 failed: no such bucket"


class TestAdopting:
    def test_a_vm_that_is_there_and_set_up(self, cloud, slot, said):
        slot().execute(RUNS[0])  # and the sweep is killed
        assert slot().execute(RUNS[1]) == Outcome()
        assert cloud.count("queued-resources", "create") == 1
        assert cloud.count("git clone") == 1
        assert "bn-vgg-0: is there already (ACTIVE)" in said

    def test_ends_what_runs_there(self, cloud, slot, said, out):
        cloud.order(seed0=["hang"])
        killed = slot()
        thread = in_thread(killed.execute, RUNS[0])
        said.wait_for("epoch   1/2")
        cloud.order(seed0=["hang"])
        assert slot().execute(RUNS[1]) == Outcome()
        assert not is_running(cloud)
        killed.stop()
        thread.join(60)

    def test_installs_another_commit(self, cloud, slot, checkout):
        slot().execute(RUNS[0])
        (checkout / "more").touch()
        git(checkout, "add", ".")
        git(checkout, "commit", "-qm", "more")
        assert slot().execute(RUNS[1]) == Outcome()
        assert cloud.count("git clone") == 2
        assert (cloud.home("bn-vgg-0") / "bn_vgg" / "more").exists()

    def test_one_that_is_still_waited_for(self, cloud, slot):
        cloud.queue("bn-vgg-0", "WAITING_FOR_RESOURCES")
        slot = slot()
        thread = in_thread(slot.execute, RUNS[0])
        time.sleep(0.3)
        cloud.queue("bn-vgg-0", "ACTIVE")
        thread.join(60)
        assert thread.result == Outcome()
        assert cloud.count("queued-resources", "create") == 0

    @pytest.mark.parametrize("state", ["SUSPENDED", "FAILED"])
    def test_one_that_has_ended_is_replaced(self, cloud, slot, state):
        cloud.queue("bn-vgg-0", state)
        assert slot().execute(RUNS[0]) == Outcome()
        verbs = [call[3] for call in cloud.calls if call[2] == "queued-resources"]
        assert verbs[:4] == ["list", "describe", "delete", "create"]

    @pytest.mark.parametrize(
        ("made_with", "why"),
        [
            ("--labels=bn_vgg_sweep=0123456789ab", "serves another sweep"),
            ("--accelerator-type=v5litepod-8", "is a v5litepod-8"),
        ],
    )
    def test_not_what_is_another_sweeps(self, cloud, slot, made_with, why):
        cloud.queue("bn-vgg-0", "ACTIVE", made_with)
        with pytest.raises(UserError, match=f"{why}: give another --tpu_prefix, or delete it: gc"):
            slot()

    def test_one_that_cannot_be_reached_is_deleted(self, cloud, slot):
        """A run may still be going on there, and will be started elsewhere."""
        cloud.queue("bn-vgg-0", "ACTIVE")
        cloud.order(("ssh", "no route", -1))
        assert slot().execute(RUNS[0]) == Outcome("bn-vgg-0: no route")
        assert cloud.queued == {}

    def test_says_what_was_left_over_besides(self, cloud, slot, said):
        cloud.queue("bn-vgg-7", "ACTIVE")
        cloud.queue("bn-vgg-other", "ACTIVE")
        slot()
        assert [line for line in said if "leaves alone" in line] == [
            "bn-vgg-7 (ACTIVE) is there too, which this sweep leaves alone"
        ]


class TestClosing:
    def test_without_a_vm_calls_nothing(self, cloud, slot):
        slot = slot()
        before = len(cloud.calls)
        slot.close()
        assert len(cloud.calls) == before

    def test_tries_again(self, cloud, slot, said):
        slot = slot()
        slot.execute(RUNS[0])
        cloud.order(("delete", "try again later", 2))
        slot.close()
        assert cloud.queued == {}
        assert not any("costing" in line for line in said)

    def test_that_fails_says_what_to_run(self, cloud, slot, said):
        slot = slot(project="P")
        slot.execute(RUNS[0])
        cloud.order(("delete", "PERMISSION_DENIED", -1))
        slot.close()
        assert said[-1] == (
            "bn-vgg-0: deleting it failed, and it may go on costing money: PERMISSION_DENIED; run: "
            "gcloud compute tpus queued-resources delete bn-vgg-0 --force --zone=Z --project=P "
            "--quiet"
        )


class TestSlots:
    @pytest.mark.parametrize(("vms", "count"), [(1, 1), (2, 2), (9, 2)])
    def test_are_no_more_than_runs(self, backend, said, vms, count):
        slots = backend(vms=vms).slots(RUNS, said)
        assert [slot.name for slot in slots] == [f"bn-vgg-{i}" for i in range(count)]

    def test_work_side_by_side(self, cloud, backend, said, out):
        slots = backend(vms=2).slots(RUNS, said)
        threads = [in_thread(slot.execute, run) for slot, run in zip(slots, RUNS, strict=True)]
        for thread in threads:
            thread.join(60)
        assert [thread.result for thread in threads] == [Outcome(), Outcome()]
        assert sorted(cloud.queued) == ["bn-vgg-0", "bn-vgg-1"]
        assert all((out / run.folder / "result.json").exists() for run in RUNS)

    def test_need_gcloud(self, backend, said, monkeypatch, tmp_path):
        os.symlink("/usr/bin/git", tmp_path / "git")
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(UserError, match=r"install it \(https://cloud.google.com/sdk"):
            backend().slots(RUNS, said)

    def test_need_git(self, backend, said, monkeypatch, cloud):
        monkeypatch.setenv("PATH", str(cloud.bin))
        with pytest.raises(UserError, match="git is not on the PATH"):
            backend().slots(RUNS, said)

    def test_need_a_gcloud_that_may_do_its_work(self, cloud, backend, said):
        cloud.order(("list", "(gcloud.x) You do not have an active account.", -1))
        with pytest.raises(UserError, match=r"cannot list TPU VMs.*active account"):
            backend().slots(RUNS, said)

    def test_need_the_bucket(self, backend, said):
        with pytest.raises(UserError, match="gs://ANOTHER cannot be read"):
            backend(bucket="gs://ANOTHER/sweep").slots(RUNS, said)

    @pytest.mark.parametrize("name", ["bn_vgg/main.py", "my_norms.py"])
    def test_need_a_commit(self, cloud, backend, checkout, said, name):
        with (checkout / name).open("a") as file:
            file.write("# changed\n")
        with pytest.raises(UserError, match=f"{name}: not committed"):
            backend().slots(RUNS, said)
        assert cloud.calls == []

    def test_do_not_mind_the_sweeps_own_folder(self, backend, out, said):
        out.mkdir(parents=True)
        (out / "sweep.json").touch()
        assert len(backend().slots(RUNS, said)) == 1

    def test_need_a_checkout(self, cloud, out, tmp_path, said):
        settings = Settings(zone="Z", bucket="gs://BUCKET")
        with pytest.raises(UserError, match="get the code by git"):
            TpuVms(settings, out, [], tmp_path).slots(RUNS, said)
