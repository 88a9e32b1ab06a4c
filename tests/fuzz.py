"""A coverage-guided fuzzer of what reads images and archives; not part of the tests.

python -m tests.fuzz --seconds=60 --target=images --out=runs/fuzz

It begins with tests/rubbish_images.py's or tests/rubbish_archives.py's inputs, looks for others
that reach new lines, and ends with status 0 or at the first that is neither read nor refused in
one line, or takes more than 2 GiB or a minute: that one is kept as `OUT/TARGET/crash-…`. What
it found useful is kept beside it, for the next time. Images of more than 4 million pixels are
refused here, so that it does not spend its time on decoding the largest.
"""

import argparse
import contextlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--target", choices=list(TARGETS), default="images")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"))
    parser.add_argument("--replay", type=Path, help="only one file that was kept")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.replay:
        TARGETS[options.target](options.replay.read_bytes())
        print(f"{options.replay}: no crash")
        return 0
    out = options.out / options.target
    if options.inside:
        fuzz(options.target, options.seconds, out)
    if importlib.util.find_spec("atheris") is None:
        print(
            "error: the fuzzer needs Atheris, which there is for Linux: pip install -e '.[fuzz]'",
            file=sys.stderr,
        )
        return 2
    (out / "corpus").mkdir(parents=True, exist_ok=True)
    with (out / "log.txt").open("w") as log:  # the decoders' own complaints fill pages
        status = subprocess.run(
            [sys.executable, "-m", "tests.fuzz", "--inside", *sys.argv[1:]], stdout=log, stderr=log
        ).returncode
    text = (out / "log.txt").read_text(errors="replace")
    found = dict(re.findall(r"stat::(\w+): +([0-9]+)", text))
    print(
        f"{options.target}: {found.get('number_of_executed_units', 'unknown')} executions, "
        f"{found.get('new_units_added', 'unknown')} new inputs kept, at most "
        f"{found.get('peak_rss_mb', 'unknown')} MiB; {'no crash' if status == 0 else 'CRASH'}"
        f", see {out}"
    )
    return status


def fuzz(target: str, seconds: int, out: Path) -> None:
    """Does not return: libFuzzer ends the process itself."""
    import atheris

    # Of these alone the lines that are reached are seen, Pillow's C code is not.
    for name in [name for name in sys.modules if name.partition(".")[0] in ("zipfile", "PIL")]:
        del sys.modules[name]
    with atheris.instrument_imports(include=["PIL", "zipfile", "bn_vgg.data"]):
        import PIL.Image

        import bn_vgg.data.labelled_files

        PIL.Image.init()
    bn_vgg.data.images.MAX_PIXELS = 4_000_000
    if not any((out / "corpus").iterdir()):
        write_seeds(target, out / "corpus")
    warnings.simplefilter("ignore")
    atheris.Setup(
        [
            "fuzz", f"-max_total_time={seconds}", f"-artifact_prefix={out}/", "-timeout=60",
            "-rss_limit_mb=2048", "-max_len=20000", "-print_final_stats=1",
            str(out / "corpus"),
        ],
        TARGETS[target],
    )  # fmt: skip
    atheris.Fuzz()


def write_seeds(target: str, corpus: Path) -> None:
    from tests.rubbish_archives import damaged_archives
    from tests.rubbish_images import damaged_images, sound_images

    if target == "images":
        seeds = [*sound_images().values(), *(rubbish.data for rubbish in damaged_images())]
    else:
        seeds = [rubbish.data for rubbish in damaged_archives("/outside")]
    for i, data in enumerate(seeds):
        if len(data) <= 20_000:
            (corpus / f"seed{i}").write_bytes(data)


def read_image(data: bytes) -> None:
    from bn_vgg.data import images

    with contextlib.suppress(images.UnreadableImage):
        image = checked(images.UnreadableImage, lambda: images.decode(data))
        assert image.mode == "RGB"
        scaled = checked(images.UnreadableImage, lambda: images.scale_shorter_side(image, 16))
        assert min(scaled.size) == 16


def read_archive(data: bytes) -> None:
    from bn_vgg.data.files import list_images
    from bn_vgg.data.images import UnreadableImage
    from bn_vgg.data.labelled_files import LabelledFiles
    from bn_vgg.errors import UserError

    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as top:
        path = Path(top) / "in" / "x.zip"
        path.parent.mkdir()
        path.write_bytes(data)
        for call in (list_images, LabelledFiles):
            with contextlib.suppress(UserError):
                found = checked(UserError, lambda call=call: call(str(path)))
                for file in found if isinstance(found, list) else []:
                    assert len(file.name.splitlines()) == 1
                    with contextlib.suppress(UnreadableImage):
                        checked(UnreadableImage, file.decode)
        written = sorted(str(p.relative_to(top)) for p in Path(top).rglob("*"))
        assert written == ["in", "in/x.zip"], written


def checked(refusal: type[Exception], call):
    """Calls; what it refuses it refuses in one line."""
    try:
        return call()
    except refusal as error:
        reason = str(error)
        if len(reason.splitlines()) != 1:
            raise AssertionError(f"not one line: {reason!r}") from error
        raise


TARGETS = {"images": read_image, "archives": read_archive}


if __name__ == "__main__":
    sys.exit(main())
