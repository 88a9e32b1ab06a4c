"""This machine: a process for each run, with GPUs, TPU chips or cores of its own."""

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
from bn_vgg.errors import UserError
from experiments.executors import Ended, Executor, Work

# The network's layers are small: two runs on a core each get through as much as one after the
# other on both cores, but one run on two cores is done sooner.
_CORES_A_RUN = 2
# How libtpu wants chips to lie that one process takes of a host's.
_CHIP_BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1"}
# A v2 or v3 chip has two devices. In a process of its own: the sweep must not hold the devices.
_ASK = """
import jax
devices = jax.local_devices()
tpu = devices[0].platform == "tpu"
print(devices[0].platform, len({tuple(d.coords) if tpu else d.id for d in devices}))
"""


@dataclass(frozen=True)
class Share:
    """What one run gets of the machine: variables set before JAX starts, and processor cores."""

    name: str
    environment: dict[str, str] = field(default_factory=dict)
    cores: tuple[int, ...] = ()  # none: all


class Process:
    """A process of Python whose output goes to a file.

    It is in a session of its own, so that Ctrl-C reaches it by `stop` alone (a second signal
    would end it at once), and is killed when the process that started it dies.
    """

    def __init__(
        self, arguments: Sequence[str], output: Path, environment: Mapping[str, str],
        cores: Sequence[int] = (),
    ):  # fmt: skip
        self._output = output
        output.parent.mkdir(parents=True, exist_ok=True)
        with output.open("wb") as file:
            self.popen = subprocess.Popen(
                [sys.executable, *arguments], env=os.environ | environment, stdout=file,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
                preexec_fn=lambda: _prepare_child(cores),
            )  # fmt: skip

    def poll(self) -> Ended | None:
        """How it ended; None while it is running."""
        status = self.popen.poll()
        if not status:
            return None if status is None else Ended(0)
        if status < 0:
            return Ended(status, f"its process ended with {signal.Signals(-status).name}")
        said = [line for line in self._output.read_text(errors="replace").splitlines() if line]
        errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
        last = (said or [f"see {self._output}"])[-1]
        return Ended(status, errors[-1] if errors else f"exit status {status}: {last}")


class Local(Executor):
    """The executor. `platform` is JAX's name of the hardware, once it is open."""

    def __init__(
        self, out: str, flags: Sequence[str], jobs: int | None = None, per_run: int | None = None
    ):
        """`jobs` and `per_run` are those of `share_out`."""
        super().__init__(out, flags)
        self._jobs, self._per_run = jobs, per_run
        self.platform = ""
        self._shares: list[Share] = []
        self._outputs = tempfile.mkdtemp(prefix="bn_vgg-") if "://" in out else out

    def open(self, work: Sequence[Work]) -> list[str]:
        done = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"JAX finds no devices: {done.stderr.strip().splitlines()[-1]}")
        self.platform, count = done.stdout.split()[-2:]
        os.environ.pop("SLURM_STEP_NUM_TASKS", None)  # other tasks make other runs, or shards
        cores = cli.usable_cores()
        shares = share_out(self.platform, int(count), cores, self._jobs, self._per_run)
        self._shares = shares[: len(work)]
        return [share.name for share in self._shares]

    def start(self, work: Work, slot: int) -> Process:
        share = self._shares[slot]
        output = Path(self._outputs, f"{work.name}.out")
        return Process(work.arguments, output, share.environment, share.cores)

    def poll(self, process: Process) -> Ended | None:
        return process.poll()

    def stop(self, process: Process) -> None:
        process.popen.terminate()


def share_out(
    platform: str, count: int, cores: Sequence[int], jobs: int | None, per_run: int | None
) -> list[Share]:
    """Divides `count` GPUs or TPU chips, or the cores that may be used, among runs.

    At most `jobs` (None: all that fit) get `per_run` each; None: 1 GPU, 1 chip, or an equal part of
    the cores, of 2 at least unless `jobs` says otherwise.

    Raises:
      UserError: `per_run` does not suit the hardware.
    """
    if platform == "cpu":
        least = min(per_run or (1 if jobs else _CORES_A_RUN), len(cores))
        jobs = min(jobs or len(cores), len(cores) // least)
        size = per_run or len(cores) // jobs  # the same for all: a CPU's sums depend on it
        if size >= len(cores):
            return [Share("all cores")]
        parts = [tuple(cores[i::jobs][:size]) for i in range(jobs)]
        return [Share(f"cores {','.join(map(str, part))}", cores=part) for part in parts]
    per_run = per_run or 1
    if per_run > count or (platform == "tpu" and per_run not in (*_CHIP_BOUNDS, count)):
        raise UserError(
            f"--devices_per_run={per_run}: there are {count} ({platform}); of a TPU 1, 2, 4 or all"
        )
    variable = {"gpu": "CUDA_VISIBLE_DEVICES", "tpu": "TPU_VISIBLE_CHIPS"}[platform]
    more = {}
    if platform == "tpu" and per_run < count:  # otherwise a process takes all chips of the host
        more = {
            "TPU_CHIPS_PER_PROCESS_BOUNDS": _CHIP_BOUNDS[per_run],
            "TPU_PROCESS_BOUNDS": "1,1,1",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        }
    given = os.environ.get(variable)
    names = given.split(",") if given else [str(i) for i in range(count)]
    groups = [",".join(names[i : i + per_run]) for i in range(0, count - per_run + 1, per_run)]
    return [Share(f"{platform.upper()} {group}", {variable: group} | more)
            for group in groups[:jobs]]  # fmt: skip


def _prepare_child(cores: Sequence[int]) -> None:
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    if sys.platform == "linux":  # a run that outlives its sweep would be in the next one's way
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
