"""The nearest key of each row against a search through the whole matrix, on several meshes."""

import re

import fast
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigvlm.core import mesh as meshes
from bigvlm.core.nearest import nearest
from bigvlm.core.pairwise import Keys

B, D, Q = 16, 5, 3


def data():
    rng = np.random.default_rng(0)
    rows, keys = rng.normal(size=(B, D)).astype(np.float32), rng.normal(size=(Q, B, D)).astype(np.float32)
    keys[2, 3] = keys[0, 7] = 5. * rows[4]  # equally near: the first is taken
    return rows, keys, rng.integers(0, 9, (Q, B, 2)).astype(np.uint32), np.arange(Q * B).reshape(Q, B) % 5 > 0


@pytest.mark.parametrize('spec,way', [(None, 'auto'), (dict(data=8), 'ring'), (dict(data=2, fsdp=2, tensor=2), 'all_gather')])
def test_equals_a_search_through_the_matrix(spec, way):
    rows, keys, side, counts = data()
    score = np.where(counts.reshape(-1), rows @ keys.reshape(-1, D).T, -np.inf)
    best = score.argmax(1)
    assert best[4] == 7 and len(set(best)) > 4
    mesh = meshes.make_mesh(spec) if spec else jax.sharding.AbstractMesh((), ())
    with jax.set_mesh(mesh) if spec else jax.sharding.use_abstract_mesh(mesh):
        run = fast.jit(lambda rows, keys, counts: nearest(rows, Keys(keys, side, counts), exchange=way, tile=3))
        found, nothing = run(rows, keys, counts), run(rows, keys, counts & False)
    np.testing.assert_array_equal(found.index, best)
    np.testing.assert_array_equal(found.x, keys.reshape(-1, D)[best])
    np.testing.assert_array_equal(found.side, side.reshape(-1, 2)[best])
    np.testing.assert_allclose(found.score, score.max(1), rtol=1e-6)
    assert (nothing.index == -1).all() and not nothing.x.any() and np.isneginf(nothing.score).all()


def test_no_array_of_all_pairs():
    batch, slots, width, tile = 8 * 26, 5, 7, 13
    mesh = meshes.make_mesh(dict(data=8))
    rows = jax.ShapeDtypeStruct((batch, width), jnp.float32, sharding=meshes.batch_sharding(mesh))
    keys = jax.ShapeDtypeStruct((slots, batch, width), jnp.float32, sharding=jax.NamedSharding(mesh, jax.P(None, meshes.batch_axes(mesh))))
    with jax.set_mesh(mesh):
        text = fast.jit(lambda rows, keys: nearest(rows, Keys(keys), exchange='ring', tile=tile).x).lower(rows, keys).compile().as_text()
    sizes = {int(np.prod([int(d) for d in dims.split(',')])) for dims in re.findall(r'\b[a-z]+[0-9]+\[([0-9,]+)\]', text)}
    own = 26 * slots
    assert tile * tile in sizes and not sizes & {batch * batch * slots, 26 * batch * slots, 26 * own, batch * own}
    assert 'all-gather' not in text
