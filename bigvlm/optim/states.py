"""Parameters and the optimizer's state by path: taken apart, put together, limited, averaged, laid out, kept."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P

from bigvlm.core import paths
from bigvlm.core.parts import RecipeError

Flat = Mapping[str, Any]


def split(params: Any, trainable: Mapping[str, bool]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Nested parameters as two flat dicts ``{path: leaf}``: (trainable, frozen)."""
    flat = paths.flatten(params)
    return ({path: x for path, x in flat.items() if trainable[path]},
            {path: x for path, x in flat.items() if not trainable[path]})


def merge(trainable: Flat, frozen: Flat) -> dict[str, Any]:
    """The nested parameters that ``split`` took apart."""
    return paths.unflatten({**trainable, **frozen})


def clamp(params: Flat, rules: Iterable[tuple[str, float | None, float | None]], what: str = 'clamp') -> dict[str, Any]:
    """Limits what ``(regex, low, high)`` rules match; None is no limit. For after the update (temperatures)."""
    rules = [tuple(rule) for rule in rules]
    for rule in rules:
        if len(rule) != 3 or (None not in rule and rule[1] > rule[2]):
            raise RecipeError(f'{what}: {rule!r} is not (regex, low, high)')
    limits = paths.match(rules, params, what=what, cover=False)
    return {path: jnp.clip(x, *limits[path]) if path in limits else x for path, x in params.items()}


def ema_update(ema: Flat, params: Flat, decay: float) -> dict[str, Any]:
    """decay · ema + (1 − decay) · params, written so that what does not move stays bit for bit."""
    return {path: old + (1. - decay) * (params[path] - old) for path, old in ema.items()}


def global_norm(gradient: Any):
    """The Euclidean norm over all leaves, float32 (float64 of float64); of gradients, before clipping."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(x.astype(jnp.promote_types(jnp.float32, x.dtype)))) for x in jax.tree.leaves(gradient)))


# --- the optimizer's state, by parameter path ---

def state_paths(state: Any, params: Flat) -> dict[str, tuple[str | None, tuple[int, ...]]]:
    """For every leaf of an (abstract) optimizer state: its own path -> (its parameter's path or None, its shape)."""
    return {paths.from_key_path(key_path): (_owner(key_path, params), tuple(leaf.shape))
            for key_path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]}


def _owner(key_path: Sequence[Any], params: Flat) -> str | None:
    last = key_path[-1]
    return last.key if isinstance(last, jax.tree_util.DictKey) and last.key in params else None


def state_shardings(state: Any, params: Flat, specs: Mapping[str, P], mesh) -> Any:
    """The layout of an (abstract) optimizer state: moments as their parameter, factored ones without the dimension that
    was averaged over, the rest replicated. Same structure as ``state``, NamedShardings for leaves.

    ``params``: {path: array or ShapeDtypeStruct}; ``specs``: {path: stored PartitionSpec}.
    """
    def of(key_path, leaf):
        path = _owner(key_path, params)
        if path is None:
            return NamedSharding(mesh, P())
        field = paths.from_key_path(key_path[:-1])
        return NamedSharding(mesh, _moment_spec(field, leaf.shape, params[path].shape, specs[path]))
    return jax.tree_util.tree_map_with_path(of, state)


def _moment_spec(field: str, shape: tuple[int, ...], of_param: tuple[int, ...], spec: P) -> P:
    if shape == of_param:
        return spec
    if len(of_param) < 2:
        return P()
    # optax averages v_row over the largest dimension and v_col over the second largest, by argsort.
    averaged = int(np.argsort(of_param)[-2 if field.endswith('v_col') else -1])
    if shape != of_param[:averaged] + of_param[averaged + 1:]:
        return P()  # optax keeps one number in place of a moment that it does not need
    axes = [*spec, *[None] * (len(of_param) - len(spec))]
    return P(*axes[:averaged], *axes[averaged + 1:])


def keep_unreached(new: Any, old: Any, params: Flat, reached: Callable[[str], bool]) -> Any:
    """The new optimizer state, with the old moments of parameters for which ``reached(path)`` is false."""
    def choose(key_path, new_leaf, old_leaf):
        path = _owner(key_path, params)
        return new_leaf if path is None or reached(path) else old_leaf
    return jax.tree_util.tree_map_with_path(choose, new, old)
