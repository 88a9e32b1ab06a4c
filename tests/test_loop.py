"""The loop: what a run does and writes, and that it goes on bit for bit."""

import json
import re
import shutil
import threading
from functools import partial
from unittest.mock import Mock

import jax
import numpy as np
import pytest

from bn_vgg import api
from bn_vgg.checkpoint import list_steps
from bn_vgg.data import pipeline
from bn_vgg.data.crops import cut_crops, five_crops
from bn_vgg.data.splits import split
from bn_vgg.errors import UserError
from bn_vgg.optimizer import find_params_ema
from bn_vgg.run_dir import Workdir, flatten
from tests.runs import KilledError, assert_equal_runs, epochs_of, lines, run, same, state
from tests.tiny_config import get_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Of an epoch of the tiny configuration.
STEPS = 6


@pytest.fixture(scope="module")
def done(cartoon_folder, cache_folder, tmp_path_factory):
    """A run of two epochs, PreciseBN over nine images: its folder, configuration and result."""
    config, folder = get_config(), tmp_path_factory.mktemp("done")
    config.data.source, config.eval.precise_examples = str(cartoon_folder), 9
    return folder, config, run(config, folder, cache_folder)


def test_checkpoints_within_epochs(tiny_config, cache_folder, tmp_path, before_step, monkeypatch):
    """After every third step, rounded up to a chunk's end; a kill costs the steps since."""
    monkeypatch.setattr(pipeline, "_MAX_STEPS", 2)
    run(tiny_config, tmp_path / "whole", cache_folder)
    every = tiny_config.copy_and_resolve_references()
    every.checkpoint.every_steps = 3
    before_step(STEPS + 4, Mock(side_effect=KilledError))
    with pytest.raises(KilledError):
        run(every, tmp_path / "killed", cache_folder)
    # The latest two, and, of a single epoch that has an error, another in the second best's place.
    assert list_steps(Workdir(str(tmp_path / "killed")).checkpoints) == [STEPS + 4, STEPS, 4]
    before_step(STEPS + 4, lambda: None)
    with monkeypatch.context() as patch:
        patch.setattr("bn_vgg.metrics.TrainMetrics.empty", lambda: None)
        with pytest.raises(UserError, match="metrics have changed"):
            run(tiny_config, tmp_path / "killed", cache_folder)
    run(tiny_config, tmp_path / "killed", cache_folder)
    assert_equal_runs(tmp_path / "killed", tmp_path / "whole")


def test_an_epoch_is_recorded_while_the_next_one_trains(
    done, cache_folder, tmp_path, before_step, monkeypatch
):
    """What fails there ends the run, and the same command goes on as if nothing had been."""
    folder, config, _ = done
    trains, write = threading.Event(), Workdir.write_metrics

    def full_disk(*_):
        assert trains.wait(60)
        raise UserError("no space left on device")

    before_step(STEPS, trains.set)
    monkeypatch.setattr(Workdir, "write_metrics", full_disk)
    with pytest.raises(UserError, match="no space left on device"):
        run(config, tmp_path / "failed", cache_folder)
    assert not (tmp_path / "failed/metrics.jsonl").exists()
    monkeypatch.setattr(Workdir, "write_metrics", write)
    run(config, tmp_path / "failed", cache_folder)
    assert_equal_runs(tmp_path / "failed", folder)


def test_a_finished_run_says_so_and_more_epochs_go_on(done, cache_folder, tmp_path):
    folder, config, first = done
    said = []
    assert flatten(run(config, folder, cache_folder, said.append)) == flatten(first)
    assert said == [f"this run is finished: see {folder}/result.json"]
    run(epochs_of(config, 1), tmp_path / "run", cache_folder)
    run(config, tmp_path / "run", cache_folder)
    assert_equal_runs(tmp_path / "run", folder)
    with pytest.raises(UserError, match="its num_epochs is 2, not 1"):
        run(epochs_of(config, 1), tmp_path / "run", cache_folder)


