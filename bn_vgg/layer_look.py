"""A look into one training step, layer by layer: what is finite in it, and how large."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bn_vgg.feed import with_windows
from bn_vgg.models.vgg import VGG, Block
from bn_vgg.state import TrainState
from bn_vgg.steps import make_loss


def layer_of(path) -> str:
    """`block3.norm` or `hidden`, of the path of an array of the state."""
    keys = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
    return ".".join(keys[:-1][:2])


def make_look(model: VGG, crop_size: int, axis_name: str | None):
    """Returns `look(state, rng, stacked, pixels)`: into one training step, layer by layer.

    What it returns holds `loss`; `outputs`, by layer: whether they are finite and the largest
    finite absolute value; `of_outputs`: whether the gradient that reaches each of these is finite;
    and `gradients`, in the shape of the parameters: whether they are. `Look` reads it.
    """
    loss_of = make_loss(model)

    def look(state: TrainState, rng, stacked, pixels):
        batch = with_windows({key: a[0] for key, a in stacked.items()}, pixels, crop_size)

        def forward(params, added):
            outputs: dict[str, jax.Array] = {}

            def note(call, args, kwargs, context):
                y = call(*args, **kwargs)
                module = context.module
                if context.method_name != "__call__" or not isinstance(module.parent, VGG | Block):
                    return y
                # Numbered, because JAX sorts what a dictionary holds.
                name = f"{len(outputs):04} {'.'.join(module.path)}"
                outputs[name] = y
                # The gradient of a zero that is added is the one that reaches the output.
                return y + added[name] if added else y

            with nn.intercept_methods(note):
                loss, _ = loss_of(params, state.batch_stats, batch, rng)
            return loss, outputs

        _, shapes = jax.eval_shape(forward, state.params, {})
        added = {name: jnp.zeros(y.shape, y.dtype) for name, y in shapes.items()}
        (loss, outputs), (gradients, of_outputs) = jax.value_and_grad(
            forward, argnums=(0, 1), has_aux=True
        )(state.params, added)
        if axis_name is not None:
            loss, gradients = lax.pmean((loss, gradients), axis_name)

        def finite(x):
            found = jnp.isfinite(x).all().astype(jnp.int32)
            return found if axis_name is None else lax.pmin(found, axis_name)

        def largest(x):
            found = jnp.where(jnp.isfinite(x), jnp.abs(x), 0).max().astype(jnp.float32)
            return found if axis_name is None else lax.pmax(found, axis_name)

        return {
            "loss": loss,
            "outputs": {name: (finite(y), largest(y)) for name, y in outputs.items()},
            "of_outputs": jax.tree.map(finite, of_outputs),
            "gradients": jax.tree.map(finite, gradients),
        }

    return look


class Look:
    """What `make_look` found, on the host.

    Attributes:
      loss_is_finite: of the batch.
      gradients_are_finite: all of the parameters'.
      largest: absolute value among a layer's activations, of those that are finite; by layer,
        in the order of the computation.
    """

    def __init__(self, seen: dict[str, Any]):
        """Takes NumPy arrays."""
        names = sorted(seen["outputs"])
        self._layers = [name.split()[1] for name in names]
        self._finite = [bool(seen["outputs"][name][0]) for name in names]
        self._backwards = [bool(seen["of_outputs"][name]) for name in names]
        self.largest = {
            layer: float(seen["outputs"][name][1])
            for layer, name in zip(self._layers, names, strict=True)
        }
        self._bad_parameters = {
            layer_of(path)
            for path, finite in jax.tree_util.tree_leaves_with_path(seen["gradients"])
            if not finite
        }
        self.loss_is_finite = bool(np.isfinite(seen["loss"]))
        self.gradients_are_finite = not self._bad_parameters

    def first_activations(self) -> str | None:
        """The first layer whose output is not finite, if there is one."""
        for layer, finite in zip(self._layers, self._finite, strict=True):
            if not finite:
                return layer
        return None

    def first_gradient(self) -> str | None:
        """The first layer, on the way back from the loss, whose gradients are not finite.

        Those of its parameters, or of its input: what reached its output was finite.
        """
        through = None
        for layer, finite in zip(self._layers[::-1], self._backwards[::-1], strict=True):
            if not finite:
                return through or layer
            if layer in self._bad_parameters:
                return layer
            through = layer
        return None

    def lines(self) -> list[str]:
        """One for each layer, for the log."""
        return [
            f"{layer}: activations up to {self.largest[layer]:.4g}"
            + ("" if finite else ", not all finite")
            + ("" if backwards else "; the gradient of them is not finite")
            for layer, finite, backwards in zip(
                self._layers, self._finite, self._backwards, strict=True
            )
        ]
