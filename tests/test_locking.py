"""One process in a run's folder, and one that builds a cache: by real processes."""

import errno
import os
import re
import socket
from dataclasses import replace
from unittest.mock import Mock

import pytest

from bn_vgg.data import cache as image_cache
from bn_vgg.data.sources import open_source
from bn_vgg.errors import UserError
from bn_vgg.run_dir import Workdir
from tests.conftest import start_python
from tests.runs import KilledError, epochs_of, run, start_run, wait_for_checkpoint

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_a_second_process_is_refused_and_a_dead_ones_lock_taken_over(
    cartoon_folder, tiny_config, cache_folder, tmp_path
):
    path, said = tmp_path / "run", []

    def say(line):
        said.append(line)
        if line.startswith("resuming after epoch"):
            raise KilledError

    with start_run(path, cartoon_folder, cache_folder, "--notensorboard", epochs=1000) as first:
        try:
            wait_for_checkpoint(path, first)
            with pytest.raises(UserError) as raised:
                run(epochs_of(tiny_config, 1000), path, cache_folder, say)
        finally:
            first.kill()
    assert re.fullmatch(
        rf"{path} is in use by process {first.pid} on {socket.gethostname()}, "
        r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S+",
        str(raised.value),
    )
    assert said == []
    with pytest.raises(KilledError):
        run(epochs_of(tiny_config, 1000), path, cache_folder, say)


OPENS = """
import sys
from pathlib import Path
from bn_vgg.data.cache import open_or_build
source, folder = sys.argv[1:]
print(open_or_build(source, min_side=18, folder=Path(folder), quiet=True).fingerprint)
"""


def test_who_comes_second_to_a_cache_waits_until_it_is_built(tmp_path, cartoon_folder, monkeypatch):
    """This process builds it, as slowly as it takes the other one to find out."""
    cache, source = tmp_path / "cache", open_source(str(cartoon_folder))
    others = []

    def read_slowly():
        others.append(start_python("-c", OPENS, cartoon_folder, cache))
        assert others[0].stderr.readline() == (
            f"waiting for process {os.getpid()} on {socket.gethostname()}, since "
            f"{others_since(cache)}, which builds the image cache\n"
        )
        yield from source.readers()

    slow = replace(source, readers=read_slowly)
    monkeypatch.setattr(image_cache.sources, "open_source", lambda _: slow)
    built = image_cache.open_or_build(str(cartoon_folder), min_side=18, folder=cache, quiet=True)
    out, errors = others[0].communicate(timeout=120)
    assert (out, errors) == (f"{built.fingerprint}\n", "")
    assert len(list(cache.glob("images-*"))) == 1


def others_since(cache):
    (about,) = cache.glob(".images-*.json")
    return re.search(r'"since": "(.*?)"', about.read_text())[1]


def test_a_file_system_without_locks_is_called_so(tmp_path, monkeypatch):
    refused = OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
    monkeypatch.setattr("fcntl.flock", Mock(side_effect=refused))
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
