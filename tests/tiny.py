"""A tiny two-tower recipe and random batches of it, for tests of the step and the loop."""

import jax
import numpy as np

from bigvlm import blueprint, recipe
from bigvlm.core import mesh as mesh_lib

TOWERS = dict(
    image=dict(name='vit', size='', width=32, depth=2, heads=2, patch=8, image=32, pool='map', out_dim=16, dtype='float32', remat='full'),
    text=dict(name='text', size='', width=32, depth=2, heads=2, vocab=64, length=8, out_dim=16, dtype='float32', remat='full'))
OBJECTIVES = dict(contrast=dict(name='contrastive', tile=4), match=dict(name='sigmoid', tile=4, weight=.1))


def config(**changes):
    """A resolved recipe without data."""
    c = recipe.new().to_dict()
    c |= dict(batch=16, steps='100 steps', towers=TOWERS, objectives=OBJECTIVES, kinds={},
              optim=dict(name='adamw', lr=3e-3, eps=1e-6, schedule=dict(name='constant')))
    kinds = changes.pop('kinds', {'pairs': dict(data='train', weight=1)})
    return recipe.resolve(c | changes) | dict(kinds=kinds)


def batch(size=16, seed=0):
    """Images whose brightness tells which text they go with."""
    rng = np.random.default_rng(seed)
    kind_B = rng.permutation(size)
    image = rng.integers(0, 60, (size, 32, 32, 3)) + (kind_B * (195 // size))[:, None, None, None]
    text = rng.integers(0, 32, (size, 8))
    text[:, 3:] = 32 + kind_B[:, None]
    return dict(image=image.astype(np.uint8), text=text.astype(np.int32),
                id=np.stack([np.zeros(size), np.arange(size)], axis=1).astype(np.uint32))


class Setting:
    """Everything of a step on a mesh of the first ``n`` virtual devices."""

    def __init__(self, config, mesh_spec=None, shapes=None):
        sizes = mesh_spec or dict(data=1)
        self.config, self.plan = config, blueprint.make(config, examples_per_epoch=1000, shapes=shapes)
        self.mesh = mesh_lib.make_mesh(sizes, jax.devices()[:int(np.prod(list(sizes.values())))])
        self.placed = self.plan.on(self.mesh)
        self._init = self.placed.init()

    def init(self, seed=0):
        with jax.set_mesh(self.mesh):
            return self._init(np.uint32(seed))

    def step(self, kind='pairs'):
        return self.placed.step(kind)

    def put(self, batch):
        return mesh_lib.put_batch(batch, self.mesh, len(batch['id']))
