"""Mean-only batch norm, random cropping, dropout: figure 2.

python -m bn_vgg.main --config=configs/meanonly_crop_dropout.py
"""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "full") -> ConfigDict:
    """Returns the published recipe with this cell's differences."""
    config = default.get_config(variant)
    default.name_cell(config, "meanonly_crop_dropout")
    config.model.norm = "mean_only"
    default.add_cropping(config)
    default.add_dropout(config)
    return config
