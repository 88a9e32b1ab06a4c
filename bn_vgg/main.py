"""Trains a network: python -m bn_vgg.main --config=configs/meanonly_crop.py.

The cells: baseline, meanonly and full, each also with _crop and with _crop_dropout. A cell takes a
variant after a colon: full (128x128, the default), small (48x48) or demo (32x32, drawings). Each
field is a flag, --config.seed=1 or --config.model.norm=group: configs/default.py explains them.
"""

from absl import flags
from ml_collections import config_flags

from bn_vgg import cli, config_file, launch, multihost
from bn_vgg.data.cache import choose_folder
from bn_vgg.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file in configs/, with an optional variant after a colon.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run's folder; by default runs/<name and overrides>/seed<seed>."
)
_CACHE_DIR = flags.DEFINE_string(
    "cache_dir", None, "Cache of decoded images; by default $BN_VGG_CACHE or ~/.cache/bn_vgg."
)
_TENSORBOARD = flags.DEFINE_bool(
    "tensorboard", True, "Write TensorBoard files to the workdir (imports TensorFlow)."
)
_WANDB = flags.DEFINE_bool("wandb", False, "Also log to Weights & Biases (extra `wandb`).")
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "host:port of the first of several processes."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes over all hosts.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "This process's number, from 0.")
_HOST_TIMEOUT = flags.DEFINE_integer(
    "host_timeout_seconds", 300, "Seconds without progress until a process exits.", lower_bound=1
)


def main() -> None:
    """Runs the command."""
    config = config_file.checked_config(_CONFIG)
    if _WANDB.value and not _TENSORBOARD.value:
        raise UserError("--wandb copies what TensorBoard gets: leave --notensorboard out")
    with multihost.connect(
        _COORDINATOR.value,
        _NUM_PROCESSES.value,
        _PROCESS_ID.value,
        timeout_seconds=_HOST_TIMEOUT.value,
    ):
        cli.check_backend()
        launch.train(
            config,
            _WORKDIR.value or config_file.default_workdir(config),
            cache_folder=choose_folder(_CACHE_DIR.value),
            tensorboard=_TENSORBOARD.value,
            wandb=_WANDB.value,
        )


if __name__ == "__main__":
    cli.run(main)
