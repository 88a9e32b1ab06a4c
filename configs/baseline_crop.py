"""No normalization, random cropping (published: 91.9% in a sister post)."""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "full") -> ConfigDict:
    config = default.get_config(variant)
    default.name_cell(config, "baseline_crop")
    default.add_cropping(config)
    return config
