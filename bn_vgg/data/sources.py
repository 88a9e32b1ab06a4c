"""Sources of labelled images, and how `config.data.source` selects one."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image

from bn_vgg.errors import NotFoundError, UserError

_CHOICES = (
    "config.data.source takes a TFDS name (cats_vs_dogs), a Hugging Face name "
    "(hf:uoft-cs/cifar10), a path or glob to zip files or folders, several with commas, or "
    "cartoons (cartoons:25000 for 25,000 of them)"
)


class Record(NamedTuple):
    """One labelled image, before it is read."""

    # Unique. The split depends on the part before an `@`, so that copies of an image share one.
    key: str
    label: int  # index into the source's `class_names`
    split: str = ""  # `train`, `validation` or `test` if the publisher assigned one


@dataclass(frozen=True)
class Source:
    """Labelled images."""

    description: str  # for messages and reports
    fingerprint: str  # hexadecimal digest that changes with the content
    class_names: tuple[str, ...]
    records: Sequence[Record]  # in an order that depends only on the content
    # Returns a function for each record, in order, which decodes the image as upright RGB in any
    # thread, or raises UnreadableImage.
    readers: Callable[[], Iterable[Callable[[], Image.Image]]]


def source_kind(spec: str) -> str:
    """Returns `cartoons`, `files`, `tfds`, `hf` or `hf_folder`, or raises a UserError.

    A single word is a TFDS name; a folder in the working directory is written `./name`. After `hf:`
    an existing folder takes precedence over a name.
    """
    if not spec:
        raise UserError(f"config.data.source is empty; {_CHOICES}")
    if re.fullmatch(r"cartoons(:\d{1,9})?", spec):
        return "cartoons"
    if re.match("hf:.", spec):
        return "hf_folder" if is_folder(spec[3:]) else "hf"
    if re.fullmatch(r"\w+(:[\w.*]+)?|\w+/[\w.-]+:[\w.*]+", spec):
        return "tfds"
    if spec.startswith(("/", ".", "~")) or set(spec) & set("*?[,") or os.path.exists(spec):
        return "files"
    # imagenet_resized/32x32 is a TFDS name; data/PetImags is a mistyped path if data/ exists.
    is_path = spec.endswith(".zip") or os.path.isdir(spec.partition("/")[0])
    if re.fullmatch(r"\w+/[\w.-]+", spec) and not is_path:
        return "tfds"
    raise NotFoundError(f"config.data.source: no file or folder {spec!r}; {_CHOICES}")


def is_folder(name: str) -> bool:
    """Whether the part after `hf:` is a local folder, not a name on the Hub."""
    return name.startswith(("/", ".", "~")) or os.path.isdir(name)


def open_source(spec: str) -> Source:
    """Opens `config.data.source`; imports only the libraries that it needs."""
    match source_kind(spec):
        case "cartoons":
            from bn_vgg.data.cartoons import cartoons

            count = spec.partition(":")[2]
            return cartoons(int(count)) if count else cartoons()
        case "files":
            from bn_vgg.data.labels import labelled_files

            return labelled_files(spec)
        case "hf" | "hf_folder":
            from bn_vgg.data.hugging_face import hugging_face_images

            return hugging_face_images(spec[3:])
        case _:
            from bn_vgg.data.tfds import tfds_images

            return tfds_images(spec)
