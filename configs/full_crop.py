"""Full batch norm, random cropping: figure 2 (published: 94.6% by epoch 54)."""

from configs import default


def get_config(variant="full"):
    return default.get_config(variant, "full_crop", norm="full", crop=True)
