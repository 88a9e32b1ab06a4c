"""One run, from wherever it stands to its result.

A run goes on from the first of these that is there:

  1. `result.json` of as many epochs as are asked for: it is finished (`finished_result`);
  2. the latest checkpoint: training goes on with the epoch after it;
  3. nothing: training begins from the seed.
"""

import math
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from clu import parameter_overview
from ml_collections import ConfigDict
from tqdm import tqdm

from bn_vgg import provenance
from bn_vgg.checkpoint import Checkpoints, Progress
from bn_vgg.data.prepared import PreparedData
from bn_vgg.errors import UserError
from bn_vgg.evaluation import Evaluated, Evaluator, Observed
from bn_vgg.hooks import Hooks, epoch_line, format_seconds
from bn_vgg.metrics import TrainMetrics
from bn_vgg.parallel import Devices, check_batch_size
from bn_vgg.programs import make_programs
from bn_vgg.run_data import RunData
from bn_vgg.state import TrainState, init_state, num_parameters
from bn_vgg.steps import to_intensities
from bn_vgg.workdir import Workdir, flatten

# What a stream of random numbers is for, folded into the seed's key.
_INIT, _DROPOUT = 0, 1
# How often the loss is looked at within an epoch, in dispatches. Looking waits for the device.
_DISPATCHES_BETWEEN_LOOKS = 5


def finished_result(config: ConfigDict, workdir: Workdir) -> dict[str, Any] | None:
    """Returns the result of a run that has done all its epochs, otherwise None."""
    if not workdir.exists("result.json"):
        return None
    result = workdir.read("result.json")
    return result if result["config"]["num_epochs"] == config.num_epochs else None


def train(config: ConfigDict, workdir: Workdir, data: PreparedData, hooks: Hooks) -> dict[str, Any]:
    """Trains, evaluates and keeps the best, up to `config.num_epochs`.

    Args:
      config: of the run; `workdir` was claimed for it.
      workdir: where it is kept, and resumed from.
      data: what to train on.
      hooks: what else to do along the way.

    Returns:
      What `result.json` holds.

    Raises:
      UserError: the devices cannot share a batch, a checkpoint cannot be read or
        written, or a loss was not finite.
    """
    devices = Devices()
    check_batch_size(config.batch_size, devices.count)
    run_data = RunData(
        data,
        devices,
        seed=config.seed,
        batch_size=config.batch_size,
        eval_batch_size=config.eval.batch_size,
        crop_size=config.data.crop_size,
        placement=config.data.placement,
    )
    hooks.say(
        f"{config.name} seed {config.seed} on {devices.count} {jax.default_backend()} device(s): "
        f"{run_data.about}"
    )
    checkpoints = Checkpoints(workdir.checkpoints)
    try:
        return Run(config, workdir, run_data, devices, checkpoints, hooks).to_the_end()
    finally:
        checkpoints.close()


