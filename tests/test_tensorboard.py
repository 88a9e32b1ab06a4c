"""A run's files for TensorBoard."""

import json

import numpy as np
import pytest
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.plugins.hparams import metadata

from bn_vgg.run_dir import flatten


def test_a_runs_scalars_images_histograms_and_hparams(trained_run):
    events = event_accumulator.EventAccumulator(str(trained_run), size_guidance={"tensors": 0})
    events.Reload()
    tags = set(events.Tags()["tensors"])
    assert tags >= {
        "train/loss", "train/error_rate", "train/gradient_norm", "train/images_per_second",
        "valid/loss", "valid/error_rate", "valid/best_error_rate", "test/error_rate",
        "train/crops", "valid/error_rate_precise", "zz_layers/mean_distance/block0",
    }  # fmt: skip
    groups = {tag.split("/")[0] for tag in tags}
    # TensorBoard sorts them: errors come before layers.
    assert sorted(groups) == ["_hparams_", "test", "train", "valid", "zz_layers"]
    written = [
        (event.step, float(np.frombuffer(event.tensor_proto.tensor_content, np.float32)[0]))
        for event in events.Tensors("valid/error_rate")
    ]
    lines = [json.loads(x) for x in (trained_run / "metrics.jsonl").read_text().splitlines()]
    expected = [(line["step"], line["valid/error_rate"]) for line in lines]
    assert written == [(step, pytest.approx(value)) for step, value in expected]
    for tag, plugin in (
        ("zz_layers/mean_distance/block0", "scalars"), ("train/crops", "images"),
        ("zz_layers/channels/mean_distance/block0", "histograms"),
    ):  # fmt: skip
        assert events.SummaryMetadata(tag).plugin_data.plugin_name == plugin
    start = metadata.parse_session_start_info_plugin_data(
        events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    )
    assert start.group_name == str(trained_run)  # names the row in the table of runs
    config = flatten(json.loads((trained_run / "config.json").read_text()))
    assert set(start.hparams) == set(config)
    assert start.hparams["model.norm"].string_value == "mean_only"
    experiment = metadata.parse_experiment_plugin_data(
        events.SummaryMetadata(metadata.EXPERIMENT_TAG).plugin_data.content
    )
    columns = {info.name for info in experiment.hparam_infos if info.differs}
    assert columns == {"name", "model.norm", "data.min_side", "model.dropout_rate", "seed"}
    assert "valid/best_error_rate" in {info.name.tag for info in experiment.metric_infos}
