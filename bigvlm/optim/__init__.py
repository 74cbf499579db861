"""The optimizer: which parameters move, in which direction, and how far; and what happens to them after the update.

Parameters are handled as flat dicts ``{path: leaf}`` of the trainable ones only: what is frozen has no gradient, no
optimizer state and no update. The optimizer's state is made of such dicts too, so that layouts and checkpoints follow
the parameters' paths. ``directions`` and ``muon`` say where to go, ``building`` how far, ``states`` where it is all kept.
"""

from bigvlm.optim.building import OPTIMIZERS, Optimizer, build, complete, restarted
from bigvlm.optim.states import clamp, ema_update, global_norm, keep_unreached, merge, split, state_paths, state_shardings

__all__ = ['OPTIMIZERS', 'Optimizer', 'build', 'clamp', 'complete', 'ema_update', 'global_norm', 'keep_unreached', 'merge', 'restarted',
           'split', 'state_paths', 'state_shardings']
