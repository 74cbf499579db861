"""The queue: which batches it holds, in what order they go, the same on every mesh, and nothing moved to push."""

import re

import fast
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigvlm.core import mesh as meshes
from bigvlm.core.parts import RecipeError
from bigvlm.nn.queue import Queue, check

B, SIZE = 8, 24


def new(step):
    return {'x': np.arange(B * 2, dtype=np.float32).reshape(B, 2) + 100 * step, 'label': np.arange(B, dtype=np.int32) + 100 * step}


def run(steps, mesh=None):
    """The content before each push, and the variables after the last."""
    queue = Queue(SIZE, B)
    tiny = jax.tree.map(lambda x: x[:2], new(0))
    variables = queue.init(jax.random.key(0), tiny)
    push = fast.jit(lambda v, x: queue.apply(v, x, mutable=['queue']))
    found = []
    for step in range(steps):
        batch = new(step) if mesh is None else jax.device_put(new(step), meshes.batch_sharding(mesh))
        content, variables = push(variables, batch)
        found.append(jax.device_get(content))
    return found, variables


def test_holds_the_last_batches_and_counts_only_what_was_pushed():
    found, _ = run(5)
    for step, content in enumerate(found):
        held = range(max(0, step - 3), step)
        assert content.counts_QB.sum() == B * len(held) and content.filled == len(held) / 3
        assert (content.counts_QB.all(1) == content.counts_QB.any(1)).all()
        for name in ('x', 'label'):
            assert content.arrays[name].dtype == new(0)[name].dtype
            assert {tuple(batch.ravel()) for batch, full in zip(content.arrays[name], content.counts_QB[:, 0]) if full} == \
                {tuple(new(i)[name].ravel()) for i in held}
            assert not content.arrays[name][~content.counts_QB].any()


def test_same_content_on_a_mesh_and_pushing_moves_nothing():
    wanted, last = run(4)
    mesh = meshes.make_mesh(dict(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        found, variables = run(4, mesh)
        for a, b in zip(jax.tree.leaves((found, variables)), jax.tree.leaves((wanted, last))):
            np.testing.assert_array_equal(a, b)
        assert variables['queue']['x'].sharding.spec[1] == ('data', 'fsdp')
        layout = jax.NamedSharding(mesh, jax.P(None, ('data', 'fsdp')))
        stored = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout if x.ndim > 1 else None), variables)
        batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=meshes.batch_sharding(mesh)), new(0))
        text = fast.jit(lambda v, x: Queue(SIZE, B).apply(v, x, mutable=['queue'])[1]).lower(stored, batch).compile().as_text()
    assert 'dynamic-update-slice' in text
    assert not re.search(r'all-gather|all-reduce|collective-permute|all-to-all', text)


def test_what_is_pushed_has_no_gradient():
    queue = Queue(SIZE, B)
    variables = queue.init(jax.random.key(0), new(0))

    def last(x):
        return queue.apply(variables, {'x': x, 'label': new(0)['label']}, mutable=['queue'])[1]['queue']['x'].sum()
    assert not jax.grad(last)(jnp.asarray(new(0)['x'])).any()


def test_impossible_sizes_are_refused():
    with pytest.raises(RecipeError, match='size: found 20; valid: a multiple of the global batch, 8'):
        check(20, 8)
    with pytest.raises(RecipeError, match='queue: found 4; valid: a multiple of the global batch, 8'):
        check(4, 8, 'queue')
    with pytest.raises(RecipeError, match="batch: found 0; valid: the recipe's global batch"):
        check(20, 0)
    queue = Queue(SIZE, 12)
    variables = queue.init(jax.random.key(0), new(0))
    with pytest.raises(RecipeError, match='batch: found 12; the batch has 8 examples'):
        queue.apply(variables, new(0), mutable=['queue'])
