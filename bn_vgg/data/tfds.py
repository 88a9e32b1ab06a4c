"""Images of a TensorFlow Datasets (TFDS) set.

Imported only to build a cache from a TFDS set, because TFDS and TensorFlow take seconds to import.
"""

import contextlib
import difflib
import hashlib
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from bn_vgg.data import images
from bn_vgg.data.sources import Record, Source
from bn_vgg.errors import UserError, wrap_errors

SPLITS = ("train", "validation", "test")

_CATALOG = "https://tensorflow.org/datasets/catalog"
_OTHERS = "config.data.source also takes a path or glob to zip files or folders, or cartoons"


with wrap_errors("cannot import TensorFlow Datasets", "; reinstall tensorflow-datasets"):
    import tensorflow as tf
    import tensorflow_datasets as tfds


def tfds_images(name: str, *, data_dir: str | None = None) -> Source:
    """Opens the images of a TFDS set, which TFDS downloads and prepares if necessary.

    The set needs an 8-bit image and a class label at the top level of its features. Images with a
    negative (unknown) label are left out. Records have TFDS's splits if more than one of
    these has labelled images.

    A key is `cat/12.jpg`, class and file name as in `labelled_files`, if the set has file names and
    these keys are unique; otherwise `train/00000012`, TFDS's split and position.

    The fingerprint is a digest of name, configuration, version, image feature, classes and records.
    It does not cover the encoded images, because those of cats_vs_dogs vary between machines; TFDS
    changes the version when the images change.

    Raises:
      UserError: there is no such set, it is not for image classification, or it cannot be
        downloaded, written or read.
    """
    builder = _builder(name, data_dir)
    # Checked before gigabytes are downloaded.
    image_key, label_key = _image_and_label(name, builder.info)
    _prepare(builder)
    info = builder.info
    # image/filename in cats_vs_dogs, file_name in imagenet2012.
    texts = [key for key in info.features if isinstance(info.features[key], tfds.features.Text)]
    file_keys = [key for key in texts if re.search("file_?name$", key)][:1]

    def file_name(example: dict[str, Any]) -> str:
        paths = [example[key].decode(errors="replace") for key in file_keys]
        # `@` has a meaning in a key, see `Record`.
        return re.split(r"[/\\]", paths[0])[-1].replace("@", "%40") if paths else ""

    rows = [
        (split, position, int(example[label_key]), file_name(example))
        for split, position, example in _labelled(builder, label_key)
    ]
    if not rows:
        raise UserError(
            f"the TFDS set {info.full_name} has no labelled images in {', '.join(SPLITS)} "
            f"(its splits: {', '.join(info.splits) or 'none'}); choose another set; {_OTHERS}"
        )
    class_names = tuple(info.features[label_key].names)
    keys = [f"{class_names[label]}/{name}" for _, _, label, name in rows]
    if not all(name for *_, name in rows) or len(set(keys)) < len(keys):
        keys = [f"{split}/{position:08d}" for split, position, *_ in rows]
    several = len({split for split, *_ in rows}) > 1
    records = [
        Record(key, label, split if several else "")
        for key, (split, _, label, _) in zip(keys, rows, strict=True)
    ]
    content = info.full_name, image_key, class_names, [tuple(record) for record in records]

    def readers() -> Iterator[Callable[[], Image.Image]]:
        for _, _, example in _labelled(builder, label_key):
            yield partial(images.decode, example[image_key])

    return Source(
        description=f"TFDS {info.full_name}",
        fingerprint=hashlib.sha256(repr(content).encode()).hexdigest(),
        class_names=class_names,
        records=records,
        readers=readers,
    )


def _builder(name: str, data_dir: str | None) -> Any:
    with wrap_errors(f"TFDS cannot open {name!r}", f"; see {_CATALOG}; {_OTHERS}"):
        try:
            return tfds.builder(name, data_dir=data_dir)
        except tfds.core.DatasetNotFoundError as error:  # its message lists a thousand sets
            known = tfds.list_builders(with_community_datasets=False)
            close = difflib.get_close_matches(name, known, n=1)
            guess = f"did you mean {close[0]}? " if close else ""
            raise UserError(
                f"there is no TFDS set {name!r}; {guess}write a folder as ./{name}; {_OTHERS}"
            ) from error


def _image_and_label(name: str, info: Any) -> tuple[str, str]:
    is_dict = isinstance(info.features, tfds.features.FeaturesDict)
    features = dict(info.features.items()) if is_dict else {"": info.features}
    for pair in (info.supervised_keys, ("image", "label")):
        # There may be no supervised keys, three of them, or nested ones.
        if not pair or len(pair) != 2 or not all(isinstance(key, str) for key in pair):
            continue
        image, label = map(features.get, pair)
        is_image = isinstance(image, tfds.features.Image) and image.np_dtype == np.uint8
        if is_image and isinstance(label, tfds.features.ClassLabel) and label.num_classes:
            return pair
    found = ", ".join(f"{key} ({type(value).__name__})" for key, value in features.items())
    raise UserError(
        f"the TFDS set {name!r} is not for image classification, which takes an 8-bit Image and "
        f"a ClassLabel: its features are {found}; choose another set; {_OTHERS}"
    )


def _prepare(builder: Any) -> None:
    advice = (
        f"; check the network, and that {builder.data_dir} can be written and has room "
        f"(TFDS_DATA_DIR sets another folder); {_OTHERS}"
    )
    with wrap_errors(f"TFDS cannot download and prepare {builder.info.full_name}", advice):
        with contextlib.suppress(RuntimeError):
            tf.config.set_visible_devices([], "GPU")  # JAX needs its memory
        with contextlib.suppress(ImportError):
            from tensorflow_datasets.core.download import downloader

            # Without a network TFDS's 10 retries take 204 seconds, 5 take 6.
            downloader.MAX_RETRIES = 5
        with contextlib.redirect_stdout(sys.stderr):
            # Does nothing if the set is already prepared, in any format.
            builder.download_and_prepare()


def _labelled(builder: Any, label: str) -> Iterator[tuple[str, int, dict]]:
    """Yields split, position and features of all labelled examples, with encoded images."""
    features = builder.info.features
    encoded = [key for key in features if isinstance(features[key], tfds.features.Image)]
    decoders = dict.fromkeys(encoded, tfds.decode.SkipDecoding())
    in_order = tfds.ReadConfig(interleave_cycle_length=1)
    advice = f"; delete {builder.data_dir} or set TFDS_DATA_DIR to another folder, and run again"
    with wrap_errors(f"cannot read the TFDS set {builder.info.full_name}", advice):
        for split in filter(builder.info.splits.__contains__, SPLITS):
            if builder.info.file_format.value == "array_record":  # which tf.data cannot read
                examples = builder.as_data_source(split, decoders=decoders)
            else:
                dataset = builder.as_dataset(split, decoders=decoders, read_config=in_order)
                examples = dataset.as_numpy_iterator()
            for position, example in enumerate(examples):
                if example[label] >= 0:
                    yield split, position, example
