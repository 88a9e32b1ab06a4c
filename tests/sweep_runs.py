"""What tests of sweeps share: a tiny sweep and its command."""

import subprocess
import sys

from tests.conftest import ROOT


def write_preset(folder, source, epochs=2):
    """Writes a preset of two norms at a tiny size; `epochs` are of the first, to kill it in."""
    path = folder / "tiny_norms.py"
    path.write_text(f"""
def sweep():
    for norm, epochs in (("none", {epochs}), ("mean_only", 2)):
        yield {{
            "config": "tests/tiny_config.py", "name": norm, "model.norm": norm,
            "data.source": {str(source)!r}, "num_epochs": epochs,
        }}
""")
    return path


def start(*arguments, module="sweep"):
    """Starts `python -m experiments.sweep …` from the checkout."""
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{module}", *map(str, arguments)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process, status=0):
    """Waits for a sweep; returns what it printed and what it said of errors."""
    out, errors = process.communicate(timeout=600)
    assert process.returncode == status, out + errors
    assert "Traceback" not in errors
    return out, errors
