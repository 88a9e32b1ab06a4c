"""Full batch norm, no augmentation. Not in the post; it completes the grid."""

from configs import default


def get_config(variant="full"):
    return default.get_config(variant, "full", norm="full")
