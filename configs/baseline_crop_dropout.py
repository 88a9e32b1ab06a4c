"""No normalization, random cropping, dropout (published: 94.9% in a sister post)."""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "full") -> ConfigDict:
    return default.get_config(variant, "baseline_crop_dropout", crop=True, dropout=True)
