"""One objective behind linear towers, through the rounds of the step: loss and gradients on any mesh, micro-batched or not."""

import fast
import jax
import jax.numpy as jnp
import numpy as np
import streams

from bigvlm.core import mesh as meshes, paths, rounds as rounds_lib
from bigvlm.nn.encoded import Encoded


class Encode:
    """Every tower is a matrix of its own; ``asked`` notes the calls."""

    def __init__(self, towers, batch):
        self.towers, self.batch, self.asked = towers, batch, []

    def __call__(self, tower, key):
        self.asked.append((tower, key))
        return Encoded(paths.look_up(self.batch, key) @ self.towers[tower])


def setting(objective, batch, width=6, seed=0):
    """(params {'towers', 'objective'}, collections), float64 NumPy: random ones, since biases that are zero hide things."""
    rng = np.random.default_rng(seed)
    inputs = next(iter(batch.values())).shape[-1]
    towers = {name: rng.normal(size=(inputs, width)) for name in ('image', 'text')}

    def init():
        few = jax.tree.map(lambda x: jnp.asarray(x[:2]), batch)
        def both(module):
            features = module.features(Encode(towers, few), few)
            given = {'teacher': features} if getattr(module, 'teacher', '') else {}
            return module.loss(features, **given)
        return objective.init(jax.random.key(0), method=both)
    with jax.enable_x64(True):
        shapes = dict(jax.eval_shape(init))
    own = jax.tree.map(lambda x: np.asarray(.5 * rng.normal(size=x.shape)), shapes.pop('params', {}))
    return {'towers': towers, 'objective': own}, jax.tree.map(lambda x: np.zeros(x.shape), shapes)


def run(objective, params, collections, batch, mesh='one', micro=1, slow=None):
    """(loss, metrics, collections, gradients), in float64. ``slow``: the teacher's parameters."""
    def features(params, collections, batch):
        return objective.apply({'params': params['objective'], **collections}, Encode(params['towers'], batch), batch,
                               method='features', mutable=list(collections))

    def loss(params, collections, found, features2, taught):
        given = {} if taught is None else {'teacher': taught}
        (value, metrics), updated = objective.apply({'params': params['objective'], **collections}, found, method='loss',
                                                    mutable=list(collections), **given)
        return value, (metrics, updated)

    def step(params, collections, batch):
        teacher = None if slow is None else lambda features_of: features_of(slow)
        (value, metrics, updated), gradient = rounds_lib.value_and_grad(rounds_lib.Rounds(features, loss), params, collections, batch,
                                                                        micro=micro, teacher=teacher)
        return value, metrics, updated, gradient
    with jax.enable_x64(True), jax.set_mesh(streams.on_mesh(mesh)):
        placed = jax.device_put(batch, meshes.batch_sharding(streams.on_mesh(mesh)))
        return jax.tree.map(np.asarray, fast.jit(step)(params, collections, placed))


def dense(function, params):
    """(value, gradients) of a plain formula of the parameters, in float64."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, fast.jit(jax.value_and_grad(function))(params))


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
