"""Runs that were never made, for the report: a cell's configuration and errors of any course."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bn_vgg.run_dir import flatten
from experiments import state
from experiments.diagnosing.diagnosis import Run, Sizes
from experiments.plan import PlannedRun
from experiments.reporting.cells import CELLS, place
from experiments.reporting.found import Found

HARDWARE = {"platform": "cpu", "device": "a processor", "num_devices": 1, "num_hosts": 1,
            "cpu_cores": 2}  # fmt: skip


def falling(first: float, last: float, epochs: int) -> list[float]:
    """An error that falls from one value towards another, most of it early."""
    return [last + (first - last) * math.exp(-5 * epoch / epochs) for epoch in range(epochs)]


def config_of(cell: str, variant: str = "full", **changes: Any) -> dict[str, Any]:
    """A cell's configuration, nested; `seed=1`, `model__norm_decay=0.9` change fields of it."""
    config = CELLS[cell].get_config(variant)
    for field, value in changes.items():
        config.update_from_flattened_dict({field.replace("__", "."): value})
    return config.to_dict()


def lines_of(
    valid: Sequence[float],
    train: Sequence[float] | None = None,
    precise: Sequence[float] | None = None,
) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl; by running averages the compared images' error is `valid`."""
    train = valid if train is None else train
    best = [min(valid[: epoch + 1]) for epoch in range(len(valid))]
    lines = [
        {"epoch": epoch, "step": 200 * epoch, "train/error_rate": trained,
         "valid/error_rate": rate, "valid/best_error_rate": lowest}
        for epoch, (trained, rate, lowest) in enumerate(zip(train, valid, best, strict=True), 1)
    ]  # fmt: skip
    for line, rate in zip(lines, precise or (), strict=False):
        line["valid/error_rate_running"] = line["valid/error_rate"]
        line["valid/error_rate_precise"] = rate
    return lines


def result_of(config: dict[str, Any], lines: list[dict[str, Any]], **changes: Any):
    """A result.json; the test error is a point above the best validation error."""
    best = min(line["valid/error_rate"] for line in lines)
    return {
        "config": config, "best_valid_error_rate": best, "test_error_rate": best + 0.01,
        "images_per_second": 500.0, "wall_seconds": 600.0, "hardware": HARDWARE,
        "versions": {"jax": "0.10"}, "commit": "c0ffee" + "0" * 34, "command": "python …",
    } | changes  # fmt: skip


def write_plan(root: Path, preset: str, folders: Sequence[str], epochs: int) -> None:
    """Writes the sweep.json of a `:small` sweep with these runs, of some configuration."""
    runs = [folder.rsplit("/seed", 1) for folder in folders]
    planned = [PlannedRun(name, int(seed), "", {}, num_epochs=epochs) for name, seed in runs]
    state.claim(str(root / "planned"), preset, "small", {}, planned)
    (root / "planned" / state.PLAN).rename(root / state.PLAN)
    (root / "planned").rmdir()


def found(
    cell: str, valid: Sequence[float], *, seed: int = 0, planned: int | None = None,
    train: Sequence[float] | None = None, precise: Sequence[float] | None = None,
    **changes: Any,
) -> Found:  # fmt: skip
    """A run as it is found; finished, unless more epochs were planned than there are."""
    planned = len(valid) if planned is None else planned
    config = config_of(cell, seed=seed, num_epochs=planned, **changes)
    lines = lines_of(valid, train, precise)
    flat = flatten(config)
    result = result_of(config, lines) if len(valid) == planned else None
    return Found(
        f"{cell}/seed{seed}", Run(lines, flat, Sizes(2500, 1000)), place(flat), None, result
    )


def seeds(cell: str, courses: Sequence[Sequence[float]], **more: Any) -> dict[int, Found]:
    """Runs of a cell, one for each course of validation errors, by seed from 0."""
    return {seed: found(cell, valid, seed=seed, **more) for seed, valid in enumerate(courses)}


def write_run(
    folder: Path, config: dict[str, Any], lines: list[dict[str, Any]], *,
    finished: bool = True, fingerprint: str | None = None, **result: Any,
) -> Path:  # fmt: skip
    """Writes what the command writes for a run. Returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if fingerprint:
        data = {"source": config["data"]["source"], "fingerprint": fingerprint,
                "examples": {"train": 20000, "valid": 2500, "test": 2500}}  # fmt: skip
        (folder / "data.json").write_text(json.dumps(data))
    if finished:
        (folder / "result.json").write_text(json.dumps(result_of(config, lines, **result)))
    return folder
