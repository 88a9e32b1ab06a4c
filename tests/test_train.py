"""The loop: resuming bit for bit, refusing what does not fit."""

import json

import jax
import numpy as np
import pytest

from bn_vgg import feed
from bn_vgg.data.batches import Images, cut_windows, train_batches
from bn_vgg.data.prepared import prepare
from bn_vgg.errors import UserError
from bn_vgg.hooks import format_seconds
from bn_vgg.programs import Session
from bn_vgg.run_dir import Workdir, flatten
from bn_vgg.trained import load
from tests.runs import KilledError, epochs_of, lines, run, same

pytestmark = pytest.mark.usefixtures("quick_compilation")


class Recorder:
    """Stands in for CLU's writer."""

    def __init__(self):
        self.scalars, self.images, self.histograms, self.hparams = [], {}, {}, None

    def write_scalars(self, step, scalars):
        self.scalars.append((step, dict(scalars)))

    def write_images(self, step, images):
        self.images |= images

    def write_histograms(self, step, arrays):
        self.histograms[step] = arrays

    def write_hparams(self, hparams):
        self.hparams = hparams

    def flush(self):
        pass


def kept(path):
    """The steps of the checkpoints in a run's folder."""
    return {int(folder.name) for folder in (path / "checkpoints").iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["mean_only", "full", "none"])
def test_interrupted_after_any_epoch_equals_uninterrupted(
    norm, tiny_config, open_cache, tmp_path, monkeypatch
):
    """With dropout and cropping, bit for bit; killed in the middle of the next epoch.

    What was killed goes on from the host's memory, where the whole run had its images on
    the device.
    """
    monkeypatch.setattr(feed, "_BATCHES_PER_DISPATCH", 2)
    tiny_config.model.norm = norm
    tiny_config.model.dropout_rate = 0.3
    tiny_config.num_epochs = 3
    cache = open_cache(tiny_config)
    expected = run(tiny_config, cache, tmp_path / "whole")
    steps_per_epoch = (72 - 13 - 11) // 8

    for epochs_done in (0, 1, 2):
        path = tmp_path / f"killed{epochs_done}"

        def kill(step, at=epochs_done * steps_per_epoch + 2):
            if step == at:
                raise KilledError

        with pytest.raises(KilledError):
            run(tiny_config, cache, path, actions=[kill])
        said = []
        from_host = tiny_config.copy_and_resolve_references()
        from_host.data.placement = "host"
        result = run(from_host, cache, path, say=said.append)
        resumed = [line for line in said if "resuming after epoch" in line]
        assert resumed == (
            [f"resuming after epoch {epochs_done} (step {epochs_done * steps_per_epoch})"]
            if epochs_done
            else []
        )
        for key in ("best_epoch", "best_valid_error_rate", "test_error_rate"):
            assert result[key] == expected[key]
        assert lines(path) == lines(tmp_path / "whole")
        assert kept(path) == kept(tmp_path / "whole")
        for which in ("best", "latest"):
            same(load(str(path), which).state, load(str(tmp_path / "whole"), which).state)
    assert int(load(str(tmp_path / "whole"), "latest").state.step) == 3 * steps_per_epoch


def test_a_run_of_another_version_is_said_to_be_one(tiny_config, open_cache, tmp_path):
    tiny_config.num_epochs = 1
    run(tiny_config, open_cache(tiny_config), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["model"]["stats_pass"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"written by another version of this code: .*stats_pass"):
        load(str(tmp_path))


def test_the_seed_decides(tiny_config, open_cache, tmp_path):
    tiny_config.num_epochs = 1
    cache = open_cache(tiny_config)
    run(tiny_config, cache, tmp_path / "a")
    run(tiny_config, cache, tmp_path / "b")
    same(load(str(tmp_path / "a")).state, load(str(tmp_path / "b")).state)
    tiny_config.seed = 1
    run(tiny_config, cache, tmp_path / "c")
    kernels = [load(str(tmp_path / name)).state.params["output"]["kernel"] for name in ("a", "c")]
    assert (kernels[0] != kernels[1]).all()


def test_a_finished_run_says_so_and_more_epochs_go_on(tiny_config, open_cache, tmp_path):
    cache = open_cache(tiny_config)
    first = run(tiny_config, cache, tmp_path / "run")
    again = run(tiny_config, cache, tmp_path / "run")
    assert flatten(again) == flatten(first)
    more = epochs_of(tiny_config, 3)
    run(more, cache, tmp_path / "run")
    run(more, cache, tmp_path / "at_once")
    assert lines(tmp_path / "run") == lines(tmp_path / "at_once")
    same(
        load(str(tmp_path / "run"), "latest").state, load(str(tmp_path / "at_once"), "latest").state
    )
    with pytest.raises(UserError, match="num_epochs was 3 and is 2"):
        run(tiny_config, cache, tmp_path / "run")


def test_another_configs_workdir_is_refused_and_left_alone(tiny_config, open_cache, tmp_path):
    cache = open_cache(tiny_config)
    Workdir(str(tmp_path)).claim(tiny_config.to_dict(), prepare(cache, tiny_config).about)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    tiny_config.model.norm = "full"
    tiny_config.optimizer.learning_rate = 1e-3
    with pytest.raises(UserError) as raised:
        run(tiny_config, cache, tmp_path)
    assert "model.norm was mean_only and is full" in str(raised.value)
    assert "optimizer.learning_rate was 0.0003 and is 0.001" in str(raised.value)
    assert "seed" not in str(raised.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_other_data_under_the_same_name_is_refused(tiny_config, open_cache, tmp_path):
    cache = open_cache(tiny_config)
    about = prepare(cache, tiny_config).about
    workdir = Workdir(str(tmp_path))
    workdir.claim(tiny_config.to_dict(), about)
    with pytest.raises(UserError, match="has changed since"):
        workdir.claim(tiny_config.to_dict(), about | {"fingerprint": "other"})


def test_what_a_run_writes(tiny_config, open_cache, tmp_path):
    cache, recorder, said = open_cache(tiny_config), Recorder(), []
    result = run(tiny_config, cache, tmp_path, writer=recorder, say=said.append)
    assert flatten(result) == flatten(json.loads((tmp_path / "result.json").read_text()))
    assert set(result) == {
        "config", "num_parameters", "best_epoch", "best_valid_error_rate", "test_error_rate",
        "images_per_second", "wall_seconds", "hardware", "versions", "commit",
        "command",
    }  # fmt: skip
    assert result["config"]["model"]["norm"] == "mean_only"
    epochs = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    names = {
        "train/loss", "train/error_rate", "train/gradient_norm", "train/images_per_second",
        "valid/loss", "valid/error_rate", "valid/best_error_rate",
        "valid/error_rate_running", "valid/error_rate_precise", "valid/error_rate_batch",
    }  # fmt: skip
    blocks = [f"block{i}" for i in range(4)]
    names |= {f"mean_distance/{block}" for block in blocks}
    names |= {
        f"{quantity}/{layer}"
        for quantity in ("activation_mean", "activation_deviation", "never_active")
        for layer in (*blocks, "hidden")
    }
    assert [(line["epoch"], line["step"]) for line in epochs] == [(1, 6), (2, 12)]
    assert all(set(line) == names | {"epoch", "step", "seconds"} for line in epochs)
    assert [(step, set(s)) for step, s in recorder.scalars] == [
        (6, names), (12, names), (12, {"test/error_rate"}),
    ]  # fmt: skip
    best = min(line["valid/error_rate"] for line in epochs)
    assert result["best_valid_error_rate"] == best == epochs[-1]["valid/best_error_rate"]
    assert epochs[result["best_epoch"] - 1]["valid/error_rate"] == best
    # 8 windows of 16 pixels in a row.
    assert recorder.images["train/windows"].shape == (1, 16, 8 * 16, 3)
    assert recorder.hparams["model.norm"] == "mean_only"
    for step, arrays in recorder.histograms.items():
        assert step in (6, 12)
        of_layers = {name for name in names if "block" in name or "hidden" in name}
        assert {f"channels/{name}" for name in of_layers} == set(arrays)
        assert arrays["channels/mean_distance/block0"].shape == (4,)
        assert arrays["channels/activation_mean/hidden"].shape == (8,)
    assert sum(line.startswith("epoch ") for line in said) == 2


def test_histograms_come_at_the_first_the_best_and_the_last_epoch(
    tiny_config, open_cache, tmp_path
):
    tiny_config.num_epochs = 5
    recorder = Recorder()
    run(tiny_config, open_cache(tiny_config), tmp_path, writer=recorder)
    errors = [line["valid/error_rate"] for line in lines(tmp_path)]
    best_so_far = {i for i, error in enumerate(errors) if error < min([1, *errors[:i]])}
    assert set(recorder.histograms) == {6 * (i + 1) for i in best_so_far | {0, 4}}


@pytest.mark.parametrize("norm", ["mean_only", "none"])
def test_the_lens_changes_nothing_and_can_be_turned_off(norm, tiny_config, open_cache, tmp_path):
    cache = open_cache(tiny_config)
    tiny_config.model.norm = norm
    run(tiny_config, cache, tmp_path / "on")
    tiny_config.eval.precise_examples = 0
    run(tiny_config, cache, tmp_path / "off")
    same(load(str(tmp_path / "on"), "latest").state, load(str(tmp_path / "off"), "latest").state)
    for on, off in zip(lines(tmp_path / "on"), lines(tmp_path / "off"), strict=True):
        assert off == {name: on[name] for name in off}
        only_on = {name.split("/block")[0] for name in on.keys() - off.keys()}
        rates = {f"valid/error_rate_{kind}" for kind in ("running", "precise", "batch")}
        assert only_on == (rates | {"mean_distance"} if norm == "mean_only" else set())


def test_precise_statistics_are_of_the_epochs_first_batches(tiny_config, open_cache, tmp_path):
    """Nine images wanted are two batches of eight; taken here one by one from the checkpoint."""
    tiny_config.num_epochs = 1
    tiny_config.eval.precise_examples = 9
    cache = open_cache(tiny_config)
    run(tiny_config, cache, tmp_path)
    trained, data = load(str(tmp_path), "latest"), prepare(cache, tiny_config)
    images = Images.of(cache, data.splits.train)
    plan = train_batches(images, seed=0, epoch=0, batch_size=8, crop_size=16)
    before = []
    for i in range(2):
        windows = cut_windows(images.pixels, plan["first_SNW"][i], plan["stride_SN"][i], 16)
        _, sown = trained.model.apply(
            trained.state.variables, windows[:, 0] / np.float32(255), train=True,
            mutable=["batch_stats", "intermediates"],
        )  # fmt: skip
        before.append(np.asarray(sown["intermediates"]["block0"]["before_norm"][0], np.float64))
    x = np.concatenate(before)
    running = trained.state.batch_stats["block0"]["norm"]["mean"]
    distance = (running - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-4)
    found = lines(tmp_path)[0]["mean_distance/block0"]
    assert found == pytest.approx(np.sqrt(np.mean(distance**2)), rel=1e-3)


def test_the_test_error_is_the_best_checkpoints(tiny_config, open_cache, tmp_path):
    """Computed again here, from the checkpoint, one image at a time."""
    cache = open_cache(tiny_config)
    result = run(tiny_config, cache, tmp_path)
    trained = load(str(tmp_path))
    assert trained.step == result["best_epoch"] * 6
    data, errors = prepare(cache, tiny_config), []
    from bn_vgg.data.windows import five_windows
    from bn_vgg.steps import make_predict_step

    step = jax.jit(make_predict_step(trained.model))
    for index in data.splits.test:
        probabilities = step(trained.state, five_windows(cache.image(index), 16)[None])
        errors.append(int(np.argmax(probabilities)) != cache.labels[index])
    assert len(errors) == 11
    assert result["test_error_rate"] == pytest.approx(np.mean(errors))


@pytest.fixture
def compilations():
    """A list that grows with each compilation."""
    found = []

    def count(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(count)
    jax.clear_caches()
    return found


def test_a_second_seed_in_the_same_process_compiles_nothing(
    tiny_config, open_cache, tmp_path, compilations
):
    """And changes nothing; another cell is compiled."""
    cache, session = open_cache(tiny_config), Session()
    counts = []
    for seed, norm in ((0, "mean_only"), (1, "mean_only"), (1, "none")):
        tiny_config.seed, tiny_config.model.norm = seed, norm
        run(tiny_config, cache, tmp_path / f"{norm}{seed}", session=session)
        counts.append(len(compilations))
    assert 0 < counts[0] == counts[1] < counts[2]
    tiny_config.model.norm = "mean_only"
    run(tiny_config, cache, tmp_path / "alone")
    assert lines(tmp_path / "alone") == lines(tmp_path / "mean_only1")


def test_nothing_is_compiled_after_the_first_epoch(tiny_config, open_cache, tmp_path, compilations):
    tiny_config.num_epochs = 4
    seen = {}
    run(
        tiny_config, open_cache(tiny_config), tmp_path,
        actions=[lambda step: seen.update({step: len(compilations)})],
    )  # fmt: skip
    # An epoch is six steps, done at once; the first one's evaluation comes after it.
    assert 0 < seen[6] < seen[12] == seen[24]


def test_the_latest_two_checkpoints_and_the_best_two_are_kept(tiny_config, open_cache, tmp_path):
    tiny_config.num_epochs = 4
    result = run(tiny_config, open_cache(tiny_config), tmp_path)
    best, second, *_ = sorted(lines(tmp_path), key=lambda line: line["valid/error_rate"])
    assert best["epoch"] == result["best_epoch"]
    assert kept(tmp_path) == {18, 24, best["step"], second["step"]}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model.num_classes", 3, "config.model.num_classes is 3, but .* has 2 classes"),
        ("batch_size", 49, "48 training images do not fill a batch of 49"),
        ("data.test_examples", 60, "72 images cannot leave any for training"),
    ],
)
def test_what_does_not_fit_the_data(field, value, message, tiny_config, open_cache):
    cache = open_cache(tiny_config)
    tiny_config.update_from_flattened_dict({field: value})
    with pytest.raises(UserError, match=message):
        prepare(cache, tiny_config)


@pytest.mark.parametrize(
    ("seconds", "text"), [(4.4, "4s"), (61, "1m01s"), (3599.6, "1h00m"), (11100, "3h05m")]
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text
