"""The training loop of one run: epochs of chunks, evaluations, checkpoints, the result."""

import collections
import dataclasses
import math
import signal
import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from clu import metrics as clu_metrics
from clu import parameter_overview
from ml_collections import ConfigDict
from tqdm import tqdm

from bn_vgg import checkpoint, evaluation, finite, multihost, provenance
from bn_vgg.augment import to_intensities
from bn_vgg.checkpoint import Checkpointer, Progress
from bn_vgg.data.pipeline import Chunk, Data, Split
from bn_vgg.devices import Devices
from bn_vgg.errors import Interrupted, UserError, wrap_errors
from bn_vgg.metrics import TrainMetrics
from bn_vgg.optimizer import find_params_ema, make_schedule
from bn_vgg.programs import Programs
from bn_vgg.run_dir import Workdir, flatten
from bn_vgg.steps import TrainState
from bn_vgg.stopping import StopRequest
from bn_vgg.weights import load_weights
from bn_vgg.writers import TensorBoard, epoch_line, format_seconds

# Purposes of random numbers, folded into the seed's key.
_INIT, _EPOCHS = 0, 1


def init_key(seed: int) -> jax.Array:
    """Returns the key of the initial weights."""
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), _INIT)


def epoch_key(seed: int, epoch: int) -> jax.Array:
    """Returns the key of all random numbers in the steps of `epoch`, counted from 0."""
    key = jax.random.key(seed, impl="threefry2x32")
    return jax.random.fold_in(jax.random.fold_in(key, _EPOCHS), epoch)


