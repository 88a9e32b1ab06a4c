"""Predicts class probabilities of images with a run's best checkpoint, by five-crop evaluation.

python -m bn_vgg.predict --workdir=DIR --images=PATH_OR_GLOB_OR_ZIP --output=out.csv
"""

import csv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

from bn_vgg import api, cli
from bn_vgg.data import files, images
from bn_vgg.data.cache import choose_folder
from bn_vgg.errors import EXIT_UNREADABLE

_WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder.", required=True)
_IMAGES = flags.DEFINE_string(
    "images", None, "Comma-separated images, folders, zip files or globs.", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "The CSV file to write.", required=True)


def main() -> int:
    """Runs the command."""
    cli.check_backend()
    cli.enable_compilation_cache(choose_folder())
    run = api.load(_WORKDIR.value)
    found = files.list_images(_IMAGES.value)
    output = Path(_OUTPUT.value)
    unreadable = 0
    with (
        cli.atomic_write(output) as partial,
        partial.open("w", newline="", encoding="utf-8") as file,
    ):
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["file", "label", *(f"p_{name}" for name in run.class_names)])
        predictions = zip(found, predict(run, found), strict=True)
        for each, result in tqdm(predictions, total=len(found), unit=" images", disable=None):
            unreadable += isinstance(result, str)
            rows.writerow(_row(each.name, result, run.class_names))
    print(f"{output}: {len(found) - unreadable} images, best checkpoint of step {run.step}")
    if unreadable:
        print(f"{unreadable} images could not be read; their rows in {output} say why")
    return EXIT_UNREADABLE if unreadable else 0


def predict(run: api.TrainedModel, found: list[files.ImageFile]) -> Iterator[np.ndarray | str]:
    """Yields for each file its class probabilities, or the reason why it cannot be read."""

    def read(file: files.ImageFile) -> np.ndarray | str:
        try:
            return run.crops(file.decode())
        except images.UnreadableImage as error:
            return str(error)

    with ThreadPoolExecutor() as pool:
        for first in range(0, len(found), api.PREDICT_BATCH_SIZE):
            results = list(pool.map(read, found[first : first + api.PREDICT_BATCH_SIZE]))
            crops = [result for result in results if not isinstance(result, str)]
            probabilities = iter(run.predict_crops(crops))
            for result in results:
                yield result if isinstance(result, str) else next(probabilities)


def _row(name: str, result: np.ndarray | str, class_names: list[str]) -> list[Any]:
    if isinstance(result, str):
        return [name, f"unreadable: {result}"] + [""] * len(class_names)
    return [name, class_names[int(result.argmax())], *(f"{p:.6f}" for p in result)]


if __name__ == "__main__":
    cli.run(main)
