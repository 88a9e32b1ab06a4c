"""What every source of labelled images offers, wherever its images come from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image


class Record(NamedTuple):
    """One labelled image, before it is read.

    Attributes:
      key: unique within the source and stable between runs and machines. The part before an `@`
        decides which split the image is in, so that copies of an image share one.
      label: index into the source's `class_names`.
      split: `train`, `validation` or `test` where the data's publisher assigned one, else empty.
    """

    key: str
    label: int
    split: str = ""


@dataclass(frozen=True)
class Source:
    """Labelled images that can be read in any order and from several threads.

    Attributes:
      description: names the source in messages and reports.
      fingerprint: hexadecimal digest that changes when the content does.
      class_names: one per label, in the labels' order.
      records: one per image, in an order that depends on the content alone.
      read: decodes the image of `records[index]` as upright RGB. Raises UnreadableImage.
    """

    description: str
    fingerprint: str
    class_names: tuple[str, ...]
    records: Sequence[Record]
    read: Callable[[int], Image.Image]
