"""One run, from wherever it stands to its result.

A run goes on from the first of these that is there:

  1. `result.json` of as many epochs as are asked for: it is finished (`finished_result`);
  2. the newest checkpoint that is intact: training goes on with the step after it;
  3. nothing: training begins from the seed.

It stops, when it is asked to, after the dispatch in progress, and keeps what it has.
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

from bn_vgg import multihost, provenance
from bn_vgg.checkpoint import Checkpoints, digest_of
from bn_vgg.data.prepared import PreparedData
from bn_vgg.errors import Interrupted, UserError
from bn_vgg.evaluation import Evaluated, Evaluator, Observed
from bn_vgg.finite import Finder, Found, Remembered
from bn_vgg.hooks import Hooks, epoch_line, format_seconds
from bn_vgg.keeping import Keeper
from bn_vgg.metrics import TrainMetrics
from bn_vgg.parallel import check_batch_size
from bn_vgg.programs import Session
from bn_vgg.run_data import RunData
from bn_vgg.run_dir import Workdir, flatten
from bn_vgg.steps import to_intensities
from bn_vgg.stopping import StopRequest

# What a stream of random numbers is for, folded into the seed's key.
_INIT, _DROPOUT = 0, 1
# How often the loss is looked at within an epoch, in dispatches. Looking waits for the device.
_DISPATCHES_BETWEEN_LOOKS = 5


def init_key(key: jax.Array) -> jax.Array:
    """Returns the key of the initial weights, from the seed's."""
    return jax.random.fold_in(key, _INIT)


def dropout_key(key: jax.Array, epoch: int) -> jax.Array:
    """Returns the key of an epoch's dropout, counted from 0, from the seed's."""
    return jax.random.fold_in(jax.random.fold_in(key, _DROPOUT), epoch)


def finished_result(config: ConfigDict, workdir: Workdir) -> dict[str, Any] | None:
    """Returns the result of a run that has done all its epochs, otherwise None."""
    if not workdir.exists("result.json"):
        return None
    result = workdir.read("result.json")
    return result if result["config"]["num_epochs"] == config.num_epochs else None


def train(
    config: ConfigDict,
    workdir: Workdir,
    data: PreparedData,
    hooks: Hooks,
    session: Session | None = None,
) -> dict[str, Any]:
    """Trains, evaluates and keeps the best, up to `config.num_epochs`.

    Args:
      config: of the run; `workdir` was claimed for it.
      workdir: where it is kept, and resumed from.
      data: what to train on.
      hooks: what else to do along the way.
      session: shared with other runs of the process; its own if it is None.

    Returns:
      What `result.json` holds.

    Raises:
      UserError: the devices cannot share a batch, a checkpoint cannot be read or
        written, or a number was not finite.
      Interrupted: it was asked to stop.
    """
    session = session or Session()
    devices = session.devices
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
    multihost.agree({"images": run_data.about})
    hooks.say(
        f"{config.name} seed {config.seed} on {devices.count} {jax.default_backend()} device(s): "
        f"{run_data.about}"
    )
    stop = StopRequest()
    with (
        Checkpoints(workdir.checkpoints, set_aside=workdir.damaged) as checkpoints,
        stop.listening(),
    ):
        keeper = Keeper(workdir, checkpoints, devices, hooks.say)
        return Run(config, keeper, run_data, session, hooks, stop).to_the_end()


