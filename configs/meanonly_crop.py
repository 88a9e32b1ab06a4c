"""Mean-only batch norm, random cropping: the post's best result (published: 95.9%)."""

from configs import default


def get_config(variant="full"):
    return default.get_config(variant, "meanonly_crop", norm="mean_only", crop=True)
