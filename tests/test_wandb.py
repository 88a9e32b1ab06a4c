"""Weights & Biases, by a stand-in: what a run gives it, and when."""

import sys
import types
from unittest.mock import Mock

import pytest

from bn_vgg import launch
from bn_vgg.errors import UserError


@pytest.fixture
def calls(monkeypatch):
    """What is called, in order; training is left out."""
    found = []

    def init(**settings):
        found.append(settings)
        return types.SimpleNamespace(finish=lambda exit_code: found.append(exit_code))

    stand_in = types.SimpleNamespace(init=init, Error=RuntimeError)
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    monkeypatch.setattr(launch, "TensorBoard", lambda *_: found.append("writer"))
    monkeypatch.setattr(launch.loop.Run, "train_and_evaluate", lambda _: found.append("train"))
    return found


@pytest.fixture
def train(tmp_path, tiny_config, cache_folder):
    path = str(tmp_path / "run")
    return lambda: launch.train(tiny_config, path, cache_folder=cache_folder, wandb=True)


def test_a_run_is_one_run_however_often_it_is_started(calls, train, tmp_path, monkeypatch):
    train()
    train()
    first, *rest = calls[:4]
    assert rest == ["writer", "train", 0]
    assert calls[4:] == calls[:4]
    monkeypatch.setattr(launch.loop.Run, "train_and_evaluate", Mock(side_effect=RuntimeError))
    with pytest.raises(RuntimeError):
        train()
    assert calls[-1] == 1
    assert (first["name"], first["group"]) == (str(tmp_path / "run"), "tiny")
    assert first["config"]["model"]["norm"] == "mean_only"
    assert first["resume"] == "allow"
    assert len(first["id"]) == 32
    assert first["sync_tensorboard"]


def test_what_it_lacks_is_told_in_a_line(calls, train, monkeypatch):
    no_key = RuntimeError("api_key not configured")
    monkeypatch.setattr(sys.modules["wandb"], "init", Mock(side_effect=no_key))
    with pytest.raises(UserError, match="--wandb: api_key not configured; or set WANDB_MODE=off"):
        train()
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r": pip install -e '\.\[wandb\]'"):
        train()
    assert calls == []
