"""Mean-only batch norm, no augmentation: figure 1 (published: 93.2%, read off it)."""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "full") -> ConfigDict:
    config = default.get_config(variant)
    default.name_cell(config, "meanonly")
    config.model.norm = "mean_only"
    return config
