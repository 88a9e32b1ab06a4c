"""Full batch norm, random cropping, dropout: figure 2 (published: 86.8% by epoch 44)."""

from configs import default


def get_config(variant="full"):
    return default.get_config(variant, "full_crop_dropout", norm="full", crop=True, dropout=True)
