"""SkyPilot: a managed job for each run, on a Cloud TPU VM or whatever the task file asks for.

SkyPilot makes the machines, tries other zones, and begins a job again that was preempted; the
run goes on from its working directory in the bucket, which is also where its results are read.
"""

import hashlib
import shlex
import threading
from pathlib import Path
from typing import Any

from bn_vgg import cli, provenance
from bn_vgg.errors import UserError, one_line
from bn_vgg.run_dir import Workdir
from experiments.sweeping.backend import EpochReporter, Outcome, Say, Slot
from experiments.sweeping.plan import PlannedRun

TASK = Path(__file__).resolve().parents[1] / "tpu_vm.yaml"
_ROOT = TASK.parents[1]
_SECONDS_BETWEEN_LOOKS = 30.0
_SIZES = (1, 4, 8, 16, 32, 64, 128, 256)
# JAX's devices of each kind of TPU: its chips. A v5p is called by its cores, two a chip.
DEVICES = {f"tpu-v5litepod-{size}": size for size in _SIZES}
DEVICES |= {f"tpu-v6e-{size}": size for size in _SIZES}
DEVICES |= {f"tpu-v5p-{size}": size // 2 for size in (8, 16, 32, 64, 128, 256)}


class SkyJobs:
    """The backend."""

    def __init__(self, out: str, flags: list[str], task_file: str):
        """Prepares, without a call.

        Args:
          out: the sweep's address, `gs://…`.
          flags: of `bn_vgg.main`, besides the configuration and the workdir.
          task_file: a SkyPilot task that reads the variables ARGUMENTS and COMMIT.

        Raises:
          UserError: `out` is a folder of this machine, SkyPilot is not installed, or the task
            cannot be read or asks for a TPU that is not known.
        """
        if not out.startswith("gs://"):
            raise UserError(f"--out={out}: with sky it is an address that all see, gs://BUCKET/…")
        self._out, self._flags, self._task_file = out, flags, task_file
        self._sky = _import_sky()
        self._make_task()

    def commands(self, runs: list[PlannedRun]) -> list[str]:
        """What would launch the same jobs from a shell."""
        return [
            shlex.join([
                "sky", "jobs", "launch", "--yes", f"--name={self.job_name(run)}",
                f"--env=ARGUMENTS={self._arguments(run)}", f"--env=COMMIT={provenance.commit()}",
                self._task_file,
            ])
            for run in runs
        ]  # fmt: skip

    def slots(self, runs: list[PlannedRun], say: Say) -> list[Slot]:
        """A slot for each run: SkyPilot queues those that there is no room for.

        Raises:
          UserError: the devices of the task's TPU cannot share a run's batch.
        """
        accelerators = [
            name for each in self._make_task().resources for name in each.accelerators or ()
        ]
        for run in runs:
            batch_size = cli.load_config(run.config_arguments).batch_size
            for accelerator in accelerators:
                if batch_size % DEVICES.get(accelerator, 1):
                    raise UserError(
                        f"{run.folder}: the {DEVICES[accelerator]} devices of {accelerator} cannot "
                        f"share batches of {batch_size}; change one with --set=batch_size=… or in "
                        "the file of --sky_task"
                    )
        say(f"{len(runs)} runs to do as managed jobs of SkyPilot, {', '.join(accelerators)}")
        return [_Job(f"SkyPilot job {i}", self, say) for i in range(len(runs))]

    def close(self) -> None:
        """See `Backend`: the slots share nothing."""

    def job_name(self, run: PlannedRun) -> str:
        """The same from start to start, so that a sweep that was killed finds its jobs again."""
        digest = hashlib.blake2b(run.workdir(self._out).encode(), digest_size=5).hexdigest()
        return f"bn-vgg-{digest}"

    def find(self, run: PlannedRun) -> int | None:
        """Returns the id of the run's unfinished job, if there is one."""
        records = self._queue(skip_finished=True, name_match=self.job_name(run))
        return next((each.job_id for each in records), None)

    def launch(self, run: PlannedRun) -> int:
        """Launches the run's job and returns its id."""
        task = self._make_task()
        task.update_envs({"ARGUMENTS": self._arguments(run), "COMMIT": str(provenance.commit())})
        (job_id,), _ = self._sky.get(self._sky.jobs.launch(task, name=self.job_name(run)))
        return job_id

    def look(self, job_id: int) -> Any:
        """Returns the record of a job."""
        return next(iter(self._queue(job_ids=[job_id])))

    def cancel(self, job_id: int) -> None:
        """Cancels a job."""
        self._sky.get(self._sky.jobs.cancel(job_ids=[job_id]))

    def workdir(self, run: PlannedRun) -> Workdir:
        """The run's, for reading."""
        return Workdir(run.workdir(self._out), writes=False)

    def _queue(self, **which: Any) -> list[Any]:
        return self._sky.get(self._sky.jobs.queue_v2(refresh=True, **which))[0]

    def _arguments(self, run: PlannedRun) -> str:
        return shlex.join(run.arguments(self._out, *self._flags)[2:])

    def _make_task(self) -> Any:
        try:
            task = self._sky.Task.from_yaml(self._task_file)
        except Exception as error:  # whatever SkyPilot raises for a file that it cannot read
            raise UserError(f"--sky_task={self._task_file}: {one_line(error)}") from error
        if missing := {"ARGUMENTS", "COMMIT"} - task.envs.keys():
            raise UserError(f"--sky_task={self._task_file} has no {min(missing)} among its envs")
        for name in [name for each in task.resources for name in each.accelerators or ()]:
            if name.startswith("tpu-") and name not in DEVICES:
                raise UserError(
                    f"--sky_task={self._task_file}: no TPU {name}; there are: {', '.join(DEVICES)}"
                )
        task.workdir = str(_ROOT)
        return task


def _import_sky() -> Any:
    try:
        import sky
    except ModuleNotFoundError as error:
        raise UserError("--backend=sky needs SkyPilot: pip install -e '.[sky]'") from error
    return sky


class _Job:
    """A slot: follows one job at a time."""

    def __init__(self, name: str, jobs: SkyJobs, say: Say):
        self.name = name
        self._jobs, self._say = jobs, say
        self._stopped = threading.Event()

    def execute(self, run: PlannedRun) -> Outcome:
        """See `Slot`."""
        try:
            job_id = self._jobs.find(run)
            if job_id is None:
                job_id = self._jobs.launch(run)
            self._say(f"{run.folder}: managed job {job_id}, `sky jobs logs {job_id}`")
            record = self._follow(run, job_id)
        except Exception as error:  # SkyPilot's, and those of what it calls
            return Outcome(f"SkyPilot: {type(error).__name__}: {one_line(error)}")
        if self._stopped.is_set():
            return Outcome("stopped", lost=True)
        if record.status.value != "SUCCEEDED":
            reason = " ".join((record.failure_reason or "see its log").split())
            return Outcome(f"job {job_id} is {record.status.value}: {reason}")
        workdir = self._jobs.workdir(run)
        if not workdir.exists("result.json"):
            return Outcome(f"it ended well, but there is no result.json in {workdir.path}")
        return Outcome()

    def _follow(self, run: PlannedRun, job_id: int) -> Any:
        """Returns the job's last record, when it has ended or was asked to."""
        epochs = EpochReporter(self._jobs.workdir(run), run, self._say)
        while True:
            record = self._jobs.look(job_id)
            epochs.say_new()
            if record.status.is_terminal():
                return record
            if self._stopped.wait(_SECONDS_BETWEEN_LOOKS):
                self._jobs.cancel(job_id)
                return record

    def stop(self) -> None:
        """See `Slot`."""
        self._stopped.set()

    def close(self) -> None:
        """See `Slot`."""