class Run:
    """A run in progress: its compiled steps, its state and what is known of it.

    Attributes:
      state: after `step` updates, on the devices.
      metrics: of the epoch in progress so far, on the devices.
      remembered: a copy of state and metrics, from when all was last known to be finite: some
        dispatches ago, or the epoch's beginning. A step that is not is searched for from there.
      last_finite: the end of an error's message: number, loss and gradient norm of the last
        finite step; empty before there is one.
    """

    def __init__(self, config, keeper, data, session, hooks, stop):
        self.config, self.keeper, self.data, self.hooks = config, keeper, data, hooks
        self.devices, self.stop = session.devices, stop
        self.key = jax.random.key(config.seed)
        self.programs = session.programs(
            config.model.to_dict(), config.optimizer.to_dict(), config.data.crop_size
        )
        self.evaluator = Evaluator(
            self.programs, self.devices, data, epsilon=config.model.norm_epsilon,
            precise_examples=config.eval.precise_examples,
            compared_examples=config.eval.compared_examples,
            after_dispatch=self._stop_if_asked,
        )  # fmt: skip
        state = self.programs.init(init_key(self.key), self._images_to_initialize_with())
        self.finder = Finder(
            self.programs, self.devices,
            crop_size=config.data.crop_size, by_operation=config.debug.nans,
        )  # fmt: skip
        parameter_overview.log_parameter_overview(state.variables)
        state, metrics = keeper.take_up(state)
        if jax.process_count() > 1:
            begins = digest_of(keeper.progress, state)
            multihost.agree({"step": keeper.progress.step, "state at the start": begins})
        self.step, self.last_finite = keeper.progress.step, ""
        self.state, self.metrics = self.devices.replicate((state, metrics))

    def _images_to_initialize_with(self) -> jax.Array:
        if self.programs.model.norm.initializes_from_data:
            return to_intensities(jnp.asarray(self.data.first_windows()))
        side = self.config.data.crop_size
        return jnp.zeros((1, side, side, 3), jnp.float32)

    def to_the_end(self) -> dict[str, Any]:
        """Trains what epochs are left and writes the result."""
        windows = self.data.first_windows() if self.step == 0 else None
        self.hooks.write_start(flatten(self.config.to_dict()), windows)
        while (epoch := self.keeper.progress.epoch) < self.config.num_epochs:
            trained = self._train_epoch(epoch)
            validated = self._validate()
            observed = self.evaluator.observe(self.state, validated, epoch)
            self.keeper.end_epoch(self.step, validated.error_rate)
            self.metrics = self.devices.replicate(TrainMetrics.empty())
            self._record_epoch(trained, validated, observed)
            self.keeper.save(self.state)
            multihost.epoch_done()
        return self._finish()

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        config, num_steps = self.config, self.data.steps_per_epoch
        key = self.devices.replicate(dropout_key(self.key, epoch))
        self._remember()
        done = self.step - epoch * num_steps
        started = time.monotonic()
        feed = self.data.train
        dispatches = feed.dispatches(self.data.train_batches(epoch), skip=done)
        # A bar on a terminal, of the first host alone; it vanishes when the epoch is done.
        bar = tqdm(
            total=num_steps, initial=done, desc=f"epoch {epoch + 1}/{config.num_epochs}",
            unit=" steps", leave=False, disable=None if jax.process_index() == 0 else True,
        )  # fmt: skip
        with bar:
            for number, dispatch in enumerate(dispatches, start=1):
                self.state, self.metrics = self.programs.train_steps(
                    (self.state, self.metrics), key, dispatch.batches, feed.pixels
                )
                self.step += dispatch.size
                for action in self.hooks.actions:
                    action(self.step)
                if self.step == dispatch.size:
                    self._fetch_means()
                    logging.info("the first %d steps are done", self.step)
                if number % _DISPATCHES_BETWEEN_LOOKS == 0:
                    bar.set_postfix(loss=f"{self._fetch_means()['loss']:.3f}")
                    self._remember()
                bar.update(dispatch.size)
                self._stop_if_asked()
                self._keep_now_and_then(dispatch.size)
        trained = self._fetch_means()
        images = (num_steps - done) * config.batch_size
        if images:  # none where an earlier start had done all steps of the epoch
            trained["images_per_second"] = images / (time.monotonic() - started)
        return trained

    def _remember(self) -> None:
        copies = self.devices.copy((self.state, self.metrics))
        self.remembered = Remembered(self.step, *copies)

    def _stop_if_asked(self) -> None:
        multihost.step_done()
        asked = self.stop.asked()
        if asked is None:
            return
        if self.step > self.keeper.progress.step:
            self._keep()
        self.keeper.wait()
        raise Interrupted(asked, f"stopped by {asked.name} and kept after step {self.step}")

    def _keep_now_and_then(self, num_steps: int) -> None:
        """Writes a checkpoint where the last `num_steps` have passed a multiple of so many."""
        every = self.config.checkpoint.every_steps
        ends_epoch = self.step % self.data.steps_per_epoch == 0
        if every and self.step // every > (self.step - num_steps) // every and not ends_epoch:
            self._keep()

    def _keep(self) -> None:
        self._fetch_means()
        self.keeper.keep_within_epoch(self.step, self.state, self.metrics)

    def _fetch_means(self) -> dict[str, float]:
        """Fetches the epoch's means so far.

        Raises:
          UserError: a loss, gradient, statistic or parameter was not a finite number.
        """
        computed = jax.device_get(self.devices.fetch(self.metrics).compute())
        first, loss, norm = (x.item() for x in computed.pop("first_non_finite"))
        if loss >= 0:  # otherwise no step of this epoch was finite
            last = first - 1 if first >= 0 else self.step
            self.last_finite = f"; step {last} had loss {loss:.4g}, gradient norm {norm:.4g}"
        if first >= 0:
            raise self._stopped(first)
        return {name: value.item() for name, value in computed.items()}

    def _stopped(self, first: int) -> UserError:
        """Finds out why step `first` was not finite."""
        multihost.start()  # what follows is compiled anew
        epoch, feed = self.keeper.progress.epoch, self.data.train
        found = self.finder.in_training(
            self.remembered, first, dropout_key(self.key, epoch), feed,
            self.data.train_batches(epoch), begun=epoch * self.data.steps_per_epoch,
        )  # fmt: skip
        return self._not_finite(found, f"at step {first}")

    def _validate(self) -> Evaluated:
        """Evaluates at the end of an epoch.

        Raises:
          UserError: the loss is not a finite number. It tells of an epoch's last update,
            which no training loss comes after, before a checkpoint is written.
        """
        feed = self.data.valid
        validated = self.evaluator.evaluate(self.state, feed)
        if not math.isfinite(validated.loss):
            multihost.start()
            batches = self.data.eval_batches(feed, self.config.eval.compared_examples)
            found = self.finder.in_validation(self.state, validated.moments, feed, batches)
            raise self._not_finite(found, f"after step {self.step}")
        return validated

    def _not_finite(self, found: Found, when: str) -> UserError:
        """Keeps what was remembered, if no checkpoint is newer, and tells of it all."""
        keeper = self.keeper
        if self.remembered.step > keeper.progress.step or keeper.progress.step == 0:
            keeper.keep_within_epoch(*self.remembered)
            keeper.wait()
        last = self.last_finite and self.last_finite + found.before
        return UserError(
            f"{found.what} {when} is not a finite number{found.where}, with config.model.norm="
            f"{self.config.model.norm}{last}; the checkpoint of step {keeper.progress.step} is "
            f"kept in {keeper.workdir.path}{found.advice}"
        )

    def _record_epoch(
        self, trained: dict[str, float], validated: Evaluated, observed: Observed
    ) -> None:
        progress = self.keeper.progress
        scalars = {f"train/{name}": value for name, value in trained.items()}
        scalars |= {"valid/loss": validated.loss, "valid/error_rate": validated.error_rate}
        scalars |= {"valid/best_error_rate": progress.best_error_rate} | observed.scalars
        self.keeper.write_line(scalars)
        if progress.epoch in (1, progress.best_epoch, self.config.num_epochs):
            self.hooks.write_histograms(progress.step, observed.channels)
        self.hooks.write_scalars(progress.step, scalars)
        self.hooks.say(epoch_line(progress, self.config.num_epochs, scalars))

    def _finish(self) -> dict[str, Any]:
        progress = self.keeper.progress
        best = self.keeper.best(self.devices.fetch(self.state))
        tested = self.evaluator.evaluate(self.devices.replicate(best), self.data.test)
        norm_digest = provenance.norm_digest(self.config.model.norm)
        speed = "train/images_per_second"
        speeds = [line[speed] for line in self.keeper.lines if speed in line]
        result = {
            "config": self.config.to_dict(),
            "num_parameters": int(parameter_overview.count_parameters(best.params)),
            "best_epoch": progress.best_epoch,
            "best_valid_error_rate": progress.best_error_rate,
            "test_error_rate": tested.error_rate,
            # The median: an epoch after a start includes the compilation. 0 where no epoch
            # tells: the only one, and an earlier start had done all its steps.
            "images_per_second": statistics.median(speeds or [0.0]),
            "wall_seconds": self.keeper.seconds(),
            "hardware": provenance.hardware(),
            "versions": provenance.versions(),
            **({"norm_digest": norm_digest} if norm_digest else {}),
            "commit": provenance.commit(),
            "command": provenance.command(),
        }
        self.hooks.write_scalars(progress.step, {"test/error_rate": tested.error_rate})
        self.keeper.write_result(result)
        self.hooks.say(
            f"best epoch {result['best_epoch']}: valid error "
            f"{result['best_valid_error_rate']:.4f}, test error {result['test_error_rate']:.4f}"
            f"  ({format_seconds(result['wall_seconds'])}; {self.keeper.workdir.path}/result.json)"
        )
        return result
