"""The champion in three epochs, without label smoothing: shortest time to a target accuracy.

The target is the post's 95.9% at the published size, and 90% at 48x48. Evaluation is by five crops
and precise statistics. This prints the time to the target; the first epoch, which compiles, counts
as the median of the others: `python -m experiments.compare RUNS --target=4.1` (`--target=10` at
48x48).
"""

from configs import champion


def get_config(variant="full"):
    config = champion.get_config(variant)
    config.name = config.name.replace("champion", "speedrun")
    config.num_epochs = 3
    config.augment.label_smoothing = 0.0
    config.eval.flips = False
    return config