def test_the_seed_decides(done, cache_folder, tmp_path):
    folder, config, _ = done
    config = config.copy_and_resolve_references()
    config.seed = 1
    run(config, tmp_path, cache_folder)
    first, second = (state(path).params["output"]["kernel"] for path in (folder, tmp_path))
    assert (first != second).all()


def test_precise_statistics_change_nothing_and_can_be_turned_off(done, cache_folder, tmp_path):
    folder, config, with_precise = done
    config = config.copy_and_resolve_references()
    config.eval.precise_examples = 0
    without = run(config, tmp_path, cache_folder)
    same(state(folder), state(tmp_path))
    for on, off in zip(lines(folder), lines(tmp_path), strict=True):
        assert off == {name: on[name] for name in off}
        only_on = {name.split("/block")[0] for name in on.keys() - off.keys()}
        rates = {f"valid/error_rate_{kind}" for kind in ("running", "precise", "batch")}
        assert only_on == rates | {"mean_distance"}
    assert with_precise.keys() - without.keys() == {"test_error_rate_precise"}


def test_what_a_run_writes(done):
    folder, _, result = done
    assert flatten(result) == flatten(json.loads((folder / "result.json").read_text()))
    assert set(result) == {
        "config", "num_parameters", "best_epoch", "best_valid_error_rate", "test_error_rate",
        "test_error_rate_precise", "images_per_second", "wall_seconds", "hardware", "versions",
        "jax_settings", "commit", "user_code", "command",
    }  # fmt: skip
    blocks = [f"block{i}" for i in range(2)]
    names = {
        "epoch", "step", "seconds", "train/loss", "train/error_rate", "train/gradient_norm",
        "train/learning_rate", "train/images_per_second",
        "valid/loss", "valid/error_rate", "valid/best_error_rate",
        "valid/error_rate_running", "valid/error_rate_precise", "valid/error_rate_batch",
        *(f"mean_distance/{block}" for block in blocks),
        *(f"never_active/{layer}" for layer in (*blocks, "hidden")),
    }  # fmt: skip
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["step"]) for line in epochs] == [(1, STEPS), (2, 2 * STEPS)]
    assert all(set(line) == names for line in epochs)
    best = min(line["valid/error_rate"] for line in epochs)
    assert result["best_valid_error_rate"] == best == epochs[-1]["valid/best_error_rate"]
    assert epochs[result["best_epoch"] - 1]["valid/error_rate"] == best


def precise_statistics(trained, params, cache, splits, epoch):
    """PreciseBN over an epoch's first two batches (nine images are asked for), and what is
    normalized in the first layer.
    """
    of_images = (array[splits.train] for array in (cache.starts, cache.sizes, cache.labels))
    train = pipeline.Split(cache.pixels, *of_images)
    batches = pipeline.train_batches(train, seed=0, epoch=epoch, batch_size=8, crop_size=16)
    places = batches["crop_start"][:2], batches["row_stride"][:2]
    crops = cut_crops(cache.pixels, *places, 16)[:, :, 0] / np.float32(255)
    precise, before = trained.state.batch_stats, []
    for count, images in enumerate(crops, start=1):
        averaging = trained.model.clone(norm=trained.model.norm.with_momentum(1 - 1 / count))
        _, updated = averaging.apply(
            {"params": params, "batch_stats": precise},
            images, train=True, mutable=["batch_stats", "intermediates"],
        )  # fmt: skip
        precise = updated["batch_stats"]
        before.append(
            np.asarray(updated["intermediates"]["block0"]["norm"]["before_norm"][0], np.float64)
        )
    return precise, np.concatenate(before)


