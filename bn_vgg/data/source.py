"""What every source of labelled images offers, wherever its images come from."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from PIL import Image


class Record(NamedTuple):
    """One labelled image, before it is read.

    Attributes:
      key: unique within the source and stable between runs and machines; what
        stands before an `@` alone decides which split the image lands in, so that
        copies of one image (`cat/1.jpg` and `cat/1.jpg@…`) land in the same.
      label: index into the source's `class_names`.
      split: `train`, `validation` or `test` where the publisher of the data
        assigned one, otherwise empty.
    """

    key: str
    label: int
    split: str = ""


class Source(Protocol):
    """Labelled images that can be read in any order and from several threads.

    Attributes:
      description: names the source in messages and reports.
      fingerprint: hexadecimal digest that changes when the content does.
      class_names: one per label, in the labels' order.
      records: one per image, in an order that depends on the content alone.
    """

    description: str
    fingerprint: str
    class_names: tuple[str, ...]
    records: Sequence[Record]

    def read(self, index: int) -> Image.Image:
        """Decodes the image of `records[index]` as upright RGB.

        Raises:
          UnreadableImage: the image cannot be decoded; the message says why.
        """
