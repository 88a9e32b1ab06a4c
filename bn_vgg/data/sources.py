"""From the text of `config.data.source` to a source of images."""

import os
import re

from bn_vgg.data.source import Source
from bn_vgg.errors import NotThereError, UserError

OTHER_SOURCES = (
    "config.data.source takes a TFDS name (cats_vs_dogs), a path or glob to zip files or "
    "folders, several with commas, or cartoons (cartoons:25000 for so many)"
)


def kind(spec: str) -> str:
    """Says what `spec` names: `cartoons` (`cartoons:25000` for so many), `files` or `tfds`.

    A bare word is always a name, never a file that happens to be called so: a folder in
    the working directory is written `./name`.

    Raises:
      UserError: it is none of these.
    """
    if not spec:
        raise UserError(f"config.data.source is empty; {OTHER_SOURCES}")
    if re.fullmatch(r"cartoons(:\d+)?", spec):
        return "cartoons"
    if re.fullmatch(r"\w+(:[\w.*]+)?", spec):
        return "tfds"
    if spec.startswith(("/", ".", "~")) or set(spec) & set("*?[,") or os.path.exists(spec):
        return "files"
    if re.fullmatch(r"\w+/[\w.-]+(:[\w.*]+)?", spec) and not spec.endswith(".zip"):
        return "tfds"  # with a builder configuration: imagenet_resized/32x32
    raise NotThereError(f"config.data.source: no file or folder {spec!r}; {OTHER_SOURCES}")


def open_source(spec: str) -> Source:
    """Opens `spec`; imports what that kind of source needs, and only that."""
    match kind(spec):
        case "cartoons":
            from bn_vgg.data.cartoons import Cartoons

            number = spec.partition(":")[2]
            if len(number) > 9:  # int() refuses more than 4,300 digits
                raise UserError(f"config.data.source={spec}: that is more than can be drawn")
            return Cartoons(num_images=int(number)) if number else Cartoons()
        case "files":
            from bn_vgg.data.labelled_files import LabelledFiles

            return LabelledFiles(spec)
        case _:
            from bn_vgg.data.tfds_source import TfdsImages  # needs TFDS

            return TfdsImages(spec)
