"""Mean-only batch norm, random cropping, dropout: figure 2."""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "full") -> ConfigDict:
    config = default.get_config(variant)
    default.name_cell(config, "meanonly_crop_dropout")
    config.model.norm = "mean_only"
    default.add_cropping(config)
    default.add_dropout(config)
    return config
