"""Finds the operation that makes a NaN or an infinity of finite numbers, one by one."""

import inspect
import linecache
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from jax.extend import core

from bn_vgg.models.norms import NormFactory


def find(function: Callable, *args, norm: NormFactory) -> str | None:
    """Computes `function(*args)` operation by operation.

    An infinity that comes of another one, as -inf does where a maximum begins, is not what is
    looked for.

    Args:
      function: computes with JAX, on one device.
      *args: trees of arrays.
      norm: the run's, which may be in a file of its own.

    Returns:
      The operation, what it makes and where it stands in the code, for a person; None where
      all was finite.
    """
    closed = jax.make_jaxpr(function)(*args)
    leaves = jax.tree.leaves(args)
    found = _first(closed.jaxpr, closed.consts, leaves) or _first(
        closed.jaxpr, closed.consts, leaves, blame_constants=True
    )
    if found is None:
        return None
    name, frames, made = found
    kind = "a NaN" if _any_nan(made) else "an infinity"
    logging.info(
        "%s makes %s; it was called here, the innermost first\n%s", name, kind,
        "\n".join(f"{f.file_name}:{f.line_num} {f.function_name}" for f in frames),
    )  # fmt: skip
    return f"{name} makes {kind} in {_place(frames, norm)}"


def _first(
    jaxpr: core.Jaxpr, consts: list, args: list, *, blame_constants: bool = False
) -> tuple[str, list, list] | None:
    """The first operation whose results are not finite though all it takes is.

    With `blame_constants` the first one whose results are a NaN, though all that it takes is
    finite, but for constants of the code. (Where there is one of the other kind, such a NaN may
    be a mask.)

    Returns:
      Its name, the frames that it was called in, the innermost first, and its results.
    """
    values: dict[Any, Any] = dict(
        zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True)
    )
    constants = set(jaxpr.constvars) if blame_constants else set()
    wrong = _any_nan if blame_constants else _any_not_finite
    equations: list[Any] = list(jaxpr.eqns)
    last_use = {x: i for i, eqn in enumerate(equations) for x in eqn.invars if _is_var(x)}
    for i, eqn in enumerate(equations):
        takes = list(dict.fromkeys(filter(_is_var, eqn.invars)))
        alone = jaxpr.replace(
            constvars=[], invars=takes, outvars=eqn.outvars, eqns=[eqn], effects=eqn.effects
        )
        made = core.jaxpr_as_fun(core.ClosedJaxpr(alone, []))(*(values[x] for x in takes))
        taken = [values[x] if _is_var(x) else x.val for x in eqn.invars]
        variable = [x for x in takes if x not in constants]
        judged = [values[x] for x in variable] if blame_constants else taken
        if blame_constants and not variable:
            constants.update(eqn.outvars)
        elif wrong(made) and not _any_not_finite(judged):
            name = eqn.primitive.name
            if name in ("jit", "pjit"):  # what is called has forgotten from where
                inner = eqn.params["jaxpr"]
                found = _first(inner.jaxpr, inner.consts, taken)
                name, _, made = found or (name, None, made)
            return name, _frames(eqn), made
        values |= zip(eqn.outvars, made, strict=True)
        for x in takes:
            if last_use[x] == i:
                del values[x]  # a network's activations are large
    return None


def _is_var(x) -> bool:
    return not isinstance(x, core.Literal)


def _is_float(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), jnp.floating)


def _any_not_finite(arrays: list) -> bool:
    return not all(bool(jnp.isfinite(x).all()) for x in arrays if _is_float(x))


def _any_nan(arrays: list) -> bool:
    return any(bool(jnp.isnan(x).any()) for x in arrays if _is_float(x))


def _frames(eqn: core.JaxprEqn) -> list:
    traceback = eqn.source_info.traceback
    return traceback.frames if traceback else []


def _place(frames: list, norm: NormFactory) -> str:
    """The innermost line of the normalizer's file or of this package.

    Of an operation of a gradient it is the line that has that gradient.
    """
    own, package = inspect.getsourcefile(norm.build), Path(__file__).parents[1]
    for frame in frames:
        path = frame.file_name
        if path == own or Path(path).is_relative_to(package):
            code = linecache.getline(path, frame.line_num).strip()
            return f"{path}, line {frame.line_num}: {code}"
    return "a library"
