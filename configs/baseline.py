"""No normalization, no augmentation: the control of figure 1 (82.8% read off it).

The percentages are published validation accuracies, not results of this code.

  python -m bn_vgg.main --config=configs/baseline.py
"""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "full") -> ConfigDict:
    """Returns the published recipe with this cell's differences."""
    config = default.get_config(variant)
    default.name_cell(config, "baseline")
    return config
