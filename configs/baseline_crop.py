"""No normalization, random cropping (published: 91.9% in a sister post)."""

from configs import default


def get_config(variant="full"):
    return default.get_config(variant, "baseline_crop", crop=True)
