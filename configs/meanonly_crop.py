"""Mean-only batch norm, random cropping: the post's champion (95.9%).

The percentages are published validation accuracies, not results of this code.

  python -m bn_vgg.main --config=configs/meanonly_crop.py
"""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "full") -> ConfigDict:
    """Returns the published recipe with this cell's differences."""
    config = default.get_config(variant)
    default.name_cell(config, "meanonly_crop")
    config.model.norm = "mean_only"
    default.add_cropping(config)
    return config
