"""Losses over all pairs of the global batch: symmetric softmax (InfoNCE) and sigmoid (SigLIP), exact at any batch size.

Both stream over tiles of pairs (``exchange.reduce_pairs``) and bring their own gradients, so that no array of B×B or
b×b elements exists, forward or backward. They take global arrays and use the mesh of the context (``jax.set_mesh``);
without one the same code runs on one device. Matrix products run in ``dtype`` (default: the embeddings'), sums and
statistics in float32 (float64 for float64 embeddings). Embeddings are sent to other devices in ``wire`` (default: as
products take them). With ``wire='bfloat16'`` and products in float32 the loss is, on any mesh, that of embeddings rounded
to bfloat16, and half as much is sent. The gradients that a ring brings home are always float32: rounded to bfloat16 at each
of n hops they would be wrong by up to 0.5 % at n = 8 and 3 % at n = 256, since what each device adds is small beside the
sum (docs/losses.md). So that is no option.

Which pairs are positives is a function of small per-example arrays that travel with the embeddings:
``target(row_side, col_side, row_id, col_id) -> [r, c]``, non-negative, any scale, positive for at least one column of
each row and one row of each column. It gets no gradient. ``identity``, ``equal_labels`` and ``equal_hashes`` always
make an example its own positive; ``mixed`` gives the shares of a mixture.

This file is the door: ``core/softmax.py`` and ``core/sigmoid.py`` have the losses, ``core/pairs.py`` what they share.
"""

from bigvlm.core.pairs import Items, Keys, Mixed, Plan, Target, equal_hashes, equal_labels, identity, mixed
from bigvlm.core.sigmoid import sigmoid
from bigvlm.core.softmax import STATS, Norms, Stats, check_smoothing, logit_gradient, norms_of, softmax, tile_stats

__all__ = ('Items', 'Keys', 'Mixed', 'Norms', 'Plan', 'STATS', 'Stats', 'Target', 'check_smoothing', 'equal_hashes', 'equal_labels',
           'identity', 'logit_gradient', 'mixed', 'norms_of', 'sigmoid', 'softmax', 'tile_stats')
