"""Cloud TPU VMs as the place where a sweep's runs are executed, by `gcloud`.

python -m experiments.sweep --backend=tpu_vm --tpu_zone=ZONE --tpu_bucket=gs://BUCKET/FOLDER …
python -m experiments.tpu_vm list|delete --tpu_zone=ZONE [--tpu_prefix=PREFIX]

A sweep makes its VMs, spot ones unless told otherwise, installs this checkout's commit on
them, makes one run after the other on each, brings the runs' small files into its own folder
and deletes the VMs when it ends. What was preempted goes on, on a new VM, from its working
directory in the bucket. A sweep that was killed finds its VMs again when it is started again;
`list` and `delete` show and remove what was left over, which costs money.
"""

from pathlib import Path

from absl import flags

from bn_vgg import command
from bn_vgg.errors import UserError
from experiments.records import KEPT
from experiments.sweeping import tpu_code, tpu_commands, tpu_remote
from experiments.sweeping.backend import Say, Slot
from experiments.sweeping.gcloud import Gcloud, GcloudError
from experiments.sweeping.plan import PlannedRun
from experiments.sweeping.tpu_code import Code
from experiments.sweeping.tpu_commands import Commands, Queued, Settings, shell
from experiments.sweeping.tpu_machine import SECONDS_TO_ASK, SECONDS_TO_DELETE
from experiments.sweeping.tpu_slot import TpuSlot

_ZONE = flags.DEFINE_string("tpu_zone", None, "Zone of Google Cloud, such as us-central1-a.")
_TYPE = flags.DEFINE_string(
    "tpu_type", "v5litepod-1", "Kind and size of a VM; its chips have to divide the batch (100)."
)
_RUNTIME = flags.DEFINE_string("tpu_runtime", None, "Version of its image; the kind's usual one.")
_SPOT = flags.DEFINE_bool("tpu_spot", True, "Cheaper VMs that may be taken away at any time.")
_VMS = flags.DEFINE_integer("tpu_vms", 1, "VMs at once.", lower_bound=1)
_PREFIX = flags.DEFINE_string("tpu_prefix", "bn-vgg", "VMs are called PREFIX-0, PREFIX-1, ….")
_PROJECT = flags.DEFINE_string("tpu_project", None, "Of Google Cloud; gcloud's own if not given.")
_BUCKET = flags.DEFINE_string("tpu_bucket", None, "gs://BUCKET/FOLDER for the runs' workdirs.")
_SETUP = flags.DEFINE_string("tpu_setup", None, "Shell command for each VM, in the checkout.")

_ROOT = Path(__file__).resolve().parents[1]


def settings_from_flags() -> Settings:
    """What the `--tpu_…` flags say.

    Raises:
      UserError: one is missing or cannot be right.
    """
    if _BUCKET.value is None:
        raise UserError("--tpu_bucket is missing: gs://BUCKET/FOLDER for the runs' workdirs")
    return Settings(
        zone=_zone(),
        bucket=_BUCKET.value,
        accelerator_type=_TYPE.value,
        runtime_version=_RUNTIME.value,
        spot=_SPOT.value,
        vms=_VMS.value,
        prefix=_PREFIX.value,
        project=_PROJECT.value,
        setup=_SETUP.value,
    )


