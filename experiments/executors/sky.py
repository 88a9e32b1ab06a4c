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

from bn_vgg import cli, config_file, provenance
from bn_vgg.errors import EXIT_BUG, EXIT_USER_ERROR, UserError, one_line
from experiments.executors import Ended, Executor, Work
from experiments.plan import PlannedRun

TASK = Path(__file__).resolve().parents[1] / "tpu_vm.yaml"
_ROOT = TASK.parents[1]
_VARIABLES = {"ARGUMENTS", "COMMIT"}
# Chips of each kind of TPU. A v5p is called by its cores, two a chip.
_SIZES = (1, 4, 8, 16, 32, 64, 128, 256)
CHIPS = {f"tpu-v5litepod-{size}": size for size in _SIZES}
CHIPS |= {f"tpu-v6e-{size}": size for size in _SIZES}
CHIPS |= {f"tpu-v5p-{size}": size // 2 for size in (8, 16, 32, 64, 128, 256)}


def chips_of_host(accelerator: str, count: int) -> int:
    """Devices of an accelerator on a single host; 0 of a pod, which has several hosts.

    v5e and v6e have up to 8 chips on one host, v5p has 4. `count` is that of GPUs.
    """
    chips = CHIPS.get(accelerator, count)
    largest = 4 if accelerator.startswith("tpu-v5p") else 8
    return chips if accelerator not in CHIPS or chips <= largest else 0


class Sky(Executor):
    """The executor."""

    poll_seconds = 30.0
    stop_seconds = 0.0  # a cancelled job ends by itself

    def __init__(
        self, out: str, flags: Sequence[str], sweep_flags: Sequence[str], task_file: str,
        jobs: int | None = None, per_run: int | None = None,
    ):  # fmt: skip
        """Prepares, without a call to the cloud.

        Args:
          out: the sweep's address, `gs://…`.
          flags: of `bn_vgg.main`.
          sweep_flags: of `experiments.sweep`, which make the same plan in a job.
          task_file: a SkyPilot task that reads the variables ARGUMENTS and COMMIT.
          jobs: machines at once, at most; None: as many as the sweep can use.
          per_run: chips of each run, on a single host; None: 1.

        Raises:
          UserError: `out` is a folder of this machine, SkyPilot is not installed, or the task
            cannot be read or asks for a TPU that is not known.
        """
        if not out.startswith("gs://"):
            raise UserError(f"--out={out}: with sky it is an address that all see, gs://BUCKET/…")
        try:
            import sky
        except ModuleNotFoundError as error:
            raise UserError("--executor=sky needs SkyPilot: pip install -e '.[sky]'") from error
        super().__init__(out, flags)
        self._sky, self._task_file, self._sweep_flags = sky, task_file, sweep_flags
        self._jobs, self._per_run = jobs, per_run
        task = self._make_task()
        self._accelerators = {
            name: int(count)
            for each in task.resources
            for name, count in (each.accelerators or {}).items()
        }

    def divide(self, runs: Sequence[PlannedRun]) -> list[Work]:
        """A job for each run, or for each shard where hosts have several chips.

        Raises:
          UserError: the chips that a run would have cannot share its batch.
        """
        per_run = self._per_run or 1
        hosts = {name: chips_of_host(name, n) for name, n in self._accelerators.items()}
        for name, on_host in hosts.items():
            _check_batches(runs, name, per_run if on_host else CHIPS[name])
        if all(on_host in (0, per_run) for on_host in hosts.values()):
            return super().divide(runs)
        side_by_side = min(hosts.values()) // per_run
        if not side_by_side:
            raise UserError(
                f"--sky_task={self._task_file}: a run of {per_run} chips does not fit on every one "
                f"of {', '.join(hosts)}; pods and single hosts do not go together"
            )
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
            *(f"--env={key}={value}" for key, value in _variables(work).items()),
            self._task_file,
        ])  # fmt: skip

    def open(self, work: Sequence[Work]) -> list[str]:
        """See `Executor`: SkyPilot queues what there is no room for."""
        where = ", ".join(self._accelerators) or "machines"
        return [f"SkyPilot ({where})"] * min(len(work), self._jobs or len(work))

    def job_name(self, work: Work) -> str:
        """The same from start to start, so that a sweep that was killed finds its jobs again."""
        told = f"{self._out} {work.name}"
        return f"bn-vgg-{hashlib.blake2b(told.encode(), digest_size=5).hexdigest()}"

    def start(self, work: Work, slot: int) -> Any:
        """Launches the work's job, or finds it. Returns its id, or how that failed."""
        try:
            found = self._queue(skip_finished=True, name_match=self.job_name(work))
            if found:
                job_id = found[0].job_id
            else:
                task = self._make_task()
                task.update_envs(_variables(work))
                (job_id,), _ = self._sky.get(self._sky.jobs.launch(task, name=self.job_name(work)))
        except Exception as error:  # SkyPilot's, and those of what it calls
            return Ended(EXIT_BUG, f"SkyPilot: {type(error).__name__}: {one_line(error)}")
        cli.show(f"{work.name}: managed job {job_id}, `sky jobs logs {job_id}`")
        return job_id

    def poll(self, process: Any) -> Ended | None:
        """See `Executor`."""
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
        exit_code = re.search(r"exit code (\d+)", reason)
        if exit_code:
            return Ended(int(exit_code[1]), said)
        # No room, no rights, a setup that fails: the same happens at the next attempt.
        impossible = status in ("FAILED_SETUP", "FAILED_PRECHECKS", "FAILED_NO_RESOURCE")
        return Ended(EXIT_USER_ERROR if impossible else EXIT_BUG, said)

    def stop(self, process: Any) -> None:
        """See `Executor`."""
        if isinstance(process, Ended):
            return
        try:
            self._sky.get(self._sky.jobs.cancel(job_ids=[process]))
        except Exception as error:  # the other jobs are to be cancelled, too
            cli.show(f"job {process} was not cancelled: {one_line(error)}; see `sky jobs queue`")

    def _queue(self, **which: Any) -> list[Any]:
        return self._sky.get(self._sky.jobs.queue_v2(refresh=True, **which))[0]

    def _make_task(self) -> Any:
        try:
            task = self._sky.Task.from_yaml(self._task_file)
        except Exception as error:  # whatever SkyPilot raises for a file that it cannot read
            raise UserError(f"--sky_task={self._task_file}: {one_line(error)}") from error
        if missing := _VARIABLES - task.envs.keys():
            raise UserError(f"--sky_task={self._task_file} has no {min(missing)} among its envs")
        for name in [name for each in task.resources for name in each.accelerators or ()]:
            if name.startswith("tpu-") and name not in CHIPS:
                raise UserError(
                    f"--sky_task={self._task_file}: no TPU {name}; there are: {', '.join(CHIPS)}"
                )
        task.workdir = str(_ROOT)
        return task


def _check_batches(runs: Sequence[PlannedRun], accelerator: str, chips: int) -> None:
    for run in runs:
        batch_size = config_file.load_config(run.config_arguments).batch_size
        if batch_size % chips:
            raise UserError(
                f"{run.folder}: {chips} chips of {accelerator} cannot share batches of "
                f"{batch_size}; change one, with --set=batch_size=… or --sky_task"
            )


def _variables(work: Work) -> dict[str, str]:
    return {"ARGUMENTS": shlex.join(work.arguments), "COMMIT": str(provenance.commit())}
