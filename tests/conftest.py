"""Shared by all tests: strict JAX settings, a few cartoons on disk, a tiny configuration."""

import json
import os
import pathlib
import signal
import subprocess
import sys

# Before JAX is imported: these tests are about the CPU's numbers, wherever they run.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from tests.xla_flags import QUICK

os.environ["XLA_FLAGS"] = f"{QUICK} {os.environ.get('XLA_FLAGS', '')}"

import jax
import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from bn_vgg import cli
from bn_vgg.data.cache import open_or_build
from bn_vgg.data.cartoons import cartoons
from bn_vgg.data.pipeline import Data
from tests.tiny_config import get_config

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

# In a shell's background Ctrl-C is ignored, and under `nohup` a lost terminal, which this
# process's children would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# A product of (N, C) with (C,) where (N, 1) was meant fails instead of guessing.
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(cache_folder):
    """The tests build the same tiny networks many times: each is compiled once."""
    cli.enable_compilation_cache(cache_folder)


@pytest.fixture(scope="module")
def quick_compilation():
    """Compiles in less time to slower programs, here and in processes that are started.

    Tests of last digits, on several devices or by another path through the network, go without.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        yield
    jax.config.update("jax_disable_most_optimizations", False)


def start_python(*arguments, **environment):
    """Starts Python with these arguments from the checkout."""
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)], cwd=ROOT, env=os.environ | environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def python(*arguments, status=0, timeout=300, **environment):
    """Runs Python with these arguments from the checkout, and looks at its exit status."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, env=os.environ | environment,
        capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    return done


@pytest.fixture(scope="session")
def run_command(cache_folder):
    """Runs `python -m bn_vgg.NAME …` from the checkout, as a person would."""
    cache = {"BN_VGG_CACHE": str(cache_folder)}

    def run(name, *arguments, **more):
        return python("-m", f"bn_vgg.{name}", *arguments, **cache | more)

    return run


_FORKS = """
import json, os, runpy, signal, sys, time
import bn_vgg.api  # nearly all that the commands import
for line in sys.stdin:
    name, folder, limit, *arguments = json.loads(line)
    outputs = [f"{folder}/{stream}" for stream in ("out", "err")]
    child = os.fork()
    if not child:
        for number, path in enumerate(outputs, start=1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.argv[1:] = arguments
        try:
            runpy.run_module(f"bn_vgg.{name}", run_name="__main__", alter_sys=True)
        except SystemExit as ends:
            sys.stdout.flush()
            os._exit(ends.code or 0)  # freeing all that is imported would take a second
    ends = time.monotonic() + limit
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > ends:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    status = os.waitstatus_to_exitcode(ended[1])
    print(json.dumps([status, *(open(path).read() for path in outputs)]), flush=True)
"""


@pytest.fixture(scope="module")
def fork_command(cache_folder, tmp_path_factory):
    """Does what `run_command` does in forks of one process, which has imported the code.

    A fork is killed after `limit` seconds; with `status=None` it may end as it will.
    """
    folder = str(tmp_path_factory.mktemp("forks"))
    process = subprocess.Popen(
        [sys.executable, "-c", _FORKS], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env=os.environ | {"BN_VGG_CACHE": str(cache_folder)}, text=True,
    )  # fmt: skip

    def run(name, *arguments, status=0, limit=300):
        request = json.dumps([name, folder, limit, *map(str, arguments)])
        print(request, file=process.stdin, flush=True)
        done = subprocess.CompletedProcess(arguments, *json.loads(process.stdout.readline()))
        assert status is None or done.returncode == status, done.stdout + done.stderr
        return done

    with process:  # which closes its standard input: it ends
        yield run


@pytest.fixture(scope="session")
def make_once(cache_folder):
    """Returns `make_once(name, make)`: a folder that `make` fills in one of the workers."""

    def folder_of(name, make):
        folder, done = cache_folder / name, cache_folder / f"{name}.done"
        with FileLock(cache_folder / f"{name}.lock"):
            if not done.exists():
                make(folder)
                done.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def trained_run(run_command, cartoon_folder, make_once):
    """A run of two epochs by the command, with TensorBoard's files, for any number of tests."""

    def train(workdir):
        run_command(
            "main", "--config=tests/tiny_config.py", f"--config.data.source={cartoon_folder}",
            f"--workdir={workdir}", "--config.optimizer.learning_rate=1e-3",
            JAX_DISABLE_MOST_OPTIMIZATIONS="1",
        )  # fmt: skip

    return make_once("trained", train)


@pytest.fixture(scope="session")
def cartoon_folder(make_once):
    """72 drawings in Kaggle's layout, 36 of each class."""

    def draw(folder):
        folder.mkdir(exist_ok=True)
        drawings = cartoons(72)
        for i, (record, read) in enumerate(zip(drawings.records, drawings.readers(), strict=True)):
            read().save(folder / f"{drawings.class_names[record.label]}.{i}.png")

    return make_once("cartoons", draw)


@pytest.fixture(scope="session")
def noise_folder(tmp_path_factory):
    """72 images of noise as large as they are used, in Kaggle's layout."""
    folder = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    for i in range(72):
        shape = (18, 20, 3) if i % 4 < 2 else (22, 18, 3)
        pixels = rng.integers(0, 256, shape, np.uint8)
        Image.fromarray(pixels).save(folder / f"{('cat', 'dog')[i % 2]}.{i}.png")
    return folder


@pytest.fixture
def tiny_config(cartoon_folder):
    """Two epochs of six steps on `cartoon_folder`."""
    config = get_config()
    config.data.source = str(cartoon_folder)
    return config


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory):
    """Where decoded images and compiled programs are kept, by all workers."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "shared_cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def open_cache(cache_folder):
    """Opens the decoded images of a configuration."""

    def open_it(config):
        return open_or_build(
            config.data.source, min_side=config.data.min_side, folder=cache_folder, quiet=True
        )

    return open_it


@pytest.fixture
def before_step(monkeypatch):
    """Returns `before_step(at, action)`: runs in this process call `action` after `at` steps.

    That is before the chunk that takes the next step.
    """
    train, actions = Data.train, {}

    def acting(self, epoch, *, skip=0):
        step = epoch * self.steps_per_epoch + skip
        for chunk in train(self, epoch, skip=skip):
            actions.get(step, lambda: None)()
            yield chunk
            step += chunk.num_steps

    monkeypatch.setattr(Data, "train", acting)
    return actions.__setitem__
