"""Runs that were never made, for the report: as tables, and as folders that hold them."""

import importlib
import json
import math

import pandas as pd

from experiments.spikes import BATCH, PRECISE, RUNNING

HARDWARE = {"platform": "cpu", "device": "a processor", "num_devices": 1, "num_hosts": 1,
            "cpu_cores": 2}  # fmt: skip
LAYERS = [f"block{i}" for i in range(8)]


def falling(first, last, epochs):
    """An error that falls from one value towards another, most of it early."""
    return [last + (first - last) * math.exp(-5 * epoch / epochs) for epoch in range(epochs)]


def lines_of(valid, train=None, precise=None, running=None):
    """Lines of metrics.jsonl; by running averages the compared images' error is `valid`."""
    lines = [
        {"epoch": epoch, "step": 200 * epoch, "train/error_rate": trained, "valid/error_rate": rate,
         "valid/best_error_rate": min(valid[:epoch])}
        for epoch, (trained, rate) in enumerate(zip(train or valid, valid, strict=True), start=1)
    ]  # fmt: skip
    for line, of_running, of_precise in zip(lines, running or valid, precise or (), strict=False):
        line |= {RUNNING: of_running, PRECISE: of_precise, BATCH: of_precise}
    return lines


def layered(lines):
    """Adds what is measured of the layers; block1 has dead feature maps."""
    for line in lines:
        for i, layer in enumerate(LAYERS):
            line[f"mean_distance/{layer}"] = 0.1 * (i + 1) / line["epoch"]
            line[f"std_ratio/{layer}"] = 1 + i / 10
            line[f"never_active/{layer}"] = 0.1 if i == 1 else 0.0
    return lines


def tables(cells, finished=True):
    """Runs and epochs of one section, as of `read_runs`; `cells` has each seed's lines by cell."""
    runs, epochs = [], []
    for cell, courses in cells.items():
        for seed, lines in enumerate(courses):
            folder = f"{cell}/seed{seed}"
            where = {"cell": cell, "seed": seed, "folder": folder}
            sizes = {"valid_examples": 2500, "compared_examples": 1000, "stood_still": 0}
            runs.append({**where, **sizes, "epochs": len(lines), "finished": finished})
            epochs += [line | where for line in lines]
    return pd.DataFrame(runs), pd.DataFrame(epochs)


def config_of(cell, variant="small", **changes):
    """A cell's configuration, nested; `model__norm_decay=0.9` changes a field of it."""
    config = importlib.import_module(f"configs.{cell}").get_config(variant)
    for field, value in changes.items():
        config.update_from_flattened_dict({field.replace("__", "."): value})
    return config.to_dict()


def write_run(folder, config, lines, *, finished=True, fingerprint=None):
    """Writes what the command writes for a run. Returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if fingerprint:
        data = {"fingerprint": fingerprint, "examples": {"valid": 500}}
        (folder / "data.json").write_text(json.dumps(data))
    if finished:
        best = min(line["valid/error_rate"] for line in lines)
        written = {
            "config": config, "test_error_rate": best + 0.01, "images_per_second": 500.0,
            "wall_seconds": 600.0, "hardware": HARDWARE, "commit": "c0ffee" + "0" * 34,
        }  # fmt: skip
        (folder / "result.json").write_text(json.dumps(written))
    return folder
