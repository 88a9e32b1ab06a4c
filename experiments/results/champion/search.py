"""The champion's search at 48x48, three epochs each, decided by the validation error alone.

    python -m experiments.sweep --preset=experiments/results/champion/search.py --variant=small \
        --seeds=1 --set=num_epochs=3 --notensorboard

All runs have full batch norm, random crops, mirror images in training and evaluation, and one cycle
of the learning rate. They report precise statistics: after few epochs running ones lag behind.
"""

COMMON = {
    "config": "full_crop",
    "schedule.name": "one_cycle",
    "augment.horizontal_flip": True,
    "eval.flips": True,
    "eval.statistics": "precise",
}
NESTEROV = {
    "optimizer.name": "sgd",
    "optimizer.kwargs": {"momentum": 0.9, "nesterov": True},
    "optimizer.weight_decay": 5e-4,
}
MUON = {"optimizer.name": "muon", "optimizer.weight_decay": 0.05}
# Which optimizer, at which rate.
OPTIMIZERS = {
    "sgd-0.05": NESTEROV | {"optimizer.learning_rate": 0.05},
    "muon-0.02": MUON | {"optimizer.learning_rate": 0.02},
    "adamw-0.002": {
        "optimizer.name": "adamw", "optimizer.learning_rate": 2e-3, "optimizer.weight_decay": 0.05,
    },
    "sgd-0.15": NESTEROV | {"optimizer.learning_rate": 0.15},
}  # fmt: skip


def sweep():  # noqa: D103
    for name, changes in OPTIMIZERS.items():
        yield COMMON | changes | {"name": name}