class Run:
    """A run in progress: `Run(…).train_and_evaluate()`."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: Workdir,
        data: Data,
        devices: Devices,
        board: TensorBoard | None,
        say: Callable[[str], None],
    ):
        """Makes the programs. `say` prints a line."""
        self.config, self.workdir, self.data, self.devices = config, workdir, data, devices
        self.board, self.say, self.stop = board, say, StopRequest()
        with wrap_errors(
            "config.model: no network can be made for crops of config.data.crop_size "
            f"{config.data.crop_size}"
        ):
            self.programs = Programs(config.to_dict(), devices, data.steps_per_epoch)
        self.schedule = make_schedule(config.to_dict(), data.steps_per_epoch)
        # At the last checkpoint or the end of the last epoch, whichever is later.
        self.progress = Progress()
        # The lines of `metrics.jsonl`, one for each epoch.
        self.lines: list[dict[str, Any]] = []
        # Functions that wait for the dispatched chunks, the oldest first.
        self._in_flight: collections.deque[Callable[[], Any]] = collections.deque()
        self._compiling = True

    def train_and_evaluate(self) -> dict[str, Any]:
        """Restores the newest checkpoint, trains the remaining epochs and returns the result."""
        # With several processes JAX handles SIGTERM, see `multihost.preempted`.
        several = multihost.is_multiprocess()
        return self._train() if several else self.stop.run_and_listen(self._train)

    def _train(self) -> dict[str, Any]:
        state, metrics = self._restore()
        # `state` is the state after `step` updates; `metrics` cover the current epoch so far.
        self.step = self.progress.step
        self.state, self.metrics = self.devices.replicate((state, metrics))
        self._began = time.monotonic() - self.progress.seconds
        folder = self.workdir.checkpoints
        with Checkpointer(folder) as self.checkpointer, ThreadPoolExecutor(1) as self.recorder:
            # `result()` waits for the last epoch's `_record`, and raises its errors.
            self._recording: Future = self.recorder.submit(lambda: None)
            return self._run_epochs()

    def _restore(self) -> tuple[TrainState, clu_metrics.Collection]:
        """Reads the newest checkpoint, or initializes from the seed."""
        config, workdir, programs = self.config, self.workdir, self.programs
        side, metrics = config.data.crop_size, TrainMetrics.empty()
        images = jnp.zeros((1, side, side, 3), jnp.float32)
        if programs.model.norm.initializes_from_data:
            images = to_intensities(jnp.asarray(self.data.first_crops()))
        state = programs.init(init_key(config.seed), images)
        if config.init.weights and not checkpoint.list_steps(workdir.checkpoints):
            state = load_weights(state, config.init.weights, statistics=config.init.statistics)
            state = state.replace(opt_state=programs.optimizer.init(state.params))
        state = state.with_precise_stats(config.to_dict(), programs.model)
        parameter_overview.log_parameter_overview(state.variables)
        progress, state, damages = checkpoint.restore(workdir.checkpoints, workdir.damaged, state)
        for damage in damages:
            self.say(f"{damage}; it is kept in {workdir.damaged}")
        if progress.within_epoch is not None:
            leaves, structure = jax.tree.flatten(metrics)
            if len(leaves) != len(progress.within_epoch):
                raise UserError(
                    f"the code's training metrics have changed since step {progress.step} of "
                    f"{workdir.path}: name another --workdir"
                )
            pairs = zip(progress.within_epoch, leaves, strict=True)
            leaves = [jnp.asarray(number, leaf.dtype) for number, leaf in pairs]
            metrics = jax.tree.unflatten(structure, leaves)
        # A killed run may have written an epoch's line, but not its checkpoint.
        lines = [line for line in workdir.read_metrics() if line["epoch"] <= progress.epoch]
        if len(lines) != progress.epoch:
            raise UserError(
                f"{workdir.path}/metrics.jsonl has {len(lines)} epochs, but the checkpoint has "
                f"{progress.epoch}: copy the run's whole folder, or name another --workdir"
            )
        if progress.step:
            self.say(f"resuming after epoch {progress.epoch} (step {progress.step})")
        digest = checkpoint.compute_digest(progress, jax.device_get(state))
        multihost.check_agreement({"step": progress.step, "state at the start": digest})
        self.progress, self.lines = progress, lines
        return state, metrics

    def _run_epochs(self) -> dict[str, Any]:
        if self.board is not None:
            images = self.data.first_crops() if self.step == 0 else None
            self.board.write_start(flatten(self.config.to_dict()), images)
        for epoch in range(self.progress.epoch, self.config.num_epochs):
            whole = self.step == epoch * self.data.steps_per_epoch
            speed = self._train_epoch(epoch)
            self._end_epoch(epoch, speed)
            # A resumed part of an epoch may not have compiled chunks of the usual length.
            if whole:
                multihost.epoch_done()
        self._recording.result()
        return self._finish()

    def _train_epoch(self, epoch: int) -> float | None:
        """Trains the rest of an epoch. Returns images per second, or None if no step was left."""
        num_steps, num_epochs = self.data.steps_per_epoch, self.config.num_epochs
        done = self.step - epoch * num_steps
        rng = self.devices.replicate(epoch_key(self.config.seed, epoch))
        started = time.monotonic()
        # On the first host's terminal; removed at the end of the epoch.
        bar = tqdm(
            total=num_steps, initial=done, desc=f"epoch {epoch + 1}/{num_epochs}", unit=" steps",
            leave=False, disable=None if jax.process_index() == 0 else True,
        )  # fmt: skip
        with bar:
            bar.set_postfix_str("compiling" if self._compiling else "")
            for chunk in self.data.train(epoch, skip=done):
                step, carry = self.step, (self.state, self.metrics)
                self.state, self.metrics = self.programs.train_chunk(
                    carry, rng, chunk.batches, chunk.pixels
                )
                self.step += chunk.num_steps
                check = partial(self._check_chunk, step, carry, self.metrics, chunk, rng, bar)
                self._enqueue(check)
                self._save_periodically(chunk.num_steps)
            self._wait_for_chunks()
        images = (num_steps - done) * self.config.batch_size
        return images / (time.monotonic() - started) if images else None

    def _enqueue(self, wait: Callable[[], Any]) -> None:
        """Adds a dispatched chunk, and waits for all earlier ones; on a CPU for this one, too.

        `wait` waits for the chunk. Also raises errors of `_record`, and `Interrupted` if a signal
        has stopped the run.
        """
        self._in_flight.append(wait)
        self._wait_for_chunks(0 if jax.default_backend() == "cpu" else 1)
        if self._recording.done():
            self._recording.result()
        multihost.chunk_done()
        self._stop_if_asked()

    def _wait_for_chunks(self, left: int = 0) -> None:
        while len(self._in_flight) > left:
            self._in_flight.popleft()()

    def _check_chunk(self, step: int, carry, metrics, chunk: Chunk, rng, bar: tqdm) -> None:
        """Waits for a chunk and shows its loss; raises a UserError if a number is not finite.

        `step` and `carry`, state and metrics, are those before the chunk, to repeat or save it.
        """
        means = self._compute(metrics)
        bar.update(chunk.num_steps)
        bar.set_postfix_str(f"loss={means['loss']:.3f}")
        if self._compiling:
            logging.info("the first %d steps are done", chunk.num_steps)
            self._compiling = False
        if means["finite"] == 1:
            return
        multihost.expect_compilation()
        what = finite.describe_first_non_finite(
            self.programs, carry, chunk, rng, find_operation=self.config.debug.nans
        )
        self._recording.result()
        if step > self.progress.step:
            self._save(step, *carry)
        kept = f"the checkpoint of step {self.progress.step} is kept in {self.workdir.path}"
        raise UserError(
            f"{what}; " + (kept if self.progress.step else "there is no checkpoint yet")
        )

    def _end_epoch(self, epoch: int, speed: float | None) -> None:
        """Evaluates; the epoch's record and checkpoint are written while the next one trains."""
        precise = compared = None
        if self.config.eval.precise_examples and self.programs.model.norm.has_averages:
            precise = self._compute_precise_stats(self.state, epoch)
            compared = self._run_chunks(
                self.programs.compare_chunk, self.programs.empty_comparison, self.data.compared(),
                self.state, precise,
            )  # fmt: skip
        if precise is not None and self.state.precise_stats:
            average, eval_stats = find_params_ema(self.state.opt_state), precise
            if average is not None:
                eval_stats = self._compute_precise_stats(self.state.replace(params=average), epoch)
            self.state = self.state.replace(precise_stats=eval_stats.batch_stats)
        valid = self._evaluate(self.state.eval_variables, self.data.valid_split)
        self._recording.result()
        args = (self.step, self.state, self.metrics, speed, valid, precise, compared)
        self.metrics = self.programs.empty_training
        if multihost.is_multiprocess():  # all must reach a checkpoint's barriers together
            self._record(*args)
        else:
            self._recording = self.recorder.submit(self._record, *args)

    def _record(self, step, state, metrics, speed, valid, precise, compared) -> None:
        config = self.config
        trained = self._compute(metrics)
        valid, maxima = self._compute(valid[0]), self.devices.fetch(valid[1])
        if not math.isfinite(valid["loss"]):
            layers = [name for name, x in maxima.items() if not np.isfinite(x).all()]
            where = f" (first in the activations of {layers[0]})" if layers else ""
            raise UserError(f"the validation loss after step {step} is not a finite number{where}")
        channels = evaluation.never_active(maxima)
        del trained["finite"]
        scalars = {f"train/{name}": value for name, value in trained.items()}
        scalars["train/learning_rate"] = float(self.schedule(step - 1))
        if speed is not None:
            scalars["train/images_per_second"] = speed
        self.progress = progress = self.progress.after_epoch(
            step=step, valid_error_rate=valid["error_rate"], seconds=self._seconds()
        )
        scalars |= {f"valid/{name}": value for name, value in valid.items()}
        scalars["valid/best_error_rate"] = progress.best_error_rate
        if precise is not None:
            precise, running = self.devices.fetch((precise, state.batch_stats))
            distances = evaluation.running_lag(running, precise, config.model.norm_epsilon)
            channels = distances | channels
            scalars |= {f"valid/{name}": value for name, value in self._compute(compared).items()}
        observed = evaluation.summarize(channels)
        line = {"epoch": progress.epoch, "step": step, **scalars, **observed}
        self.lines.append(line | {"seconds": progress.seconds})
        self.workdir.write_metrics(self.lines)
        if self.board is not None:
            shown = progress.epoch in (1, progress.best_epoch, config.num_epochs)
            self.board.write_epoch(step, scalars, observed, channels if shown else {})
        self.say(epoch_line(progress, config.num_epochs, scalars))
        self.checkpointer.save(self.devices.fetch(state), progress)

    def _evaluate(self, variables, split: Split) -> Any:
        empty, chunks = self.programs.empty_evaluation, self.data.evaluation(split)
        return self._run_chunks(self.programs.eval_chunk, empty, chunks, variables)

    def _compute_precise_stats(self, state: TrainState, epoch: int) -> evaluation.PreciseStats:
        empty = self.programs.empty_precise.replace(batch_stats=state.batch_stats)
        rng = self.devices.replicate(epoch_key(self.config.seed, epoch))
        chunks = self.data.precise(epoch)
        return self._run_chunks(self.programs.precise_chunk, empty, chunks, state, rng)

    def _run_chunks(self, program: Callable, carry, chunks: Iterable[Chunk], *args) -> Any:
        for chunk in chunks:
            carry = program(carry, *args, chunk.batches, chunk.pixels)
            self._enqueue(partial(jax.block_until_ready, carry))
        return carry

    def _finish(self) -> dict[str, Any]:
        """Evaluates the best epoch on the test images and writes the result."""
        progress, config, norm = self.progress, self.config, self.programs.model.norm
        multihost.expect_compilation()  # for the test split
        self.checkpointer.wait()
        folder, like = self.workdir.checkpoints, self.devices.fetch(self.state)
        best = checkpoint.read(folder, progress.best_step, like)[1]
        state = self.devices.replicate(best)
        rates = {"test_error_rate": self._test(state.eval_variables)}
        if state.precise_stats:
            rates["test_error_rate_precise"] = rates["test_error_rate"]
        elif config.eval.precise_examples and norm.has_averages:
            precise = self._compute_precise_stats(state, progress.best_epoch - 1)
            variables = {"params": state.params, "batch_stats": precise.batch_stats}
            rates["test_error_rate_precise"] = self._test(variables)
        speed = "train/images_per_second"
        speeds = [line[speed] for line in self.lines if speed in line]
        result = {
            "config": config.to_dict(),
            "num_parameters": int(parameter_overview.count_parameters(best.params)),
            "best_epoch": progress.best_epoch,
            "best_valid_error_rate": progress.best_error_rate,
            **rates,
            # The median: the first epoch of each process includes compilation. 0 if an earlier
            # process had done the only epoch.
            "images_per_second": statistics.median(speeds or [0.0]),
            "wall_seconds": self._seconds(),
            "hardware": provenance.hardware(),
            "versions": provenance.versions(),
            "jax_settings": provenance.jax_settings(config.model),
            "commit": provenance.commit(),
            "user_code": self.workdir.read("format.json")["user_code"],
            "command": provenance.command(),
        }
        if self.board is not None:
            self.board.write_result(progress.step, rates)
        self.workdir.write("result.json", result)
        self.say(
            f"best epoch {result['best_epoch']}: valid error "
            f"{result['best_valid_error_rate']:.4f}, test error {result['test_error_rate']:.4f}"
            f"  ({format_seconds(result['wall_seconds'])}; {self.workdir.path}/result.json)"
        )
        return result

    def _test(self, variables) -> float:
        metrics, _ = self._evaluate(variables, self.data.test_split)
        return self._compute(metrics)["error_rate"]

    def _save_periodically(self, num_steps: int) -> None:
        """Saves if the last `num_steps` passed a multiple of `config.checkpoint.every_steps`."""
        every = self.config.checkpoint.every_steps
        ends_epoch = self.step % self.data.steps_per_epoch == 0
        if every and self.step // every > (self.step - num_steps) // every and not ends_epoch:
            self._save_now()

    def _stop_if_asked(self) -> None:
        asked = signal.SIGTERM if multihost.preempted() else self.stop.signal
        if asked is None:
            return
        self._save_now()
        self.checkpointer.wait()
        raise Interrupted(asked, f"stopped by {asked.name}; state saved after step {self.step}")

    def _save_now(self) -> None:
        self._wait_for_chunks()
        self._recording.result()
        if self.step > self.progress.step:
            self._save(self.step, self.state, self.metrics)

    def _save(self, step: int, state, metrics: clu_metrics.Collection) -> None:
        """Begins to write a checkpoint within an epoch; the state must be finite."""
        leaves = [leaf.item() for leaf in jax.tree.leaves(self.devices.fetch(metrics))]
        self.progress = dataclasses.replace(
            self.progress, step=step, valid_error_rate=math.inf, seconds=self._seconds(),
            within_epoch=leaves,
        )  # fmt: skip
        logging.info("saving a checkpoint at step %d, within an epoch", step)
        self.checkpointer.save(self.devices.fetch(state), self.progress)

    def _compute(self, metrics: clu_metrics.Collection) -> dict[str, float]:
        computed = self.devices.fetch(metrics).compute()
        return {name: value.item() for name, value in computed.items()}

    def _seconds(self) -> float:
        """Returns the seconds spent on the run so far, by this process and earlier ones."""
        return time.monotonic() - self._began
