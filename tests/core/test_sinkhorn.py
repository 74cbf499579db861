"""Transport plans over the global batch against Sinkhorn's algorithm on the whole matrix; assignments to prototypes."""

from functools import partial

import fast
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import streams

from bigvlm.core import sinkhorn
from bigvlm.core.parts import RecipeError

B, E, SCALE, ITERATIONS = 24, 5, 6., 3
RNG = np.random.default_rng(2)
ROWS, COLS = streams.unit(RNG, B, E), streams.unit(RNG, B, E)


def normalised(kernel, iterations):
    """By the book: rows to 1/B, columns to 1/B, and so on; the rows to 1 at last."""
    plan = kernel / kernel.sum()
    for _ in range(iterations):
        plan = plan / plan.sum(1, keepdims=True) / len(plan)
        plan = plan / plan.sum(0, keepdims=True) / plan.shape[1]
    return plan / plan.sum(1, keepdims=True)


def entropy(p):
    return -(p * np.log(np.where(p > 0, p, 1.))).sum(1)


@pytest.mark.parametrize('mesh,way,others_only', [
    ('data', 'ring', True), ('fsdp', 'all_gather', False), ('tensor', 'ring', False)])
def test_both_plans(mesh, way, others_only):
    kernel = np.exp(SCALE * ROWS @ COLS.T) * (1 - others_only * np.eye(B))
    of_rows, of_cols = normalised(kernel, ITERATIONS), normalised(kernel.T, ITERATIONS)

    def run(rows, cols):
        found = sinkhorn.targets(rows, cols, SCALE, iterations=ITERATIONS, others_only=others_only, exchange=way, tile=7)
        q = sinkhorn.weights((rows, found.row), (cols, found.col), jnp.arange(B), jnp.arange(B), scale=SCALE, others_only=others_only)
        return q / q.sum(1, keepdims=True), (q / q.sum(0)).T, found.row_entropy, found.col_entropy
    found = streams.evaluate(run, (ROWS, COLS), (), mesh)
    assert streams.error(found, (of_rows, of_cols, entropy(of_rows), entropy(of_cols))) < 1e-12
    assert np.abs(of_rows - normalised(kernel, ITERATIONS + 2)).max() > 1e-6  # not yet converged: the count matters
    assert np.abs(of_rows - of_cols.T).max() > 1e-6                           # so does which side begins


def test_no_gradient_and_no_array_of_all_pairs():
    def total(rows, cols, way='ring', tile=13):
        return sum(x.sum() for x in sinkhorn.targets(rows, cols, 6., iterations=2, exchange=way, tile=tile))
    for gradient in fast.jit(jax.grad(partial(total, tile=12), (0, 1)))(jnp.float32(ROWS), jnp.float32(COLS)):
        assert not np.asarray(gradient).any()
    batch, shard, tile = 8 * 26, 26, 13
    for way in ('ring', 'all_gather'):
        found = streams.sizes(partial(total, way=way), (batch, 7), (batch, 7))
        assert tile * tile in found and not found & {batch * batch, batch * shard, shard * shard}


def test_float32_with_a_strong_kernel():
    """Logits of ±200, beyond exp's range in float32: potentials hold."""
    kernel = np.exp(200. * (ROWS @ COLS.T - 1))
    run = fast.jit(lambda rows, cols: sinkhorn.targets(rows, cols, 200., iterations=ITERATIONS, tile=5))
    found = run(jnp.float32(ROWS), jnp.float32(COLS))
    np.testing.assert_allclose(found.row_entropy, entropy(normalised(kernel, ITERATIONS)), atol=2e-3)


def test_balanced_assignments():
    """SwAV's algorithm on an array of 16 examples and 4 prototypes, from where every example likes prototype 0 most."""
    scores = RNG.normal(size=(16, 4)) + np.array([2., 0., 0., 0.])
    plan = np.exp(scores / .5)
    for _ in range(3):
        plan = plan / plan.sum(0) / 4
        plan = plan / plan.sum(1, keepdims=True) / 16
    found = streams.evaluate(lambda s: sinkhorn.balanced(s, 2., 3), (scores,), (), 'tensor')
    assert streams.error(found, plan * 16) < 1e-12
    assert np.abs(fast.jit(lambda s: sinkhorn.balanced(s, 2., 50))(jnp.float32(scores)).sum(0) - 4.).max() < 1e-3


def test_errors():
    x = jnp.ones((4, 3))
    with pytest.raises(RecipeError, match='iterations: found 0; valid: an integer of at least 1'):
        sinkhorn.targets(x, x, 1., iterations=0)
    with pytest.raises(ValueError, match='others_only needs B > 1'):
        sinkhorn.targets(x[:1], x[:1], 1., iterations=1, others_only=True)
