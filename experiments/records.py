"""What of a run is kept in a record: small files that say what it was and what it gave."""

import shutil
from pathlib import Path

# result.json last: with it a run is finished.
KEPT = ("config.json", "data.json", "metrics.jsonl", "result.json")


def keep_run(folder: Path, target: Path) -> None:
    """Copies a run's small files, as far as they are there.

    Args:
      folder: of the run.
      target: of the record; made where it is missing.
    """
    for name in KEPT:
        if (folder / name).exists():
            target.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, target / name)
