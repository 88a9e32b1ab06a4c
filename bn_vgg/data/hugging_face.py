"""Images of a Hugging Face set, from the Hub or a local folder."""

import hashlib
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bn_vgg.data import images
from bn_vgg.data.sources import Record, Source, is_folder
from bn_vgg.errors import NotFoundError, UserError, wrap_errors, wrap_import_errors

_ADVICE = "; check the name and the network; a folder is written hf:./folder"


def hugging_face_images(name: str) -> Source:
    """Opens `uoft-cs/cifar10`, `NAME:CONFIGURATION`, or a folder such as `./pets`.

    A folder is one that `save_to_disk` wrote, or that `load_dataset` can read. The first Image and
    the first ClassLabel column are used; rows without an image or with an unknown label are left
    out. Records have the dataset's splits if more than one of these has labelled images. A key is
    `train/00000012`, split and position. The fingerprint is a digest of classes, records and
    encoded images.

    Raises:
      UserError: `datasets` is not installed; there is no such set, it cannot be downloaded or read,
        or it is not for image classification.
    """
    splits = _load(name)
    features = next(iter(splits.values())).features
    image, label = (_first_column(name, features, kind) for kind in ("Image", "ClassLabel"))
    encoded = type(features[image])(decode=False)

    def rows() -> Iterator[tuple[str, int, int, bytes]]:
        with wrap_errors(f"cannot read the Hugging Face set {name!r}", _ADVICE):
            for split, dataset in splits.items():
                selected = dataset.select_columns([image, label]).cast_column(image, encoded)
                for position, row in enumerate(selected):
                    if row[image] and row[label] is not None and row[label] >= 0:
                        data, path = row[image]["bytes"], row[image]["path"]
                        yield split, position, row[label], data or Path(path).read_bytes()

    class_names = tuple(features[label].names)
    found = [(s, i, y, hashlib.sha256(data).hexdigest()) for s, i, y, data in rows()]
    several = len({split for split, *_ in found}) > 1
    return Source(
        description=f"Hugging Face {name} ({image}, {label}: {', '.join(splits)})",
        fingerprint=hashlib.sha256(repr((class_names, found)).encode()).hexdigest(),
        class_names=class_names,
        records=[Record(f"{s}/{i:08d}", y, s if several else "") for s, i, y, _ in found],
        readers=lambda: (partial(images.decode, data) for *_, data in rows()),
    )


def _load(name: str) -> dict[str, Any]:
    folder = os.path.expanduser(name) if is_folder(name) else None
    if folder and not os.path.isdir(folder):
        raise NotFoundError(f"config.data.source: no folder {folder!r}")
    with wrap_import_errors("hf"):
        import datasets
    with wrap_errors(f"cannot read the Hugging Face set {name!r}", _ADVICE):
        if folder and {"state.json", "dataset_dict.json"} & set(os.listdir(folder)):
            found = datasets.load_from_disk(folder)
        else:
            found = datasets.load_dataset(*([folder] if folder else name.split(":", 1)))
    found = {"train": found} if isinstance(found, datasets.Dataset) else found
    ours = {"train": "train", "validation": "validation", "valid": "validation",
            "val": "validation", "test": "test"}  # fmt: skip
    known = [split for split in found if split in ours]
    splits = {ours[split]: found[split] for split in known}
    if "train" in splits and len(splits) == len(known):
        return splits
    raise UserError(
        f"the Hugging Face set {name!r} needs a split train, and at most one each for validation "
        f"and test; it has: {', '.join(found)}"
    )


def _first_column(name: str, features: Any, kind: str) -> str:
    kinds = {column: type(feature).__name__ for column, feature in features.items()}
    if kind in kinds.values():
        return next(column for column, found in kinds.items() if found == kind)
    raise UserError(
        f"the Hugging Face set {name!r} is not for image classification, which needs an Image and "
        f"a ClassLabel: its columns are {', '.join(f'{x} ({k})' for x, k in kinds.items())}"
    )