class TpuVms:
    """The backend."""

    def __init__(self, settings: Settings, out: Path, flags: list[str], root: Path = _ROOT):
        """Prepares, without a call.

        Args:
          settings: of the VMs.
          out: the sweep's folder on this machine.
          flags: of `bn_vgg.main`, besides the configuration and the workdir.
          root: of the checkout that the VMs are given.
        """
        self._settings, self._out, self._flags, self._root = settings, out, flags, root

    def slots(self, runs: list[PlannedRun], say: Say) -> list[Slot]:
        """As many VMs as there may be at once; none is made yet.

        Raises:
          UserError: gcloud is missing or may not do its work, the bucket cannot be read, files
            differ from the commit, or a VM of that name is another sweep's.
        """
        settings, gcloud = self._settings, Gcloud()
        commit = tpu_code.clean_commit(self._root, self._out)
        there = _find(gcloud, Commands(settings.zone, settings.project), settings.prefix)
        bucket = "/".join(settings.bucket.split("/")[:3])
        try:
            gcloud.run(["storage", "ls", bucket], seconds=SECONDS_TO_ASK)
        except GcloudError as error:
            raise UserError(f"--tpu_bucket: {bucket} cannot be read: {error}") from error
        names = self._names(runs)
        for queued in there:
            if queued.name in names:
                self._require_ours(queued)
            else:
                say(f"{queued.name} ({queued.state}) is there too, which this sweep leaves alone")
        code = Code(tpu_code.make_bundle(self._root), tpu_remote.installed(commit, settings.setup))
        kind = "spot" if settings.spot else "on demand"
        say(
            f"{len(runs)} runs to do on {len(names)} TPU VM(s), {settings.accelerator_type}, "
            f"{kind}, commit {commit[:12]}"
        )
        return [TpuSlot(name, settings, self._out, self._flags, code, say) for name in names]

    def _require_ours(self, queued: Queued) -> None:
        settings, other = self._settings, None
        if queued.sweep not in ("", settings.sweep):
            other = "serves another sweep"
        elif queued.accelerator_type not in ("", settings.accelerator_type):
            other = f"is a {queued.accelerator_type}"
        if other:
            delete = shell(Commands(settings.zone, settings.project).delete(queued.name))
            raise UserError(
                f"{queued.name} is there already and {other}: give another --tpu_prefix, or "
                f"delete it: {delete}"
            )

    def commands(self, runs: list[PlannedRun]) -> list[str]:
        """What is called for one VM that makes all the runs, without the repetitions."""
        if not runs:
            return []
        settings = self._settings
        vm, name = Commands(settings.zone, settings.project), self._names(runs)[0]
        bundle = f"git {' '.join(tpu_code.bundle_arguments(tpu_code.BUNDLE))}"
        calls = [
            vm.create(name, settings),
            vm.look(name),
            vm.send(name, tpu_code.BUNDLE, tpu_code.BUNDLE),
            vm.ssh(name, tpu_remote.set_up("INSTALLED", settings.setup)),
        ]
        for i, run in enumerate(runs):
            attempt, folder = f"ATTEMPT{i}", run.workdir(settings.bucket)
            arguments = run.arguments(settings.bucket, *self._flags)
            calls += [
                vm.ssh(name, tpu_remote.start(attempt, arguments)),
                vm.ssh(name, tpu_remote.look(attempt)),
                tpu_commands.list_objects(folder),
                tpu_commands.copy_objects(folder, KEPT, f"{self._out / run.folder}"),
                vm.fetch(name, tpu_remote.log_of(attempt), f"{self._out / run.folder}/log.txt"),
            ]
        return [bundle, *map(shell, calls), shell(vm.delete(name))]

    def close(self) -> None:
        """See `Backend`: the slots share nothing."""

    def _names(self, runs: list[PlannedRun]) -> list[str]:
        count = min(self._settings.vms, len(runs))
        return [f"{self._settings.prefix}-{i}" for i in range(count)]


def main(action: str) -> None:
    """Runs the command."""
    if action not in ("list", "delete"):
        raise UserError(f"no {action!r}; there are: list, delete")
    tpu_commands.check_prefix(_PREFIX.value)
    gcloud, commands = Gcloud(), Commands(_zone(), _PROJECT.value)
    found = _find(gcloud, commands, _PREFIX.value)
    if not found:
        print(f"no {_PREFIX.value}-… in {_zone()}")
    failed = []
    for queued in found:
        print(queued.name, queued.state, queued.accelerator_type, flush=True)
        if action == "delete":
            try:
                gcloud.run(commands.delete(queued.name), seconds=SECONDS_TO_DELETE)
                print(f"{queued.name} is deleted", flush=True)
            except GcloudError as error:
                failed.append(f"{queued.name} could not be deleted: {error}")
    if failed:
        raise UserError(f"{'; '.join(failed)}; it may go on costing money: try again")


def _zone() -> str:
    if not _ZONE.value:
        raise UserError("--tpu_zone is missing: a zone with TPUs, such as us-central1-a")
    return _ZONE.value


def _find(gcloud: Gcloud, commands: Commands, prefix: str) -> list[Queued]:
    """The queued resources of ours; also shows whether gcloud is of use at all."""
    try:
        output = gcloud.run(commands.list_all(), seconds=SECONDS_TO_ASK)
    except GcloudError as error:
        raise UserError(
            f"gcloud cannot list TPU VMs: {error}; has `gcloud auth login` been done, are zone and "
            "project right, is the Cloud TPU API enabled?"
        ) from error
    return tpu_commands.listed(output, prefix)


if __name__ == "__main__":
    command.run(main, positional=("ACTION",))
