"""No normalization, random cropping (91.9% in a sister post).

The percentages are published validation accuracies, not results of this code.

  python -m bn_vgg.main --config=configs/baseline_crop.py
"""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "full") -> ConfigDict:
    """Returns the published recipe with this cell's differences."""
    config = default.get_config(variant)
    default.name_cell(config, "baseline_crop")
    default.add_cropping(config)
    return config
