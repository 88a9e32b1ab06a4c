"""TPU VMs: settings, gcloud's calls, and `python -m experiments.tpu_vm`."""

import re
import shlex
import subprocess
import sys
import time

import pytest
import yaml
from absl import flags
from absl.testing import flagsaver

from bn_vgg.errors import UserError
from configs import default
from experiments import tpu_vm
from experiments.sweeping import gcloud as calls
from experiments.sweeping import tpu_commands
from experiments.sweeping.backend import Outcome
from experiments.sweeping.gcloud import Gcloud, GcloudError, NotFoundError
from experiments.sweeping.tpu_commands import RUNTIMES, Settings
from tests.conftest import ROOT
from tests.tpu_vm.conftest import RUNS

FLAGS = flags.FLAGS


class TestSettings:
    @pytest.mark.parametrize("kind", RUNTIMES)
    def test_know_the_image_of_a_kind(self, kind):
        settings = Settings(zone="Z", bucket="gs://B", accelerator_type=f"{kind}-8")
        assert settings.runtime == RUNTIMES[kind]

    @pytest.mark.parametrize("of", ["v9-8", "v5e-8", "v5litepod", "v5litepod-"])
    def test_refuse_an_unknown_kind_without_an_image(self, of):
        with pytest.raises(UserError, match=r"v2, v3, v4, v5litepod, v5p, v6e.*--tpu_runtime"):
            Settings(zone="Z", bucket="gs://B", accelerator_type=of)

    def test_take_an_unknown_kind_with_an_image(self):
        settings = Settings("Z", "gs://B", accelerator_type="v9-8", runtime_version="v3")
        assert settings.runtime == "v3"

    @pytest.mark.parametrize(
        ("change", "flag"),
        [
            ({"bucket": "/home/me"}, "tpu_bucket"),
            ({"bucket": "gs://"}, "tpu_bucket"),
            ({"prefix": "Mine"}, "tpu_prefix"),
            ({"prefix": "a" * 50}, "tpu_prefix"),
        ],
    )
    def test_refuse_what_cannot_be(self, change, flag):
        with pytest.raises(UserError, match=f"^--{flag}="):
            Settings(**({"zone": "Z", "bucket": "gs://B"} | change))


class TestDryRun:
    def test_calls_nothing(self, cloud, backend):
        backend(vms=2).commands(RUNS)
        assert cloud.calls == []

    def test_needs_no_gcloud(self, backend, monkeypatch):
        monkeypatch.setenv("PATH", "")
        assert backend().commands(RUNS)

    def test_of_nothing(self, backend):
        assert backend().commands([]) == []

    def test_lists_what_is_called(self, cloud, backend, said, out):
        """Word by word, but for names that are made up on the way."""
        backend = backend(setup="echo 'done'")
        commands = [shlex.split(line) for line in backend.commands(RUNS[:1])]
        assert all("\n" not in word for line in commands for word in line)
        assert commands[0] == ["git", "bundle", "create", "bn_vgg.bundle", "HEAD"]
        (slot,) = backend.slots(RUNS[:1], said)
        before = len(cloud.calls)
        assert slot.execute(RUNS[0]) == Outcome()
        slot.close()
        called = {tuple(map(shape, call)) for call in cloud.calls[before:]}
        listed = {tuple(map(shape, line[1:])) for line in commands[1:]}
        assert {line[:5] for line in listed} == {line[:5] for line in called}
        scripts = {line for line in listed if "ssh" in line}
        assert len(scripts) == 3
        assert scripts <= called


def shape(word):
    """Without what is made up: names of attempts and commits, places of this machine."""
    word = re.sub(r"\b[0-9a-f]{12}\b|ATTEMPT\d+", "ATTEMPT", word)
    word = re.sub(r"\b[0-9a-f]{16}\b", "INSTALLED", word)
    return "HERE" if word.startswith("/") or word == "bn_vgg.bundle" else word


class TestGcloud:
    def test_takes_the_line_that_says_most(self, cloud):
        cloud.order(("storage", "what went wrong", 1))
        with pytest.raises(GcloudError, match=r"^what went wrong$"):
            Gcloud().run(["storage", "ls", "gs://BUCKET"], seconds=10)

    def test_knows_what_is_not_there(self, cloud):
        with pytest.raises(NotFoundError):
            Gcloud().run(["storage", "ls", "gs://OTHER"], seconds=10)

    def test_has_a_limit_of_time(self, cloud, monkeypatch):
        monkeypatch.setattr(calls, "_SECONDS_TO_END", 1)
        cloud.order(("storage", "hang", 1))
        before = time.monotonic()
        with pytest.raises(GcloudError, match=r"ls gs://BUCKET took more than 0\.5 s"):
            Gcloud().run(["storage", "ls", "gs://BUCKET"], seconds=0.5)
        assert time.monotonic() - before < 10


