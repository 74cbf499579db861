"""A tiny two-tower recipe and random batches of it, for tests of the step and the loop."""

import jax
import numpy as np

from bigvlm import model as model_lib, optim, recipe, step as step_lib
from bigvlm.core import layout as layout_lib, mesh as mesh_lib, paths
from bigvlm.state import abstract_variables, expected_shapes, initializer, shardings

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
        self.config, self.model = config, model_lib.from_config(config)
        self.shapes = shapes or {kind: expected_shapes(self.model, kind) for kind in config['kinds']}
        self.params, self.collections = abstract_variables(self.model, self.shapes)
        self.optimizer = optim.build(config['optim'], params=self.params, total_steps=100, batch=config['batch'], examples_per_epoch=1000)
        sizes = mesh_spec or dict(data=1)
        self.mesh = mesh_lib.make_mesh(sizes, jax.devices()[:int(np.prod(list(sizes.values())))])
        self.stored = layout_lib.make(config['layout'], paths.flatten(self.params), self.mesh)
        init = initializer(self.model, self.optimizer, self.shapes, config['ema'])
        self.abstract = jax.eval_shape(init, np.uint32(0))
        self.shardings = shardings(self.abstract, self.stored, self.mesh)
        self._init = jax.jit(init, out_shardings=self.shardings)

    def init(self, seed=0):
        with jax.set_mesh(self.mesh):
            return self._init(np.uint32(seed))

    def step(self, kind='pairs'):
        reached = step_lib.reached_modules(self.model, kind, self.shapes[kind], self.params, self.collections)
        return step_lib.jit(step_lib.make(self.model, self.optimizer, self.stored, self.config, kind, reached), self.mesh, self.shardings)

    def put(self, batch):
        return mesh_lib.put_batch(batch, self.mesh, len(batch['id']))
