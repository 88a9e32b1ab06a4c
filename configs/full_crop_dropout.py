"""Full batch norm, random cropping, dropout: figure 2 (published: 86.8% by epoch 44)."""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "full") -> ConfigDict:
    config = default.get_config(variant)
    default.name_cell(config, "full_crop_dropout")
    config.model.norm = "full"
    default.add_cropping(config)
    default.add_dropout(config)
    return config