class TestCommand:
    """`python -m experiments.tpu_vm`."""

    @pytest.fixture
    def run(self, cloud, capsys):
        def run(action, **flags):
            if not FLAGS.is_parsed():
                FLAGS.mark_as_parsed()
            with flagsaver.flagsaver(**{"tpu_zone": "Z"} | flags):
                tpu_vm.main(action)
            return capsys.readouterr().out

        return run

    def test_lists_and_deletes_only_ours(self, cloud, run):
        for name in ("bn-vgg-0", "bn-vgg-12", "bn-vgg-mine", "other-0"):
            cloud.queue(name, "ACTIVE", "--accelerator-type=v4-8")
        shown = run("list", tpu_project="P")
        assert shown == "bn-vgg-0 ACTIVE v4-8\nbn-vgg-12 ACTIVE v4-8\n"
        assert all({"--zone=Z", "--project=P"} <= set(call) for call in cloud.calls)
        assert "bn-vgg-12 is deleted" in run("delete")
        assert sorted(cloud.queued) == ["bn-vgg-mine", "other-0"]
        assert "other-0 is deleted" in run("delete", tpu_prefix="other")
        assert run("list") == "no bn-vgg-… in Z\n"

    def test_goes_on_after_one_that_cannot_be_deleted(self, cloud, run):
        cloud.queue("bn-vgg-0", "ACTIVE")
        cloud.queue("bn-vgg-1", "ACTIVE")
        cloud.order(("delete bn-vgg-0", "busy", -1))
        with pytest.raises(UserError, match=r"^bn-vgg-0 could not be deleted: busy; it may go on"):
            run("delete")
        assert list(cloud.queued) == ["bn-vgg-0"]

    @pytest.mark.parametrize(
        ("action", "flags", "message"),
        [
            ("list", {"tpu_zone": None}, "--tpu_zone is missing"),
            ("list", {"tpu_prefix": "A.*"}, "--tpu_prefix=A"),
            ("remove", {}, "no 'remove'; there are: list, delete"),
        ],
    )
    def test_refuses(self, run, action, flags, message):
        with pytest.raises(UserError, match=f"^{message}"):
            run(action, **flags)

    def test_is_one(self, cloud):
        cloud.queue("bn-vgg-0", "ACTIVE", "--accelerator-type=v4-8")
        done = subprocess.run(
            [sys.executable, "-m", "experiments.tpu_vm", "list", "--tpu_zone=Z"],
            cwd=ROOT, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, "bn-vgg-0 ACTIVE v4-8\n"), done.stderr


class TestFlags:
    @pytest.fixture
    def settings(self):
        def settings(**flags):
            if not FLAGS.is_parsed():
                FLAGS.mark_as_parsed()
            with flagsaver.flagsaver(**{"tpu_zone": "Z", "tpu_bucket": "gs://B"} | flags):
                return tpu_vm.settings_from_flags()

        return settings

    def test_not_given_are_the_settings_own(self, settings):
        assert settings() == Settings(zone="Z", bucket="gs://B")

    def test_are_all_there(self, settings):
        wanted = Settings("Y", "gs://C", "v9-1", "image", False, 3, "mine", "P", "true")
        given = {
            "tpu_zone": "Y", "tpu_bucket": "gs://C", "tpu_type": "v9-1", "tpu_runtime": "image",
            "tpu_spot": False, "tpu_vms": 3, "tpu_prefix": "mine", "tpu_project": "P",
            "tpu_setup": "true",
        }  # fmt: skip
        assert settings(**given) == wanted

    @pytest.mark.parametrize("flag", ["tpu_zone", "tpu_bucket"])
    def test_missing_ones(self, settings, flag):
        with pytest.raises(UserError, match=f"^--{flag} is missing"):
            settings(**{flag: None})


class TestRayClusterFile:
    @pytest.fixture
    def cluster(self):
        return yaml.safe_load((ROOT / "experiments" / "ray_tpu.yaml").read_text())

    def test_offers_tpus(self, cluster):
        nodes = cluster["available_node_types"]
        head, worker = nodes[cluster["head_node_type"]], nodes["tpu_worker"]
        assert cluster["provider"]["type"] == "gcp"
        assert head["resources"] == {"CPU": 0}
        assert "acceleratorType" not in head["node_config"]
        # What every configuration asks for, and what the file says to set besides.
        assert worker["resources"]["CPU"] >= default.get_config().resources.CPU
        assert worker["resources"]["TPU"] == 1
        # A sweep refuses runs that no node has room for at its start.
        assert 1 <= worker["min_workers"] <= worker["max_workers"] <= cluster["max_workers"]

    def test_workers_are_those_that_the_backend_makes(self, cluster):
        config = cluster["available_node_types"]["tpu_worker"]["node_config"]
        settings = Settings(zone="Z", bucket="gs://B")
        assert config["acceleratorType"] == settings.accelerator_type
        assert config["runtimeVersion"] == settings.runtime
        assert config["schedulingConfig"]["preemptible"] is settings.spot

    def test_installs_this_code_on_all_nodes(self, cluster):
        commands = " ".join(cluster["setup_commands"])
        assert "git clone REPOSITORY" in commands
        assert ".[tpu,ray]" in commands
        for command in cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]:
            assert "ray " in command


def test_lines_of_a_list_are_read():
    output = "bn-vgg-0,ACTIVE,v5litepod-1,abc\nbn-vgg-1,FAILED,,\nbn-vgg-x,ACTIVE,v4-8,\n"
    found = tpu_commands.listed(output, "bn-vgg")
    assert [tuple(queued) for queued in found] == [
        ("bn-vgg-0", "ACTIVE", "v5litepod-1", "abc"),
        ("bn-vgg-1", "FAILED", "", ""),
    ]
