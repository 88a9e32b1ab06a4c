"""SkyPilot: managed jobs on Cloud TPU VMs, or on whatever the task file asks for.

SkyPilot makes the machines, tries other zones, and begins a job again that was preempted; the
run goes on from its working directory in the bucket, where its results are read, too. Of a
host with several chips a job makes a shard of the sweep, a run on each chip; a pod's hosts make
one run together.
"""

import hashlib
import re
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bn_vgg import cli, provenance
from bn_vgg.errors import EXIT_BUG, EXIT_USER_ERROR, UserError, needing, one_line
from experiments.executors import Ended, Executor, Work
from experiments.plan import PlannedRun

TASK = Path(__file__).resolve().parents[1] / "tpu_vm.yaml"
# Chips of each kind of TPU. A v5p is called by its cores, two a chip.
_SIZES = (1, 4, 8, 16, 32, 64, 128, 256)
CHIPS = {f"tpu-{kind}-{size}": size for kind in ("v5litepod", "v6e") for size in _SIZES}
CHIPS |= {f"tpu-v5p-{size}": size // 2 for size in _SIZES[2:]}


class Sky(Executor):
    """The executor."""

    poll_seconds = 30.0
    stop_seconds = 0.0  # a cancelled job ends by itself

    def __init__(
        self, out: str, flags: Sequence[str], sweep_flags: Sequence[str], task_file: str,
        jobs: int | None = None, per_run: int | None = None,
    ):  # fmt: skip
        """Prepares, without a call to the cloud.

        `flags` are of `bn_vgg.main`, `sweep_flags` those of `experiments.sweep` that make the same
        plan in a job. At most `jobs` machines run at once; on a host of several chips each run has
        `per_run` (1).

        Raises:
          UserError: `out` is a folder of this machine, SkyPilot is not installed, or the task
            cannot be read or does not ask for one known kind of accelerator.
        """
        if not out.startswith("gs://"):
            raise UserError(f"--out={out}: with sky it is an address that all see, gs://BUCKET/…")
        with needing("sky"):
            import sky
        super().__init__(out, flags)
        self._sky, self._task_file, self._sweep_flags = sky, task_file, sweep_flags
        self._jobs, self._per_run = jobs, per_run or 1
        self._adopted: set[int] = set()  # jobs of an earlier start
        self._launched: set[str] = set()  # names of jobs
        found = [each.accelerators or {} for each in self._make_task().resources]
        kinds = {name: int(count) for each in found for name, count in each.items()}
        if len(kinds) != 1:
            raise UserError(f"--sky_task={task_file}: name one kind of accelerator")
        ((kind, count),) = kinds.items()
        if kind.startswith("tpu-") and kind not in CHIPS:
            raise UserError(f"--sky_task={task_file}: no TPU {kind}; there are: {', '.join(CHIPS)}")
        self._accelerator, self._devices = kind, CHIPS.get(kind, count)

    def divide(self, runs: Sequence[PlannedRun]) -> list[Work]:
        """A job for each run, or for each shard where hosts have several chips.

        Raises:
          UserError: the chips that a run would have cannot share its batch, or there are fewer.
        """
        # v5e and v6e have up to 8 chips on one host, v5p has 4; more are a pod of several hosts.
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
            return super().divide(runs)
        side_by_side = self._devices // chips
        if not side_by_side:
            raise UserError(f"--devices_per_run={chips}: {self._accelerator} has {self._devices}")
        count = min(self._jobs or len(runs), -(-len(runs) // side_by_side))
        return [self._shard(i, count, runs[i::count]) for i in range(count)]

    def _shard(self, index: int, count: int, runs: Sequence[PlannedRun]) -> Work:
        arguments = [
            "-m", "experiments.sweep", *self._sweep_flags, f"--shard={index}/{count}",
            f"--out={self._out}",
        ]  # fmt: skip
        return Work(f"shard {index} of {count}", tuple(arguments), tuple(runs))

    def command(self, work: Work) -> str:
        """What launches the same job from a shell."""
        return shlex.join([
            "sky", "jobs", "launch", "--yes", f"--name={self.job_name(work)}",
            f"--workdir={TASK.parents[1]}",
            *(f"--env={key}={value}" for key, value in _variables(work).items()),
            self._task_file,
        ])  # fmt: skip

    def open(self, work: Sequence[Work]) -> list[str]:
        """See `Executor`: SkyPilot queues what there is no room for."""
        return [f"SkyPilot ({self._accelerator})"] * len(work)

    def job_name(self, work: Work) -> str:
        """The same from start to start, so that a sweep that was killed finds its jobs again."""
        told = f"{self._out} {work.name}"
        return f"bn-vgg-{hashlib.blake2b(told.encode(), digest_size=5).hexdigest()}"

    def start(self, work: Work, slot: int) -> Any:
        """Launches the work's job, or finds it. Returns its id, or how that failed."""
        name = self.job_name(work)
        try:
            if found := self._queue(skip_finished=True, name_match=name):
                job_id = found[0].job_id
                self._adopted.add(job_id)
            else:
                task = self._make_task()
                task.update_envs(_variables(work))
                (job_id,), _ = self._sky.get(self._sky.jobs.launch(task, name=name))
        except Exception as error:  # SkyPilot's, and those of what it calls
            why = f"SkyPilot: {type(error).__name__}: {one_line(error)}"
            return Ended(EXIT_BUG, why, lost=name in self._launched)  # it may well go on
        self._launched.add(name)
        cli.show(f"{work.name}: managed job {job_id}, `sky jobs logs {job_id}`")
        return job_id

    def poll(self, process: Any) -> Ended | None:
        if isinstance(process, Ended):
            return process
        try:
            (record,) = self._queue(job_ids=[process])
        except Exception as error:  # the job is found again by its name
            time.sleep(self.poll_seconds)
            return Ended(EXIT_BUG, f"SkyPilot: {one_line(error)}", lost=True)
        if not record.status.is_terminal():
            return None
        status, reason = record.status.value, " ".join((record.failure_reason or "").split())
        if status == "SUCCEEDED":
            return Ended(0)
        said = f"job {process} is {status}: {reason or 'see its log'}"
        if listed := re.search(r"exit codes? \[?([\d, ]+)", reason):  # of each host of a pod
            codes = [int(code) for code in re.findall(r"\d+", listed[1])]
            return Ended(EXIT_USER_ERROR if EXIT_USER_ERROR in codes else max(codes), said)
        if status == "CANCELLED":  # by somebody; an adopted one by the end of an earlier start
            adopted = process in self._adopted
            return Ended(EXIT_BUG if adopted else EXIT_USER_ERROR, said, lost=adopted)
        # No room, no rights, a setup that fails: the same happens at the next attempt.
        impossible = status in ("FAILED_SETUP", "FAILED_PRECHECKS", "FAILED_NO_RESOURCE")
        return Ended(EXIT_USER_ERROR if impossible else EXIT_BUG, said)

    def stop(self, process: Any) -> None:
        if isinstance(process, Ended):
            return
        try:
            self._sky.get(self._sky.jobs.cancel(job_ids=[process]))
        except Exception as error:  # the other jobs are to be cancelled, too
            cli.show(f"job {process} was not cancelled: {one_line(error)}; see `sky jobs queue`")

    def _queue(self, **which: Any) -> list[Any]:
        # Its default fields leave failure_reason out.
        request = self._sky.jobs.queue_v2(refresh=True, fields=None, **which)
        try:
            return self._sky.get(request)[0]
        except self._sky.exceptions.ClusterDoesNotExist:  # the controller: no job was ever launched
            return []

    def _make_task(self) -> Any:
        try:
            task = self._sky.Task.from_yaml(self._task_file)
        except Exception as error:  # whatever SkyPilot raises for a file that it cannot read
            raise UserError(f"--sky_task={self._task_file}: {one_line(error)}") from error
        if "ARGUMENTS" not in str(task.run):
            raise UserError(f"--sky_task={self._task_file}: its `run` does not use $ARGUMENTS")
        task.workdir = str(TASK.parents[1])
        return task


def _variables(work: Work) -> dict[str, str]:
    return {"ARGUMENTS": shlex.join(work.arguments), "COMMIT": str(provenance.commit())}
