"""No normalization, no augmentation: the control of figure 1 (published: 82.8%, read off it)."""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "full") -> ConfigDict:
    config = default.get_config(variant)
    default.name_cell(config, "baseline")
    return config
