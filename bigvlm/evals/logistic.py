"""Logistic regression with an L2 penalty, by L-BFGS on the devices that hold the examples; every step sees them all.

N examples, laid out as K tiles of R rows; D features, C classes.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from bigvlm.core import mesh as mesh_lib

_TILE = 65_536  # rows whose scores exist at a time, over all devices
_STUCK = 3      # steps without a better value, after which float32 has no more to give


class Rows(NamedTuple):
    """Examples on the devices, rows split over the batch axes; the last tile is filled up with rows that do not count."""
    feature_KRD: jax.Array
    target: jax.Array  # int [K, R], a class; or int8 [K, R, C], of each class 1 present, 0 absent, 2 not known
    n: int
    sharding: Any


class Fit(NamedTuple):
    """``value``: (Σ loss + λ/2 |kernel|²) / examples; ``steps`` of L-BFGS."""
    kernel_DC: jax.Array
    bias_C: jax.Array
    value: jax.Array
    steps: jax.Array


def place(feature_ND: np.ndarray, target: np.ndarray, mesh: Mesh | None, tile: int = _TILE) -> Rows:
    """Every process gives all rows, and keeps those of its devices. Bytes per device: 4 N D / devices."""
    shards = 1 if mesh is None else mesh_lib.batch_shards(mesh)
    n = len(feature_ND)
    rows = min(-(-n // shards), -(-tile // shards)) * shards
    sharding = None if mesh is None else NamedSharding(mesh, P(None, mesh_lib.batch_axes(mesh)))
    return Rows(_tiles(feature_ND.astype(np.float32), rows, sharding), _tiles(target, rows, sharding), n, sharding)


def _tiles(array: np.ndarray, rows: int, sharding) -> jax.Array:
    filled = np.concatenate([array, np.zeros((-len(array) % rows, *array.shape[1:]), array.dtype)])
    shaped = filled.reshape(-1, rows, *array.shape[1:])
    if sharding is None:
        return jnp.asarray(shaped)
    return jax.make_array_from_callback(shaped.shape, sharding, lambda index: shaped[index])


def fit(rows: Rows, counts_N: np.ndarray, penalty: float, classes: int, iterations: int = 1000, tolerance: float = 1e-5) -> Fit:
    """The regression of the rows for which ``counts_N`` is true.

    One class each: multinomial, and kernel and bias are mean-free over classes, which fixes what softmax leaves open. Tags:
    one regression for each class, at once. The objective is scikit-learn's with C = 1/``penalty``: the bias is free. It
    ends when no slope of ``Fit.value`` is steeper than ``tolerance``, after ``iterations`` steps, or when float32 is spent.
    All λ share one compiled program. Bytes per device beside the rows: 80 D C for L-BFGS's ten pairs of steps and slopes,
    and about 12 C tile / devices for scores.
    """
    counts_KR = _tiles(counts_N.astype(np.float32), rows.feature_KRD.shape[1], rows.sharding)
    whole = None if rows.sharding is None else mesh_lib.replicated(rows.sharding.mesh)
    return _fit(rows.feature_KRD, rows.target, counts_KR, np.float32(penalty), classes=classes, iterations=iterations,
                tolerance=tolerance, whole=whole)


@functools.partial(jax.jit, static_argnames=('classes', 'iterations', 'tolerance', 'whole'))
def _fit(feature_KRD, target, counts_KR, penalty, *, classes: int, iterations: int, tolerance: float, whole: Any) -> Fit:
    n = counts_KR.sum()
    loss_R = _tags if target.ndim == 3 else _one_class

    def value(params):
        @jax.checkpoint  # of the scores of a tile, only their sum is kept
        def tile(total, part):
            feature_RD, target_R, counts_R = part
            return total + jnp.sum(counts_R * loss_R(_scores(feature_RD, params), target_R)), None
        total, _ = jax.lax.scan(tile, jnp.float32(0.), (feature_KRD, target, counts_KR))
        return (total + penalty / 2 * jnp.sum(jnp.square(params['kernel_DC']))) / n

    solver, value_and_grad = optax.lbfgs(memory_size=10), optax.value_and_grad_from_state(value)

    def step(carry):
        params, state, best, steps, stuck = carry
        found, slope = value_and_grad(params, state=state)
        move, state = solver.update(slope, state, params, value=found, grad=slope, value_fn=value)
        after = optax.tree.get(state, 'value')
        return optax.apply_updates(params, move), state, jnp.minimum(best, after), steps + 1, jnp.where(after < best, 0, stuck + 1)

    def goes_on(carry):
        _, state, _, steps, stuck = carry
        steepest = jnp.max(jnp.stack([jnp.max(jnp.abs(x)) for x in jax.tree.leaves(optax.tree.get(state, 'grad'))]))
        return (steps == 0) | ((steps < iterations) & (stuck < _STUCK) & (steepest > tolerance))
    params = {'kernel_DC': jnp.zeros((feature_KRD.shape[-1], classes)), 'bias_C': jnp.zeros(classes)}
    params, _, _, steps, _ = jax.lax.while_loop(goes_on, step, (params, solver.init(params), jnp.float32(jnp.inf), 0, 0))
    if target.ndim == 2:
        params = jax.tree.map(lambda x: x - x.mean(axis=-1, keepdims=True), params)
    fitted = Fit(params['kernel_DC'], params['bias_C'], value(params), steps)
    return fitted if whole is None else jax.lax.with_sharding_constraint(fitted, whole)  # every process reads them


def _scores(feature_RD, params):
    return jnp.einsum('rd,dc->rc', feature_RD, params['kernel_DC'], precision='highest') + params['bias_C']


def _one_class(score_RC, label_R):
    return optax.softmax_cross_entropy_with_integer_labels(score_RC, label_R)


def _tags(score_RC, tag_RC):
    loss_RC = optax.sigmoid_binary_cross_entropy(score_RC, (tag_RC == 1).astype(jnp.float32))
    return jnp.where(tag_RC == 2, 0., loss_RC).sum(axis=1)


def predict(feature_ND: np.ndarray, fitted: Fit) -> np.ndarray:
    """Scores [N, C], float32, tile by tile on the host: the same on every process, with one rounding."""
    kernel_DC, bias_C = np.asarray(fitted.kernel_DC), np.asarray(fitted.bias_C)
    return np.concatenate([feature_ND[i:i + _TILE] @ kernel_DC + bias_C for i in range(0, len(feature_ND), _TILE)])
