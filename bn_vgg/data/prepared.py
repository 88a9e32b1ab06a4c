"""Decoded images and their splits, checked against what a run wants of them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from bn_vgg.data.cache import ImageCache
from bn_vgg.data.splits import Splits, split
from bn_vgg.errors import UserError


class PreparedData(NamedTuple):
    """Images and which of them are for what.

    Attributes:
      cache: the decoded images.
      splits: indices into it.
      about: what `data.json` holds: source, fingerprint, class names, numbers of examples.
    """

    cache: ImageCache
    splits: Splits
    about: dict[str, Any]


def prepare(cache: ImageCache, config: Mapping[str, Any]) -> PreparedData:
    """Splits the images.

    Args:
      cache: of `config.data.source`.
      config: the run's, nested.

    Raises:
      UserError: too few images, or another number of classes than the network's.
    """
    data, batch_size = config["data"], config["batch_size"]
    if config["model"]["num_classes"] != len(cache.class_names):
        raise UserError(
            f"config.model.num_classes is {config['model']['num_classes']}, but {data['source']} "
            f"has {len(cache.class_names)} classes; set --config.model.num_classes"
        )
    splits = split(
        cache.keys, cache.splits,
        valid_examples=data["valid_examples"], test_examples=data["test_examples"],
    )  # fmt: skip
    if len(splits.train) < batch_size:
        raise UserError(
            f"config.batch_size: {len(splits.train)} training images do not fill a batch of "
            f"{batch_size}"
        )
    about = {
        "source": data["source"],
        "fingerprint": cache.fingerprint,
        "class_names": cache.class_names,
        "examples": {name: len(indices) for name, indices in splits._asdict().items()},
    }
    return PreparedData(cache, splits, about)
