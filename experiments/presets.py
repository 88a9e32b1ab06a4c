"""Presets: named lists of runs for `experiments.sweep`.

An entry is a dict of overrides, such as {"config": "meanonly_crop", "num_epochs": 15}. `config` is
a cell of configs/ or the path of your own file. Optional keys: `name` of the run (by default the
cell's name and its overrides); `seed`, instead of `--seeds`; `stage`: all runs of stage 0 come
before those of stage 1.

Your own sweep is a Python file whose `sweep()` yields such dicts; README.md has an example.
"""

from typing import Any

from bn_vgg.models.norms import NORMALIZERS

Overrides = dict[str, Any]

# Sizes of the configurations, the published one first.
VARIANTS = ("full", "small", "demo")

# The rows, columns and cells of the grid.
NORMS = {"baseline": "none", "meanonly": "mean-only", "full": "full"}
AUGMENTATIONS = {
    "": "no augmentation",
    "_crop": "+ random cropping",
    "_crop_dropout": "+ cropping and dropout",
}
CELLS = [norm + augmented for norm in NORMS for augmented in AUGMENTATIONS]
# Configurations outside the grid.
OTHER_CONFIGS = ("champion", "speedrun")
# The batch-normalized runs of the post's two figures, and the control; the most decisive first, in
# case a sweep is stopped early.
_FIVE_WAY = (
    "meanonly_crop", "full_crop", "meanonly_crop_dropout", "full_crop_dropout", "meanonly",
    "baseline",
)  # fmt: skip
_NETWORKS: dict[str, Overrides] = {
    "vgg8": {},
    # 20 channels, because group normalization has ten groups.
    "resnet8": {"model.name": "resnet", "model.kwargs": {"depth": 8, "width": 20}},
}  # fmt: skip
_OPTIMIZERS: dict[str, Overrides] = {
    "rmsprop": {},
    "sgd": {"optimizer.name": "sgd", "optimizer.kwargs": {"momentum": 0.9},
            "optimizer.learning_rate": 0.01},
}  # fmt: skip


def _cells(*cells: str, **overrides: Any) -> list[Overrides]:
    return [{"config": cell, **overrides} for cell in cells]


PRESETS: dict[str, list[Overrides]] = {
    "five_way": _cells(*_FIVE_WAY),
    "figure1": _cells("baseline", "meanonly"),
    "figure2": _cells("full_crop", "full_crop_dropout", "meanonly_crop", "meanonly_crop_dropout"),
    "grid": _cells(*CELLS),
    # The time to an accuracy: `experiments.compare --target`.
    "speedrun": _cells("speedrun"),
    # The grid for a limited time (--budget_minutes): the post's main claim with every seed, then
    # the rest of the five-way ablation, then the other cells.
    "priority": [
        *_cells("meanonly_crop", "full_crop"),
        *_cells(*_FIVE_WAY[2:], stage=1),
        *_cells(*(cell for cell in CELLS if cell not in _FIVE_WAY), stage=2),
    ],
    "norms": [
        *_cells("baseline_crop", "meanonly_crop", "full_crop"),
        *(
            {"config": "baseline_crop", "name": f"{norm}_crop", "model.norm": norm}
            for norm in NORMALIZERS
            if norm not in ("none", "mean_only", "full")
        ),
    ],
    # Does the ranking depend on network and optimizer? Learning rates are for short runs.
    "bench": [
        {
            "config": "baseline_crop",
            "name": f"{norm}-{network}-{optimizer}",
            "model.norm": norm,
            **_NETWORKS[network],
            **_OPTIMIZERS[optimizer],
        }
        for norm in ("none", "weight_norm", "mean_only", "full", "group")
        for network in _NETWORKS
        for optimizer in _OPTIMIZERS
    ],
    # Is batch norm worse in the first epochs because of noisy batches, or of lagging averages?
    "early": [
        {"config": "meanonly", "num_epochs": 5},
        {"config": "meanonly", "num_epochs": 5, "model.norm_decay": 0.9},
        {"config": "meanonly", "num_epochs": 5, "batch_size": 400},
        {"config": "baseline", "num_epochs": 5},
    ],
    # Are spikes of the validation error in the weights or in the averages?
    "spikes": _cells("meanonly_crop", "full_crop", num_epochs=15),
    # Which batch norm breaks down with dropout, and does that depend on the statistics' pass?
    "dropout": [
        {"config": cell, "num_epochs": 15, **stats_pass}
        for stats_pass in ({}, {"model.stats_pass": "dropout"})
        for cell in ("meanonly_crop_dropout", "full_crop_dropout")
    ],
    # Which seeds begin to learn? See "stood still" in the report.
    "start": [
        {"config": cell, "num_epochs": 3, **correction}
        for cell in ("baseline_crop", "meanonly_crop")
        for correction in ({}, {"optimizer.bias_correction": True})
    ],
}
