"""Mean-only batch norm, no augmentation: figure 1 (published: 93.2%, read off it)."""

from ml_collections import ConfigDict

from configs import default


def get_config(variant: str = "full") -> ConfigDict:
    return default.get_config(variant, "meanonly", norm="mean_only")
