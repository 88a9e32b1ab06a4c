"""What tests of sweeps share: a stand-in for a run that starts at once, and the real command."""

from experiments.executors import Work
from experiments.executors.local import Local, Resources
from experiments.plan import PlannedRun
from tests.conftest import start_python
from tests.runs import lines, run

# Writes what a run writes; goes on where it was; keeps what it has when it is terminated.
FAKE_RUN = """
import json, os, pathlib, signal, sys, time
folder, epochs, mode = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
folder.mkdir(parents=True, exist_ok=True)
with (folder / "starts").open("a") as file:
    file.write("x")
starts = len((folder / "starts").read_text())
def terminate(*_):
    (folder / "kept").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, terminate)
if mode == "user error":
    print("some library's words\\nerror: no data for", sys.argv[4])
    sys.exit(2)
path = folder / "metrics.jsonl"
done = len(path.read_text().splitlines()) if path.exists() else 0
for epoch in range(done + 1, epochs + 1):
    with path.open("a") as file:
        line = {"epoch": epoch, "seconds": 2.0 * epoch, "train/error_rate": 0.25,
                "valid/error_rate": 0.5, "valid/best_error_rate": 0.5}
        file.write(json.dumps(line) + "\\n")
    if mode == "crash" or (mode == "crash once" and starts == 1):
        os.kill(os.getpid(), signal.SIGSEGV)
    if mode == "hang":
        time.sleep(60)
result = {"config": {"num_epochs": epochs}, "test_error_rate": 0.4}
(folder / "result.json").write_text(json.dumps(result))
"""


class FakeRuns(Local):
    """This machine, with stand-ins for runs; `modes` says what becomes of some, by name."""

    poll_seconds = 0.05
    stop_seconds = 20.0

    def __init__(self, out, modes):
        super().__init__(str(out), [])
        self.modes = modes

    def open(self, work):
        self._slots = [Resources("all cores")] * min(2, len(work))
        return ["all cores"] * len(self._slots)

    def divide(self, runs):
        return [
            Work(run.folder,
                 ("-c", FAKE_RUN, run.workdir(self._out), str(run.num_epochs),
                  self.modes.get(run.name, ""), run.folder), (run,))
            for run in runs
        ]  # fmt: skip


def planned(name, seed=0, num_epochs=2):
    return PlannedRun(name, seed, "configs/baseline.py", {}, num_epochs=num_epochs)


def write_preset(folder, source, epochs=2, *, short=True):
    """Writes a preset of a run of `epochs`, to kill it in, and a short one, at a tiny size."""
    path = folder / "tiny.py"
    path.write_text(f"""
def sweep():
    for name, epochs in (("long", {epochs}), ("short", 2))[: {1 + short}]:
        yield {{
            "config": "tests/tiny_config.py", "name": name, "model.norm": "none",
            "data.source": {str(source)!r}, "num_epochs": epochs,
        }}
""")
    return path


def run_alone(config, epochs, folder, cache_folder):
    """Makes the first run of that preset in this process; returns its lines."""
    config.update({"name": "long", "num_epochs": epochs})
    config.model.norm = "none"
    run(config, folder, cache_folder)
    return lines(folder)


def start(*arguments):
    """Starts `python -m experiments.sweep …` from the checkout."""
    return start_python("-m", "experiments.sweep", *arguments)


def finish(process, status=0):
    """Waits for a sweep; returns what it printed and what it said of errors."""
    out, errors = process.communicate(timeout=600)
    assert process.returncode == status, out + errors
    assert "Traceback" not in errors
    return out, errors
