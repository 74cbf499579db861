"""One-layer towers and the rounds over one objective, to test objectives from batch to gradient without a model.

B batch, I inputs, L tokens, D width.
"""

import fast
import jax
import jax.numpy as jnp
import numpy as np

from bigvlm.core import mesh as meshes, paths, rounds as rounds_lib
from bigvlm.nn.encoded import Encoded


class Encode:
    """``encode(tower, key)``: tanh(x W) of numbers [B, I] or [B, L, I], tokens being averaged; token ids are their own numbers."""

    def __init__(self, towers, batch):
        self.towers, self.batch, self.asked = towers, batch, []

    def __call__(self, tower, key):
        self.asked.append((tower, key))
        x = paths.look_up(self.batch, key).astype(self.towers[tower].dtype)
        tokens = jnp.tanh(jnp.einsum('...i,id->...d', x, self.towers[tower], precision='highest'))
        return Encoded(tokens if tokens.ndim == 2 else tokens.mean(1), tokens if tokens.ndim == 3 else tokens[:, None])


def towers(**sizes):
    """{tower: weights [I, D]} by {tower: (I, D)}."""
    rng = np.random.default_rng(7)
    return {name: jnp.asarray(.5 * rng.normal(size=size), jnp.float32) for name, size in sorted(sizes.items())}


def init(objective, weights, batch):
    """(parameters with those of the towers, collections), made with the first two examples, as a run makes them."""
    def both(objective, batch):
        features = objective.features(Encode(weights, batch), batch)
        objective.loss(features, **({'teacher': features} if getattr(objective, 'teacher', '') else {}))
    make = fast.jit(lambda key, batch: objective.init(key, batch, method=both))  # of which only variables are computed
    variables = dict(make(jax.random.key(0), jax.tree.map(lambda x: x[:2], batch)))
    return {'towers': weights, 'objective': variables.pop('params', {})}, variables


def steps(objective, params, collections, batches, *, micro=1, mesh=None, teacher=None):
    """[(loss, metrics, gradient)] of one step after the other with the same parameters, and the collections after the last.

    ``teacher``: other parameters of the same shapes."""
    def call(method, params, collections, *args, **kwargs):
        return objective.apply({'params': params['objective'], **collections}, *args, method=method, mutable=list(collections), **kwargs)

    def features(params, collections, batch):
        return call('features', params, collections, Encode(params['towers'], batch), batch)

    def loss(params, collections, features, features2, taught):
        (value, metrics), updated = call('loss', params, collections, features, **({'teacher': taught} if teacher else {}))
        return value, (metrics, updated)

    @fast.jit
    def step(params, collections, batch):
        taught = (lambda features_of: features_of(teacher)) if teacher else None
        return rounds_lib.value_and_grad(rounds_lib.Rounds(features, loss), params, collections, batch, micro=micro, teacher=taught)

    found = []
    with jax.set_mesh(mesh) if mesh else jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        for batch in batches:
            if mesh:
                batch = jax.device_put(batch, meshes.batch_sharding(mesh))
            (value, metrics, collections), gradient = step(params, collections, batch)
            found.append(jax.device_get((value, metrics, gradient)))
    return found, jax.device_get(collections)


def in_float64(function, *args):
    """``function`` of the arrays in float64: an independent formula's value, or value and gradient."""
    with jax.enable_x64(True):
        return jax.device_get(fast.jit(function)(*jax.tree.map(lambda x: np.asarray(x, np.float64), args)))


def assert_close(found, wanted, rtol=1e-5):
    """Equal to ``rtol`` of each array's largest element, or of .1: gradients may be zero but for rounding."""
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(wanted)):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape and np.abs(a - b).max() <= rtol * max(np.abs(b).max(), .1), (jax.tree_util.keystr(path), a, b)
