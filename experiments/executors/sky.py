"""The executor for SkyPilot: managed jobs on Cloud TPU VMs, or other machines of the task file.

SkyPilot creates the machines, tries other zones, and restarts jobs after a preemption; a run then
resumes from its working directory in the bucket. On a host with several chips a job is a shard of
the sweep, with a run on each chip. The hosts of a pod train one run together.
"""

import hashlib
import re
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bn_vgg import cli, errors, provenance
from bn_vgg.errors import EXIT_BUG, EXIT_USER_ERROR, UserError, one_line
from experiments.executors import Executor, Outcome, Work
from experiments.plan import PlannedRun

TASK = Path(__file__).resolve().parents[1] / "tpu_vm.yaml"
# The number of chips of each TPU type. The names of v5p count cores, two for each chip.
_SIZES = (1, 4, 8, 16, 32, 64, 128, 256)
CHIPS = {f"tpu-{kind}-{size}": size for kind in ("v5litepod", "v6e") for size in _SIZES}
CHIPS |= {f"tpu-v5p-{size}": size // 2 for size in _SIZES[2:]}


class Sky(Executor):
    """See `Executor`."""

    poll_seconds = 30.0
    stop_seconds = 0.0  # need not wait for cancelled jobs

    def __init__(
        self, out: str, flags: Sequence[str], sweep_flags: Sequence[str], task_file: str,
        jobs: int | None = None, per_run: int | None = None,
    ):  # fmt: skip
        """Reads the task file, without calls to the cloud.

        `flags` are of `bn_vgg.main`; `sweep_flags` of `experiments.sweep`, with which a shard makes
        the same plan. At most `jobs` machines run at once. On a host with several chips each run
        has `per_run` chips (None: 1).

        Raises:
          UserError: `out` is a local folder, SkyPilot is not installed, or the task cannot be read
            or does not request one known type of accelerator.
        """
        if not out.startswith("gs://"):
            raise UserError(f"--out={out}: --executor=sky needs an address gs://BUCKET/…")
        with errors.wrap_import_errors("sky"):
            import sky
        super().__init__(out, flags)
        self._sky, self._task_file, self._sweep_flags = sky, task_file, sweep_flags
        self._jobs, self._per_run = jobs, per_run or 1
        self._prefix = f"bn-vgg-{_digest(out)}-"  # of the names of this sweep's jobs
        self._names: set[str] = set()  # of all its jobs, also of those that are done
        self._adopted: set[int] = set()  # ids of jobs that an earlier command launched
        self._launched: set[str] = set()  # names of jobs that this command launched
        found = [each.accelerators or {} for each in self._make_task().resources]
        kinds = {name: int(count) for each in found for name, count in each.items()}
        if len(kinds) != 1:
            raise UserError(f"--sky_task={task_file}: name one kind of accelerator")
        ((kind, count),) = kinds.items()
        if kind.startswith("tpu-") and kind not in CHIPS:
            raise UserError(f"--sky_task={task_file}: no TPU {kind}; there are: {', '.join(CHIPS)}")
        self._accelerator, self._devices = kind, CHIPS.get(kind, count)

    def divide(self, runs: Sequence[PlannedRun]) -> list[Work]:
        """Divides the sweep into a job for each run or, if hosts have several chips, each shard.

        Raises a UserError if a run's chips cannot share its batch equally, or are too few.
        """
        # A host has up to 8 chips of v5e or v6e, or 4 of v5p. More chips are a pod of hosts.
        largest = 4 if self._accelerator.startswith("tpu-v5p") else 8
        pod = self._accelerator in CHIPS and self._devices > largest
        chips = self._devices if pod else self._per_run
        for run in runs:
            if run.batch_size % chips:
                raise UserError(
                    f"{run.folder}: {chips} chips of {self._accelerator} cannot share batches of "
                    f"{run.batch_size}; change one, with --set=batch_size=… or --sky_task"
                )
        if chips == self._devices:
            works = super().divide(runs)
        else:
            if chips > (1 if self._accelerator in CHIPS else self._devices):
                raise UserError(f"--devices_per_run={chips} of {self._devices}: on a TPU 1 or all")
            count = min(self._jobs or len(runs), -(-len(runs) // (self._devices // chips)))
            works = [self._shard(i, count, runs[i::count]) for i in range(count)]
        self._names = {self.job_name(each) for each in works}
        return works

    def _shard(self, index: int, count: int, runs: Sequence[PlannedRun]) -> Work:
        arguments = [
            "-m", "experiments.sweep", *self._sweep_flags, f"--shard={index}/{count}",
            f"--out={self._out}",
        ]  # fmt: skip
        return Work(f"shard {index} of {count}", tuple(arguments), tuple(runs))

    def command(self, work: Work) -> str:
        """Returns the shell command that launches the same job."""
        return shlex.join([
            "sky", "jobs", "launch", "--yes", "--detach-run", f"--name={self.job_name(work)}",
            f"--workdir={TASK.parents[1]}",
            *(f"--env={key}={value}" for key, value in _variables(work).items()),
            self._task_file,
        ])  # fmt: skip

    def open(self, work: Sequence[Work]) -> list[str]:
        """Returns a slot for each work, because SkyPilot queues jobs."""
        with errors.wrap_errors("SkyPilot"):
            found = self._queue(skip_finished=True, name_match=self._prefix)
        if others := sorted({job.job_name for job in found} - self._names):
            raise UserError(  # such as shards of an earlier command with other --seeds
                f"other jobs of {self._out} are not done, and may train the same runs: "
                f"{', '.join(others)}; wait for them, or stop each with `sky jobs cancel -n NAME`"
            )
        return [f"SkyPilot ({self._accelerator})"] * len(work)

    def job_name(self, work: Work) -> str:
        """Returns the same name after a restart, so that a killed sweep finds its jobs."""
        return self._prefix + _digest(work.name)

    def start(self, work: Work, slot: int) -> Any:
        """Launches the work's job, or finds it. Returns its id, or the outcome if that fails."""
        name = self.job_name(work)
        try:
            if found := self._queue(skip_finished=True, name_match=name):
                job_id = found[0].job_id
                self._adopted.add(job_id)
            else:
                task = self._make_task()
                task.update_envs(_variables(work))
                request = self._sky.jobs.launch(task, name=name)
                try:
                    (job_id,), _ = self._sky.get(request)
                except KeyboardInterrupt:
                    self._sky.api_cancel(request)
                    cli.show(f"{work.name}: see sky jobs queue; sky jobs cancel -n {name}")
                    raise
        except Exception as error:  # any error of SkyPilot or the cloud's libraries
            why = f"SkyPilot: {type(error).__name__}: {one_line(error)}"
            return Outcome(EXIT_BUG, why, lost=name in self._launched)  # may still run
        self._launched.add(name)
        cli.show(f"{work.name}: managed job {job_id}, `sky jobs logs {job_id}`")
        return job_id

    def poll(self, process: Any) -> Outcome | None:
        if isinstance(process, Outcome):
            return process
        try:
            (record,) = self._queue(job_ids=[process])
        except Exception as error:  # `start` finds the job again by its name
            time.sleep(self.poll_seconds)
            return Outcome(EXIT_BUG, f"SkyPilot: {one_line(error)}", lost=True)
        if not record.status.is_terminal():
            return None
        status, reason = record.status.value, " ".join((record.failure_reason or "").split())
        if status == "SUCCEEDED":
            return Outcome(0)
        said = f"{status}: {reason or 'see its log'}"
        if listed := re.search(r"exit codes? \[?([\d, ]+)", reason):  # of each host of a pod
            codes = [int(code) for code in re.findall(r"\d+", listed[1])]
            return Outcome(EXIT_USER_ERROR if EXIT_USER_ERROR in codes else max(codes), said)
        if status == "CANCELLED":  # adopted jobs may have been cancelled by the earlier command
            adopted = process in self._adopted
            return Outcome(EXIT_BUG if adopted else EXIT_USER_ERROR, said, lost=adopted)
        # These would fail again.
        impossible = status in ("FAILED_PRECHECKS", "FAILED_NO_RESOURCE")
        return Outcome(EXIT_USER_ERROR if impossible else EXIT_BUG, said)

    def stop(self, process: Any) -> None:
        if isinstance(process, Outcome):
            return
        try:
            self._sky.jobs.cancel(job_ids=[process])  # not waited for, so that all are cancelled
        except Exception as error:  # go on to cancel the other jobs
            cli.show(f"job {process} was not cancelled: {one_line(error)}; see `sky jobs queue`")

    def _queue(self, **which: Any) -> list[Any]:
        # Its default fields leave failure_reason out.
        request = self._sky.jobs.queue_v2(refresh=True, fields=None, **which)
        try:
            return self._sky.get(request)[0]
        except self._sky.exceptions.ClusterDoesNotExist:  # no job was ever launched
            return []

    def _make_task(self) -> Any:
        try:
            task = self._sky.Task.from_yaml(self._task_file)
        except Exception as error:  # SkyPilot raises many types for a wrong file
            raise UserError(f"--sky_task={self._task_file}: {one_line(error)}") from error
        if "ARGUMENTS" not in str(task.run):
            raise UserError(f"--sky_task={self._task_file}: its `run` does not use $ARGUMENTS")
        task.workdir = str(TASK.parents[1])
        return task


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=5).hexdigest()


def _variables(work: Work) -> dict[str, str]:
    return {"ARGUMENTS": shlex.join(work.arguments), "COMMIT": str(provenance.commit())}
