"""One process in a run's folder, and one that builds a cache: by real processes."""

import errno
import os
import re
import socket
from dataclasses import replace

import pytest

from bn_vgg import locking
from bn_vgg.data import cache as image_cache
from bn_vgg.data.sources import open_source
from bn_vgg.errors import UserError
from bn_vgg.run_dir import Workdir
from tests.runs import start_run, wait_for_checkpoint

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def start(tmp_path, cartoon_folder):
    """Starts the command in `tmp_path`/run; kills what is left of it in the end."""
    started = []

    def start_it(epochs, cache):
        run = start_run(tmp_path / "run", cartoon_folder, cache, "--notensorboard", epochs=epochs)
        started.append(run)
        return run

    yield start_it
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_a_second_process_is_refused_and_a_dead_ones_lock_taken_over(start, tmp_path, cache_folder):
    first = start(1000, cache_folder)
    wait_for_checkpoint(tmp_path / "run", first)
    second = start(1000, cache_folder)
    _, errors = second.communicate(timeout=120)
    assert second.returncode == 2
    assert re.fullmatch(
        rf"error: {tmp_path}/run is in use by process {first.pid} on {socket.gethostname()}, "
        r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S+\n",
        errors,
    )
    first.kill()
    first.communicate()
    third = start(1000, cache_folder)
    assert third.stdout.readline() == "tiny seed 0 on 1 cpu device(s)\n"
    assert "48 training" in third.stdout.readline()
    assert third.stdout.readline().startswith("resuming after epoch")


@pytest.mark.slow
def test_who_comes_second_to_a_cache_waits_until_it_is_built(
    start, tmp_path, cartoon_folder, monkeypatch
):
    """This process builds it, as slowly as it takes the other one to find out."""
    cache = tmp_path / "cache"
    source = open_source(str(cartoon_folder))
    others = []

    def read_slowly():
        others.append(start(1, cache))
        assert others[0].stderr.readline() == (
            f"waiting for process {os.getpid()} on {socket.gethostname()}, since "
            f"{others_since(cache)}, which builds the image cache\n"
        )
        yield from source.readers()

    slow = replace(source, readers=read_slowly)
    monkeypatch.setattr(image_cache.sources, "open_source", lambda _: slow)
    image_cache.open_or_build(str(cartoon_folder), min_side=18, folder=cache, quiet=True)
    out, errors = others[0].communicate(timeout=120)
    assert others[0].returncode == 0, errors
    assert "epoch   1/1" in out
    assert len(list(cache.glob("images-*"))) == 1


def others_since(cache):
    (about,) = cache.glob(".images-*.json")
    return re.search(r'"since": "(.*?)"', about.read_text())[1]


def test_it_is_held_by_one_and_let_go_of_when_that_fails(tmp_path):
    def hold(use):
        with locking.held(tmp_path / ".lock"):
            use()

    with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        hold(lambda: hold(print))
    assert not (tmp_path / ".lock.json").exists()
    hold(print)


def test_a_file_system_without_locks_is_called_so(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(UserError, match="No locks available"), Workdir(str(tmp_path)).locked():
        pass


def test_a_folder_in_which_no_run_came_to_be_is_gone_again(tmp_path):
    with Workdir(str(tmp_path / "a" / "b")).locked():
        assert (tmp_path / "a" / "b" / ".lock").exists()
    assert list((tmp_path / "a").iterdir()) == []


@pytest.mark.parametrize("path", ["gs://bucket/run", "other"])
def test_object_stores_and_other_hosts_lock_nothing(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Workdir(path, writes=path != "other").locked():
        pass
    assert list(tmp_path.iterdir()) == []
