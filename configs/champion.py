"""The post's eight layers, trained as one would today; chosen on the validation split alone.

The network and its 3.15 million weights are those of full_crop.py. experiments/results/champion has
the search.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "full") -> ConfigDict:
    config = default.get_config(variant, "champion", norm="full", crop=True)
    config.augment.horizontal_flip = True
    config.augment.label_smoothing = 0.1
    config.optimizer.name = "sgd"
    config.optimizer.kwargs = {"momentum": 0.9, "nesterov": True}
    config.optimizer.learning_rate = 0.05
    # As an L2 penalty of 5e-4 within the momentum.
    config.optimizer.weight_decay = 5e-3
    config.schedule.name = "one_cycle"
    config.eval.flips = True
    # Running statistics lag while the rate is high, and the best epoch is chosen by these.
    config.eval.statistics = "precise"
    return config
