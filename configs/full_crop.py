"""Full batch norm, random cropping: figure 2 (published: 94.6% by epoch 54)."""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "full") -> ConfigDict:
    config = default.get_config(variant)
    default.name_cell(config, "full_crop")
    config.model.norm = "full"
    default.add_cropping(config)
    return config
