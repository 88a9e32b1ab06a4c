"""Mean-only batch norm, random cropping, dropout: figure 2."""

from configs import default


def get_config(variant="full"):
    return default.get_config(
        variant, "meanonly_crop_dropout", norm="mean_only", crop=True, dropout=True
    )
