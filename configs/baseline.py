"""No normalization, no augmentation: the control of figure 1 (published: 82.8%, read off it)."""

from configs import default


def get_config(variant="full"):
    return default.get_config(variant, "baseline")
