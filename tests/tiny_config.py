"""A network that compiles in seconds; the source is to be set."""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config("demo")
    config.name = "tiny"
    config.num_epochs = 2
    config.batch_size = 8
    config.data.min_side = 18
    config.data.crop_size = 16
    config.data.valid_examples = 13
    config.data.test_examples = 11
    config.model.norm = "mean_only"
    config.model.features = (4, 6)
    config.model.hidden_units = 8
    config.eval.batch_size = 8
    return config
