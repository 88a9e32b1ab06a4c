"""The least training time to the post's 95.9%, at 48x48 to 90%: the champion in few epochs.

Five crops alone are evaluated, as the post does. `python -m experiments.compare RUNS --target=4.1`
(`--target=10` at 48x48) has the time to that validation error, without compiling.
"""

from ml_collections import ConfigDict

from configs import champion


def get_config(variant: str = "full") -> ConfigDict:
    config = champion.get_config(variant)
    config.name = config.name.replace("champion", "speedrun")
    config.num_epochs = 6
    config.eval.flips = False
    return config