class Run:
    """A run in progress: its compiled steps, its state and what is known of it."""

    def __init__(self, config, workdir, data, devices, checkpoints, hooks):
        self.config, self.workdir, self.data, self.hooks = config, workdir, data, hooks
        self.devices, self.checkpoints = devices, checkpoints
        self.started = time.monotonic()
        self.key = jax.random.key(config.seed)
        crop = config.data.crop_size
        self.programs = make_programs(config.model, config.optimizer, crop, devices)
        self.evaluator = Evaluator(
            self.programs, devices, data, epsilon=config.model.norm_epsilon,
            precise_examples=config.eval.precise_examples,
            compared_examples=config.eval.compared_examples,
        )  # fmt: skip
        state = init_state(
            self.programs.model, self.programs.optimizer,
            jax.random.fold_in(self.key, _INIT), self._images_to_initialize_with(),
        )  # fmt: skip
        self.num_parameters = num_parameters(state.params)
        parameter_overview.log_parameter_overview(state.variables)
        self.progress, self.lines = Progress(), []
        self.state = devices.replicate(self._resume(state))

    def _resume(self, state: TrainState) -> TrainState:
        step = self.checkpoints.latest_step()
        if step is None:
            return state
        self.progress = self.checkpoints.progress(step)
        # A line may have been written for an epoch whose checkpoint was not.
        lines = self.workdir.read_metrics()
        self.lines = [line for line in lines if line["epoch"] <= self.progress.epoch]
        self.hooks.say(f"resuming after epoch {self.progress.epoch} (step {step})")
        return self.checkpoints.restore(step, state)

    def _images_to_initialize_with(self) -> jax.Array:
        if self.programs.model.norm.initializes_from_data:
            return to_intensities(jnp.asarray(self.data.first_windows()))
        side = self.config.data.crop_size
        return jnp.zeros((1, side, side, 3), jnp.float32)

    def to_the_end(self) -> dict[str, Any]:
        """Trains what epochs are left and writes the result."""
        seconds_before = self.progress.seconds
        self._write_start()
        for epoch in range(self.progress.epoch, self.config.num_epochs):
            trained = self._train_epoch(epoch)
            validated = self._validate(epoch)
            observed = self.evaluator.observe(self.state, validated, epoch)
            self.progress = self.progress.after_epoch(
                step=(epoch + 1) * self.data.steps_per_epoch,
                valid_error_rate=validated.error_rate,
                seconds=seconds_before + time.monotonic() - self.started,
            )
            self._record_epoch(trained, validated, observed)
            self.checkpoints.save(self.devices.fetch(self.state), self.progress)
        return self._finish(seconds_before)

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        config, devices = self.config, self.devices
        step, num_steps = epoch * self.data.steps_per_epoch, self.data.steps_per_epoch
        key = jax.random.fold_in(jax.random.fold_in(self.key, _DROPOUT), epoch)
        key, metrics = devices.replicate((key, TrainMetrics.empty()))
        started = time.monotonic()
        feed = self.data.train
        dispatches = feed.several(self.data.epoch(epoch))
        # A bar on a terminal, of the first host alone; it vanishes when the epoch is done.
        bar = tqdm(
            total=num_steps, desc=f"epoch {epoch + 1}/{config.num_epochs}", unit=" steps",
            leave=False, disable=None if jax.process_index() == 0 else True,
        )  # fmt: skip
        with bar:
            for number, several in enumerate(dispatches, start=1):
                self.state, metrics = self.programs.train_steps(
                    (self.state, metrics), key, several.batches, feed.pixels
                )
                step += several.size
                for action in self.hooks.actions:
                    action(step)
                if step == several.size:
                    self._look(metrics)
                    logging.info("the first %d steps are done", step)
                if number % _DISPATCHES_BETWEEN_LOOKS == 0:
                    bar.set_postfix(loss=f"{self._look(metrics)['loss']:.3f}")
                bar.update(several.size)
        trained = self._look(metrics)
        images = num_steps * config.batch_size
        trained["images_per_second"] = images / (time.monotonic() - started)
        return trained

    def _look(self, metrics) -> dict[str, float]:
        """Fetches the means so far.

        Raises:
          UserError: a loss was not a finite number.
        """
        computed = jax.device_get(self.devices.fetch(metrics).compute())
        values = {name: value.item() for name, value in computed.items()}
        first = values.pop("first_non_finite")
        if first >= 0:
            raise self._not_finite(f"the loss of step {first}")
        return values

    def _validate(self, epoch: int) -> Evaluated:
        """Evaluates after `epoch`, counted from 0.

        Raises:
          UserError: the loss is not a finite number. It tells of an epoch's last update,
            which no training loss comes after, before a checkpoint is written.
        """
        validated = self.evaluator.evaluate(self.state, self.data.valid)
        if not math.isfinite(validated.loss):
            step = (epoch + 1) * self.data.steps_per_epoch
            raise self._not_finite(f"the validation loss after step {step}")
        return validated

    def _not_finite(self, what: str) -> UserError:
        kept = self.progress.epoch
        left = f"the checkpoint of epoch {kept} is kept" if kept else "no epoch was done"
        return UserError(
            f"{what} is not a finite number, with config.model.norm={self.config.model.norm}; "
            f"{left} in {self.workdir.path}"
        )

    def _write_start(self) -> None:
        windows = self.data.first_windows() if self.progress.epoch == 0 else None
        self.hooks.write_start(flatten(self.config.to_dict()), windows)

    def _record_epoch(
        self, trained: dict[str, float], validated: Evaluated, observed: Observed
    ) -> None:
        progress = self.progress
        scalars = {f"train/{name}": value for name, value in trained.items()}
        scalars |= {"valid/loss": validated.loss, "valid/error_rate": validated.error_rate}
        scalars |= {"valid/best_error_rate": progress.best_error_rate} | observed.scalars
        self.lines.append(
            {"epoch": progress.epoch, "step": progress.step, **scalars, "seconds": progress.seconds}
        )
        self.workdir.write_metrics(self.lines)
        if progress.epoch in (1, progress.best_epoch, self.config.num_epochs):
            self.hooks.write_histograms(progress.step, observed.channels)
        self.hooks.write_scalars(progress.step, scalars)
        self.hooks.say(epoch_line(progress, self.config.num_epochs, scalars))

    def _finish(self, seconds_before: float) -> dict[str, Any]:
        self.checkpoints.wait()
        best = self.checkpoints.restore(self.progress.best_step, self.devices.fetch(self.state))
        tested = self.evaluator.evaluate(self.devices.replicate(best), self.data.test)
        result = {
            "config": self.config.to_dict(),
            "num_parameters": self.num_parameters,
            "best_epoch": self.progress.best_epoch,
            "best_valid_error_rate": self.progress.best_error_rate,
            "test_error_rate": tested.error_rate,
            # The median: an epoch after a start includes the compilation.
            "images_per_second": statistics.median(
                line["train/images_per_second"] for line in self.lines
            ),
            "wall_seconds": seconds_before + time.monotonic() - self.started,
            "hardware": provenance.hardware(),
            "versions": provenance.versions(),
            "commit": provenance.commit(),
            "command": provenance.command(),
        }
        self.hooks.write_scalars(self.progress.step, {"test/error_rate": tested.error_rate})
        self.workdir.write("result.json", result)
        self.hooks.say(
            f"best epoch {result['best_epoch']}: valid error "
            f"{result['best_valid_error_rate']:.4f}, test error {result['test_error_rate']:.4f}"
            f"  ({format_seconds(result['wall_seconds'])}; {self.workdir.path}/result.json)"
        )
        return result
