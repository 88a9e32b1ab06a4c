"""Decoded images and their splits, checked against what a run wants of them."""

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


def prepare(
    cache: ImageCache,
    *,
    source: str,
    valid_examples: int,
    test_examples: int,
    num_classes: int,
    batch_size: int,
) -> PreparedData:
    """Splits the images.

    Args:
      cache: of `source`.
      source: what the user called it.
      valid_examples: to hold out, unless the source brings a validation split.
      test_examples: likewise for test.
      num_classes: outputs of the network.
      batch_size: at least one such batch has to be left for training.

    Raises:
      UserError: too few images, or another number of classes than the network's.
    """
    if num_classes != len(cache.class_names):
        raise UserError(
            f"config.model.num_classes is {num_classes}, but {source} has "
            f"{len(cache.class_names)} classes; set --config.model.num_classes"
        )
    splits = split(
        cache.keys, cache.splits, valid_examples=valid_examples, test_examples=test_examples
    )
    if len(splits.train) < batch_size:
        raise UserError(
            f"config.batch_size: {len(splits.train)} training images do not fill a batch of "
            f"{batch_size}"
        )
    about = {
        "source": source,
        "fingerprint": cache.fingerprint,
        "class_names": cache.class_names,
        "examples": {name: len(indices) for name, indices in splits._asdict().items()},
    }
    return PreparedData(cache, splits, about)
