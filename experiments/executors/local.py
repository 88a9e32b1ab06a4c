"""The executor for this machine: each run is a process with its own GPUs, TPU chips or cores."""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bn_vgg import cli
from bn_vgg.errors import UserError, wrap_write_errors
from experiments.executors import Executor, Outcome, Work

# Two runs at once, on one core each, take as long as one after the other on both cores, because the
# layers are small; but one after the other the first is finished sooner.
_MIN_CORES = 2
# libtpu's settings of a process that has one chip of a host.
_ONE_CHIP = {
    "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
    "TPU_PROCESS_BOUNDS": "1,1,1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# Run in another process, because the sweep itself must not occupy the devices. A TPU v2 or v3 chip
# has two devices.
_COUNT_DEVICES = """
import jax
devices = jax.local_devices()
tpu = devices[0].platform == "tpu"
print(devices[0].platform, len({tuple(d.coords) if tpu else d.id for d in devices}))
"""


@dataclass(frozen=True)
class Resources:
    """A run's part of the machine: environment variables, set before JAX starts, and CPU cores."""

    name: str
    environment: dict[str, str] = field(default_factory=dict)
    cores: tuple[int, ...] = ()  # empty: all


class Process:
    """A Python process whose output goes to a file.

    It has its own session, so that only `stop` sends it a signal after Ctrl-C (a second one would
    end it at once). It is killed when its parent process dies.
    """

    def __init__(
        self, arguments: Sequence[str], output: Path, environment: Mapping[str, str],
        cores: Sequence[int] = (),
    ):  # fmt: skip
        self._output = output
        with wrap_write_errors(str(output)):
            output.parent.mkdir(parents=True, exist_ok=True)
            file = output.open("wb")
        with file:
            self.popen = subprocess.Popen(
                [sys.executable, *arguments], env=os.environ | environment, stdout=file,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
                preexec_fn=lambda: _prepare_child(cores),
            )  # fmt: skip

    def poll(self) -> Outcome | None:
        """Returns how it ended; None while it is running."""
        status = self.popen.poll()
        if not status:
            return None if status is None else Outcome(0)
        if status < 0:
            return Outcome(status, f"its process ended with {signal.Signals(-status).name}")
        said = [line for line in self._output.read_text(errors="replace").splitlines() if line]
        errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
        last = (said or [f"see {self._output}"])[-1]
        return Outcome(status, errors[-1] if errors else f"exit status {status}: {last}")


class Local(Executor):
    """See `Executor`. `platform` is JAX's name of the hardware, after `open`."""

    def __init__(
        self, out: str, flags: Sequence[str], jobs: int | None = None, per_run: int | None = None
    ):
        """For `jobs` and `per_run` see `divide_hardware`."""
        super().__init__(out, flags)
        self._jobs, self._per_run = jobs, per_run
        self.platform = ""
        self._slots: list[Resources] = []
        self._outputs = tempfile.mkdtemp(prefix="bn_vgg-") if "://" in out else out

    def open(self, work: Sequence[Work]) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", _COUNT_DEVICES], capture_output=True, text=True
        )
        if done.returncode:
            raise UserError(f"JAX finds no devices: {done.stderr.strip().splitlines()[-1]}")
        self.platform, count = done.stdout.split()[-2:]
        if self.platform == "cpu" and done.stderr:  # such as: a GPU is there, but not jax[cuda]
            cli.show(done.stderr.strip().splitlines()[-1])
        os.environ.pop("SLURM_STEP_NUM_TASKS", None)  # each Slurm task has runs of its own
        cores = cli.usable_cores()
        shares = divide_hardware(self.platform, int(count), cores, self._jobs, self._per_run)
        self._slots = shares[: len(work)]
        return [share.name for share in self._slots]

    def start(self, work: Work, slot: int) -> Process:
        share = self._slots[slot]
        output = Path(self._outputs, f"{work.name}.out")
        return Process(work.arguments, output, share.environment, share.cores)

    def poll(self, process: Process) -> Outcome | None:
        return process.poll()

    def stop(self, process: Process) -> None:
        process.popen.terminate()


def divide_hardware(
    platform: str, count: int, cores: Sequence[int], jobs: int | None, per_run: int | None
) -> list[Resources]:
    """Divides `count` GPUs or TPU chips, or the usable CPU cores, among runs.

    At most `jobs` runs (None: as many as fit) get `per_run` each; None means 1 GPU, 1 chip, or an
    equal part of the cores, which is at least 2 cores unless `jobs` is given.

    Raises:
      UserError: `per_run` does not suit the hardware.
    """
    if platform == "cpu":
        least = min(per_run or (1 if jobs else _MIN_CORES), len(cores))
        jobs = min(jobs or len(cores), len(cores) // least)
        size = per_run or len(cores) // jobs  # the same for all, because sums depend on it
        if size >= len(cores):
            return [Resources("all cores")]
        parts = [tuple(cores[i::jobs][:size]) for i in range(jobs)]
        return [Resources(f"cores {','.join(map(str, part))}", cores=part) for part in parts]
    per_run = per_run or 1
    if per_run > count or (platform == "tpu" and per_run not in (1, count)):
        raise UserError(
            f"--devices_per_run={per_run}: {count} available ({platform}); on a TPU 1 or all"
        )
    variable = {"gpu": "CUDA_VISIBLE_DEVICES", "tpu": "TPU_VISIBLE_CHIPS"}[platform]
    more = _ONE_CHIP if platform == "tpu" and per_run < count else {}
    given = os.environ.get(variable)
    names = given.split(",") if given else [str(i) for i in range(count)]
    groups = [",".join(names[i : i + per_run]) for i in range(0, count - per_run + 1, per_run)]
    return [Resources(f"{platform.upper()} {group}", {variable: group} | more)
            for group in groups[:jobs]]  # fmt: skip


def _prepare_child(cores: Sequence[int]) -> None:
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    if sys.platform == "linux":  # a run must not outlive its sweep
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
