"""Lines of metrics.jsonl made up to have a verdict, and folders that hold them."""

import json

from experiments.diagnosing.diagnosis import KINDS

LAYERS = [f"block{i}" for i in range(8)]
CONFIG = {
    "name": "full_crop",
    "seed": 3,
    "num_epochs": 60,
    "batch_size": 100,
    "model": {
        "norm": "full",
        "norm_decay": 0.995,
        "dropout_rate": 0.5,
        "stats_pass": "clean",
        "features": [20, 20, 50, 50, 50, 50, 50, 50],
        "hidden_units": 500,
    },
    "eval": {"compared_examples": 1000},
}


def plain(*errors):
    """Lines with a validation error alone."""
    return [{"epoch": i, "valid/error_rate": error} for i, error in enumerate(errors, start=1)]


def lensed(*triples):
    """Lines of (running, precise, batch); the validation error is the running one."""
    return [
        line | dict(zip(KINDS.values(), triple, strict=True)) | {"step": 200 * line["epoch"]}
        for line, triple in zip(plain(*(triple[0] for triple in triples)), triples, strict=True)
    ]


def flat(error):
    return (error, error, error)


def layered(lines):
    """Adds what is measured of the layers; block1 and the hidden layer have dead units."""
    for line in lines:
        for i, layer in enumerate(LAYERS):
            line[f"mean_distance/{layer}"] = 0.1 * (i + 1) / line["epoch"]
            line[f"std_ratio/{layer}"] = 1 + i / 10
            line[f"never_active/{layer}"] = 0.1 if i == 1 else 0.0
        line["never_active/hidden"] = 0.02
    return lines


def write_run(folder, lines, **more):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | more))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder
