"""Full batch norm, random cropping: figure 2 (94.6% by epoch 54).

The percentages are published validation accuracies, not results of this code.

  python -m bn_vgg.main --config=configs/full_crop.py
"""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "full") -> ConfigDict:
    """Returns the published recipe with this cell's differences."""
    config = default.get_config(variant)
    default.name_cell(config, "full_crop")
    config.model.norm = "full"
    default.add_cropping(config)
    return config
