"""The champion in few epochs, for the least training time to the post's 95.9% (at 48x48 to 90%).

Not measured yet. The evaluation is the post's, without mirror images. The time to that validation
error, without compiling: `python -m experiments.compare RUNS --target=4.1` (10 at 48x48).
"""

from configs import champion


def get_config(variant="full"):
    config = champion.get_config(variant)
    config.name = config.name.replace("champion", "speedrun")
    config.num_epochs = 6
    config.eval.flips = False
    return config