def test_precise_statistics_and_the_test_errors(done, open_cache):
    """Computed again from checkpoints: by running and precise statistics the best epoch's errors,
    image by image.
    """
    folder, config, result = done
    cache, epoch, trained = open_cache(config), result["best_epoch"] - 1, api.load(folder)
    assert trained.step == result["best_epoch"] * STEPS
    splits = split(cache.keys, cache.splits, valid_examples=13, test_examples=11)
    precise, x = precise_statistics(trained, trained.state.params, cache, splits, epoch)
    distance = trained.state.batch_stats["block0"]["norm"]["mean"] - x.mean((0, 1, 2))
    expected = np.sqrt(np.mean(distance**2 / (x.var((0, 1, 2)) + 1e-4)))
    assert lines(folder)[epoch]["mean_distance/block0"] == pytest.approx(expected, rel=1e-3)

    assert len(splits.test) == 11
    for name, used in (("", trained.state.batch_stats), ("_precise", precise)):
        variables, wrong = {"params": trained.state.params, "batch_stats": used}, []
        for i in splits.test:
            images = five_crops(cache.image(i), 16) / np.float32(255)
            logits = trained.model.apply(variables, images, train=False)
            wrong.append(jax.nn.softmax(logits).mean(0).argmax() != cache.labels[i])
        assert result[f"test_error_rate{name}"] == pytest.approx(np.mean(wrong)), name


@pytest.mark.parametrize(
    "changes", [{"eval.statistics": "precise"}, {"optimizer.average_decay": 0.5}]
)
def test_other_variables_are_evaluated_and_nothing_else_changes(
    changes, done, cache_folder, tmp_path, open_cache
):
    config = done[1].copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    result, trained = run(config, tmp_path, cache_folder), api.load(tmp_path)
    for one, other in zip(lines(done[0]), lines(tmp_path), strict=True):
        reported = {"valid/loss", "valid/error_rate", "valid/best_error_rate"}
        changed = {name for name in one if one[name] != other[name]}
        assert {name for name in changed if not re.match("acti|never", name)} <= reported
        assert one["valid/loss"] != other["valid/loss"]
    params, cache = trained.state.params, open_cache(config)
    if "optimizer.average_decay" in changes:
        params = find_params_ema(trained.state.opt_state)
        assert (params["output"]["kernel"] != trained.state.params["output"]["kernel"]).any()
    same(trained.state.eval_variables["params"], params)
    assert result["test_error_rate"] == result["test_error_rate_precise"]
    splits = split(cache.keys, cache.splits, valid_examples=13, test_examples=11)
    stats, _ = precise_statistics(trained, params, cache, splits, result["best_epoch"] - 1)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, trained.state.eval_variables["batch_stats"], stats)
    found = trained.predict_crops([five_crops(cache.image(i), 16) for i in splits.valid])
    wrong = np.mean(found.argmax(-1) != cache.labels[splits.valid])
    assert wrong == pytest.approx(result["best_valid_error_rate"])


def test_a_copy_without_its_lines_is_refused(done, cache_folder, tmp_path):
    copy = shutil.copytree(done[0], tmp_path / "copy")
    for name in ("metrics.jsonl", "result.json"):
        (copy / name).unlink()
    with pytest.raises(UserError, match=r"metrics.jsonl has 0 epochs, but the checkpoint has 2"):
        run(done[1], copy, cache_folder)


def test_nothing_is_compiled_after_the_first_epoch(
    tiny_config, cache_folder, tmp_path, before_step
):
    tiny_config.num_epochs = 4
    compiled, seen = [], []

    def listen(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    for epoch in (1, 2, 3):
        before_step(epoch * STEPS, lambda: seen.append(len(compiled)))
    run(tiny_config, tmp_path, cache_folder)
    # The first epoch is recorded while the second one trains.
    assert 0 < seen[0] <= seen[1] == seen[2] == len(compiled)


def test_a_network_that_does_not_fit_the_images_is_refused(tiny_config, cache_folder, tmp_path):
    tiny_config.model.num_classes = 3
    with pytest.raises(UserError, match=r"config.model.num_classes is 3, but .* has 2 classes"):
        run(tiny_config, tmp_path / "run", cache_folder)
    assert not (tmp_path / "run").exists()
    tiny_config.model.num_classes, tiny_config.model.padding = 2, "same"
    tiny_config.model.features = (4,) * 12
    with pytest.raises(UserError, match=r"no network can be made for crops of .*crop_size 16"):
        run(tiny_config, tmp_path / "run", cache_folder)
