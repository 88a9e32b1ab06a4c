"""gcloud's arguments for TPU VMs: create, look, log in, copy, delete."""

import hashlib
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from bn_vgg.errors import UserError

# Images by kind of TPU: cloud.google.com/tpu/docs/runtimes.
RUNTIMES = {
    "v2": "tpu-ubuntu2204-base",
    "v3": "tpu-ubuntu2204-base",
    "v4": "tpu-ubuntu2204-base",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
# Of a queued resource: its TPU may be used; it never will be (again); it is on its way out.
ACTIVE = "ACTIVE"
ENDED = ("FAILED", "SUSPENDING", "SUSPENDED", "DELETING")
ENDING = ("SUSPENDING", "DELETING")
# Label of a VM: the sweep that made it.
_LABEL = "bn_vgg_sweep"
_QUEUED = ("compute", "tpus", "queued-resources")
_VM = ("compute", "tpus", "tpu-vm")


@dataclass(frozen=True)
class Settings:
    """What VMs a sweep runs on.

    Attributes:
      zone: of Google Cloud, that has TPUs of this type.
      bucket: `gs://BUCKET/FOLDER` where the runs' working directories are.
      accelerator_type: kind and size. A run's batch is shared by the VM's chips: their number
        has to divide it, as 1 does any.
      runtime_version: of the VM's image; None: the usual one of its kind of TPU.
      spot: whether it may be taken away at any time, for a lower price.
      vms: at once, at most.
      prefix: of their names: PREFIX-0, PREFIX-1 and so on.
      project: of Google Cloud; None: gcloud's own setting.
      setup: a shell command for each VM once the code is installed, in the checkout.
      poll_seconds: between looks at a VM.
    """

    zone: str
    bucket: str
    accelerator_type: str = "v5litepod-1"
    runtime_version: str | None = None
    spot: bool = True
    vms: int = 1
    prefix: str = "bn-vgg"
    project: str | None = None
    setup: str | None = None
    poll_seconds: float = 30.0

    def __post_init__(self):
        """Checks.

        Raises:
          UserError: a value cannot be right.
        """
        if not re.fullmatch(r"gs://[^/]+(/.*)?", self.bucket):
            raise UserError(f"--tpu_bucket={self.bucket}: gs://BUCKET is wanted, or a folder of it")
        check_prefix(self.prefix)
        _ = self.runtime

    @property
    def sweep(self) -> str:
        """A name for the sweep: two of them cannot have the same bucket's folder."""
        return hashlib.sha256(self.bucket.rstrip("/").encode()).hexdigest()[:12]

    @property
    def runtime(self) -> str:
        """Version of the VM's image.

        Raises:
          UserError: none is given, and the kind of TPU is not known here.
        """
        if self.runtime_version is not None:
            return self.runtime_version
        kind, _, size = self.accelerator_type.partition("-")
        if kind not in RUNTIMES or not size:
            raise UserError(
                f"--tpu_type={self.accelerator_type}: KIND-SIZE is wanted, with a kind of "
                f"{', '.join(RUNTIMES)}; for another one give --tpu_runtime too"
            )
        return RUNTIMES[kind]


def check_prefix(prefix: str) -> None:
    """Makes sure that Google Cloud takes the names.

    Raises:
      UserError: it would not.
    """
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,48}", prefix):
        raise UserError(
            f"--tpu_prefix={prefix}: at most 49 small letters, digits and hyphens are wanted, "
            "a letter first"
        )


class Queued(NamedTuple):
    """A queued resource as `list` shows it; what it does not show is empty."""

    name: str
    state: str
    accelerator_type: str
    sweep: str


class Commands:
    """gcloud's arguments, for one zone of one project."""

    def __init__(self, zone: str, project: str | None):
        """Takes the place that all commands are about; see `Settings`."""
        self._place = [f"--zone={zone}", *([f"--project={project}"] if project else [])]

    def create(self, name: str, settings: Settings) -> list[str]:
        """Queues a request for a VM; both have the same name."""
        return [
            *_QUEUED, "create", name, f"--node-id={name}",
            f"--accelerator-type={settings.accelerator_type}",
            f"--runtime-version={settings.runtime}",
            *(["--spot"] if settings.spot else []),
            f"--labels={_LABEL}={settings.sweep}",
            *self._place, "--quiet",
        ]  # fmt: skip

    def look(self, name: str) -> list[str]:
        """Writes the state of a request."""
        return [*_QUEUED, "describe", name, "--format=value(state.state)", *self._place]

    def list_all(self) -> list[str]:
        """Writes a line for each request; `listed` reads it."""
        node = "tpu.nodeSpec[0].node"
        columns = (
            f"name.basename(),state.state,{node}.acceleratorType.basename(),{node}.labels.{_LABEL}"
        )
        return [*_QUEUED, "list", f"--format=csv[no-heading]({columns})", *self._place]

    def delete(self, name: str) -> list[str]:
        """Deletes a request and its VM, and returns when both are gone."""
        return [*_QUEUED, "delete", name, "--force", *self._place, "--quiet"]

    def ssh(self, name: str, script: str) -> list[str]:
        """Runs a shell script on every worker of a VM."""
        return [*_VM, "ssh", name, "--worker=all", f"--command={script}", *self._place, "--quiet"]

    def send(self, name: str, path: str, remote: str) -> list[str]:
        """Copies a file into the home folder of every worker."""
        return [*_VM, "scp", path, f"{name}:{remote}", "--worker=all", *self._place, "--quiet"]

    def fetch(self, name: str, remote: str, path: str) -> list[str]:
        """Copies a file out of the home folder of the first worker."""
        return [*_VM, "scp", f"{name}:{remote}", path, "--worker=0", *self._place, "--quiet"]


def listed(output: str, prefix: str) -> list[Queued]:
    """Reads what `Commands.list_all` writes, of VMs named PREFIX-NUMBER."""
    found = [Queued(*line.split(",")) for line in output.splitlines() if line.count(",") == 3]
    return [queued for queued in found if re.fullmatch(rf"{prefix}-\d+", queued.name)]


def list_objects(address: str) -> list[str]:
    """Writes the addresses of the objects in a folder of a bucket."""
    return ["storage", "ls", f"{address}/"]


def copy_objects(address: str, names: Iterable[str], path: str) -> list[str]:
    """Copies objects out of a folder of a bucket into one of this machine."""
    return ["storage", "cp", *(f"{address}/{name}" for name in names), path]


def shell(arguments: list[str]) -> str:
    """A call of gcloud as a line for a shell."""
    return shlex.join(["gcloud", *arguments])
