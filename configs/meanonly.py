"""Mean-only batch norm, no augmentation: figure 1 (published: 93.2%, read off the figure)."""

from configs import default


def get_config(variant="full"):
    return default.get_config(variant, "meanonly", norm="mean_only")
