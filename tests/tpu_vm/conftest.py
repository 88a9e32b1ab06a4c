"""TPU VMs on a fake gcloud whose workers execute the scripts for real."""

import json
import os
import subprocess
import threading
import time

import pytest

from experiments.sweeping.plan import PlannedRun
from experiments.sweeping.tpu_commands import Settings
from experiments.tpu_vm import TpuVms
from tests.fake_gcloud import RUN, FakeCloud

# Of gs://BUCKET/sweep: echo -n gs://BUCKET/sweep | sha256sum
SWEEP = "9c1ca1a49c74"
RUNS = [
    PlannedRun("cell", seed, "configs/cell.py:small", {"model.norm": "a b:C"}) for seed in (0, 1)
]


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    cloud = FakeCloud(tmp_path / "cloud")
    monkeypatch.setenv("FAKE_GCLOUD", str(cloud.folder))
    monkeypatch.setenv("PATH", f"{cloud.bin}:{os.environ['PATH']}")
    yield cloud
    cloud.end()


def git(checkout, *arguments):
    identity = ["-c", "user.name=T", "-c", "user.email=t@t"]
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=checkout, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    checkout = tmp_path / "checkout"
    (checkout / "bn_vgg").mkdir(parents=True)
    (checkout / "bn_vgg" / "__init__.py").touch()
    (checkout / "bn_vgg" / "main.py").write_text(RUN)
    git(checkout, "init", "-q")
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "all")
    return checkout


@pytest.fixture
def out(checkout):
    """In the checkout and not ignored, as a sweep's folder may be."""
    return checkout / "sweeps" / "out"


class Said(list):
    """What was said to a person."""

    def __call__(self, line):
        self.append(line)

    def wait_for(self, text):
        end = time.monotonic() + 60
        while not any(text in line for line in self):
            assert time.monotonic() < end, (text, list(self))
            time.sleep(0.02)


@pytest.fixture
def said():
    return Said()


@pytest.fixture
def backend(cloud, checkout, out):
    """Makes a backend; arguments are of `Settings`."""

    def make(**changes):
        settings = Settings(
            **({"zone": "Z", "bucket": "gs://BUCKET/sweep/", "poll_seconds": 0.25} | changes)
        )
        return TpuVms(settings, out, ["--notensorboard"], checkout)

    return make


@pytest.fixture
def slot(backend, said):
    """Makes the slot of a backend with a single VM."""

    def make(**changes):
        (slot,) = backend(**changes).slots(RUNS, said)
        return slot

    return make


def in_thread(function, *arguments):
    """Starts it; `join` returns what it returned."""

    class Thread(threading.Thread):
        def run(self):
            self.result = function(*arguments)

    thread = Thread()
    thread.start()
    return thread


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def is_running(cloud):
    return subprocess.run(["pgrep", "-f", f"^{cloud.folder}/vms/.*bn_vgg.main"]).returncode == 0
