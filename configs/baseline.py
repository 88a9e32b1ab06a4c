"""No normalization or augmentation: figure 1's control (published: 82.8%, read off the figure)."""

from configs import default


def get_config(variant="full"):
    return default.get_config(variant, "baseline")
