"""An objective of weight 0 is measured, and moves nothing."""

import jax
import numpy as np

import tiny
from bigvlm.core import paths


def test_what_only_an_objective_of_weight_0_uses_stays_bit_for_bit():
    """No weight decay either: as a tower in a stage before its own (KELIP), or a term that an ablation leaves out."""
    objectives = dict(contrast=dict(name='contrastive', tile=4, weight=0.), distil=dict(name='toys.distil'))
    s = tiny.Setting(tiny.config(objectives=objectives, ema={'slow': .9}, optim=dict(
        name='adamw', lr=1e-3, weight_decay=.1, schedule=dict(name='constant'))))
    start = s.init()
    before = jax.device_get(paths.flatten(start.params))
    state, metrics = s.step()(start, s.put(tiny.batch()))
    assert np.isfinite(float(metrics['contrast/loss']))
    after = jax.device_get(paths.flatten(state.params))
    moved = {path for path, old in before.items() if not (old == after[path]).all()}
    assert moved and all(path.startswith('image/') for path in moved), moved
