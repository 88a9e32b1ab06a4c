"""Class probabilities for images, by the five-window rule, from a run's best checkpoint.

python -m bn_vgg.predict --workdir=DIR --images=PATH_OR_GLOB_OR_ZIP --output=out.csv
"""

import csv
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from bn_vgg import cli, trained
from bn_vgg.data import files, images
from bn_vgg.data.cache import choose_folder
from bn_vgg.data.windows import five_windows
from bn_vgg.errors import EXIT_UNREADABLE, UserError
from bn_vgg.steps import make_predict_step

_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder.", required=True)
_IMAGES = flags.DEFINE_string(
    "images", None, "Files, folders, zip files or globs of them, with commas.", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "The CSV file to write.", required=True)
_FORMAT = flags.DEFINE_enum(
    "format", "probabilities", ["probabilities", "kaggle"], "Columns of the CSV file."
)

_BATCH = 100


class Prediction(NamedTuple):
    """What was found for one image: probabilities, or why there are none."""

    name: str
    probabilities: np.ndarray | None
    error: str = ""


def main() -> int:
    """Runs the command."""
    cli.keep_compiled(choose_folder())
    run = trained.load(_WORKDIR.value)
    found = files.list_images(_IMAGES.value)
    if _FORMAT.value == "kaggle":
        found = sorted(found, key=lambda file: _kaggle_id(file.name))
        for one, other in itertools.pairwise(found):
            if _kaggle_id(one.name) == _kaggle_id(other.name):
                raise UserError(f"--format=kaggle: {one.name} and {other.name} have the same id")
        if len(run.class_names) != 2:
            raise UserError(f"--format=kaggle is for two classes, not {len(run.class_names)}")
    output = Path(_OUTPUT.value)
    if not output.name:
        raise UserError(f"--output={_OUTPUT.value} is no file: name the CSV file to write")
    unreadable = 0
    try:
        with (
            cli.replacing(output) as partial,
            partial.open("w", newline="", encoding="utf-8") as file,
        ):
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(_header(run.class_names))
            bar = tqdm(predict(run, found), total=len(found), unit=" images", disable=None)
            for prediction in bar:
                unreadable += prediction.probabilities is None
                rows.writerow(_row(prediction, run.class_names))
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror or error}") from error
    print(f"{output}: {len(found) - unreadable} images, best checkpoint of step {run.step}")
    if unreadable:
        print(f"{unreadable} images could not be read; their rows in {output} say why")
    return EXIT_UNREADABLE if unreadable else 0


def predict(run: trained.Trained, found: list[files.ImageFile]) -> Iterator[Prediction]:
    """Yields a prediction for each file, in order."""
    step = jax.jit(make_predict_step(run.model))
    state = jax.device_put(run.state)
    min_side, crop = run.config["data"]["min_side"], run.config["data"]["crop_size"]

    def read(file: files.ImageFile) -> np.ndarray | images.UnreadableImage:
        image = images.read_scaled(file.decode, min_side)
        return five_windows(image, crop) if isinstance(image, np.ndarray) else image

    with ThreadPoolExecutor() as pool:
        for first in range(0, len(found), _BATCH):
            chunk = found[first : first + _BATCH]
            results = list(pool.map(read, chunk))
            windows = [result for result in results if isinstance(result, np.ndarray)]
            if windows:
                # Always the same shape, so that it is compiled once.
                padded = np.resize(np.stack(windows), (_BATCH, *windows[0].shape))
                probabilities = iter(np.asarray(step(state, padded)))
            for file, result in zip(chunk, results, strict=True):
                if isinstance(result, np.ndarray):
                    yield Prediction(file.name, next(probabilities))
                else:
                    yield Prediction(file.name, None, str(result))


def _header(class_names: list[str]) -> list[str]:
    if _FORMAT.value == "kaggle":
        return ["id", "label"]
    return ["file", "label", *(f"p_{name}" for name in class_names)]


def _row(prediction: Prediction, class_names: list[str]) -> list[Any]:
    kaggle = _FORMAT.value == "kaggle"
    name = _kaggle_id(prediction.name) if kaggle else prediction.name
    if prediction.probabilities is None:
        return [name, f"unreadable: {prediction.error}"] + [""] * (
            0 if kaggle else len(class_names)
        )
    label = int(prediction.probabilities.argmax())
    if kaggle:
        return [name, label]
    return [name, class_names[label], *(f"{p:.6f}" for p in prediction.probabilities)]


def _kaggle_id(name: str) -> int:
    stem = PurePosixPath(name).stem
    if not stem.isdecimal() or len(stem) > 18:  # int() refuses more than 4,300 digits
        raise UserError(f"--format=kaggle: {name} is not called by its id, as 1.jpg is")
    return int(stem)


if __name__ == "__main__":
    cli.run(main)
