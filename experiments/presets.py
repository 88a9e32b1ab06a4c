"""The sweeps that have a name: which cells of the grid they train.

`--seeds` says how often each is trained, `--variant` at which size, `--set` what else is
changed in all of them. A sweep of your own is a Python file, named by its path, whose `sweep()`
yields dicts of flat overrides; README.md has an example.

`config` is a cell of configs/, or a file of your own by its path. Optional: `name` of the run
(default: the cell's name and what is overridden); `seed`, instead of those of `--seeds`;
`stage`: all runs of stage 0 come before those of stage 1.
"""

from typing import Any

from bn_vgg.models.norms import NORMALIZERS

Overrides = dict[str, Any]

# Sizes of the configurations, the published one first.
VARIANTS = ("full", "small", "demo")

# The grid: its rows, its columns and its cells.
NORMS = {"baseline": "none", "meanonly": "mean-only", "full": "full"}
AUGMENTATIONS = {
    "": "no augmentation",
    "_crop": "+ random cropping",
    "_crop_dropout": "+ cropping and dropout",
}
CELLS = [norm + augmented for norm in NORMS for augmented in AUGMENTATIONS]
# What else configs/ has.
BEYOND = ("champion", "speedrun")
# The batch-normalized runs of the post's two figures, and the control beside them. The most
# decisive come first, in case a sweep is cut short.
_FIVE_WAY = (
    "meanonly_crop", "full_crop", "meanonly_crop_dropout", "full_crop_dropout", "meanonly",
    "baseline",
)  # fmt: skip
_NETWORKS: dict[str, Overrides] = {
    "vgg8": {},
    # Channels that the ten groups of group normalization divide.
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
    # Does what helps depend on the network and the optimizer? Learning rates are for short runs.
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
    # Is batch norm worse in the first epochs because of noisy batches or lagging averages?
    "early": [
        {"config": "meanonly", "num_epochs": 5},
        {"config": "meanonly", "num_epochs": 5, "model.norm_decay": 0.9},
        {"config": "meanonly", "num_epochs": 5, "batch_size": 400},
        {"config": "baseline", "num_epochs": 5},
    ],
    # Are spikes of the validation error in the weights or in the averages?
    "spikes": _cells("meanonly_crop", "full_crop", num_epochs=15),
    # Which batch norm breaks down with dropout, and does it depend on the statistics' pass?
    "dropout": [
        {"config": cell, "num_epochs": 15, **stats_pass}
        for stats_pass in ({}, {"model.stats_pass": "dropout"})
        for cell in ("meanonly_crop_dropout", "full_crop_dropout")
    ],
    # Which seeds take off at all? Look at the report's "stood still".
    "start": [
        {"config": cell, "num_epochs": 3, **correction}
        for cell in ("baseline_crop", "meanonly_crop")
        for correction in ({}, {"optimizer.bias_correction": True})
    ],
}
