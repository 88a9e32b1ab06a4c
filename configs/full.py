"""Full batch norm, no augmentation. Not in the post; it completes the grid.

python -m bn_vgg.main --config=configs/full.py
"""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "full") -> ConfigDict:
    """Returns the published recipe with this cell's differences."""
    config = default.get_config(variant)
    default.name_cell(config, "full")
    config.model.norm = "full"
    return config
