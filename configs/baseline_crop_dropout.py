"""No normalization, random cropping, dropout (published: 94.9% in another post of the series)."""

from configs import default


def get_config(variant="full"):
    return default.get_config(variant, "baseline_crop_dropout", crop=True, dropout=True)
