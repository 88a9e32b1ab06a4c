"""No normalization, random cropping (published: 91.9% in another post of the series)."""

from configs import default


def get_config(variant="full"):
    return default.get_config(variant, "baseline_crop", crop=True)
