"""Full batch norm, random cropping: figure 2 (published: 94.6% by epoch 54)."""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "full") -> ConfigDict:
    return default.get_config(variant, "full_crop", norm="full", crop=True)
