"""Opens the source of images that `config.data.source` names."""

import os
import re

from bn_vgg.data.source import Source
from bn_vgg.errors import NotThereError, UserError

_CHOICES = (
    "config.data.source takes a TFDS name (cats_vs_dogs), a path or glob to zip files or "
    "folders, several with commas, or cartoons (cartoons:25000 for 25,000 of them)"
)


def kind(spec: str) -> str:
    """Returns `cartoons`, `files` or `tfds`.

    A bare word is always a name: a folder in the working directory is written `./name`.

    Raises:
      UserError: it is none of these.
    """
    if not spec:
        raise UserError(f"config.data.source is empty; {_CHOICES}")
    if re.fullmatch(r"cartoons(:\d{1,9})?", spec):
        return "cartoons"
    if re.fullmatch(r"\w+(:[\w.*]+)?", spec):
        return "tfds"
    if spec.startswith(("/", ".", "~")) or set(spec) & set("*?[,") or os.path.exists(spec):
        return "files"
    # With a builder's configuration, imagenet_resized/32x32; but data/PetImags is a mistyped path.
    is_path = spec.endswith(".zip") or os.path.isdir(spec.partition("/")[0])
    if re.fullmatch(r"\w+/[\w.-]+(:[\w.*]+)?", spec) and not is_path:
        return "tfds"
    raise NotThereError(f"config.data.source: no file or folder {spec!r}; {_CHOICES}")


def open_source(spec: str) -> Source:
    """Opens `spec`; imports what that kind of source needs, and only that."""
    match kind(spec):
        case "cartoons":
            from bn_vgg.data.cartoons import cartoons

            count = spec.partition(":")[2]
            return cartoons(int(count)) if count else cartoons()
        case "files":
            from bn_vgg.data.labels import labelled_files

            return labelled_files(spec)
        case _:
            from bn_vgg.data.tfds import tfds_images  # needs TFDS

            return tfds_images(spec)
