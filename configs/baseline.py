"""No normalization, no augmentation: the control of figure 1 (published: 82.8%, read off it)."""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "full") -> ConfigDict:
    return default.get_config(variant, "baseline")
