"""Mean-only batch norm, no augmentation: figure 1 (93.2% read off it).

The percentages are published validation accuracies, not results of this code.

  python -m bn_vgg.main --config=configs/meanonly.py
"""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "full") -> ConfigDict:
    """Returns the published recipe with this cell's differences."""
    config = default.get_config(variant)
    default.name_cell(config, "meanonly")
    config.model.norm = "mean_only"
    return config
