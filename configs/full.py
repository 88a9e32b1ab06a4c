"""Full batch norm, no augmentation. Not in the post; it completes the grid."""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "full") -> ConfigDict:
    return default.get_config(variant, "full", norm="full")
