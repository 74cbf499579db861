"""Wrong pairs in evaluation: as many as in training, whatever the examples' numbers are."""

import jax.numpy as jnp
import numpy as np

from bigvlm.fusion.merged import Merged
from bigvlm.nn.encoded import Encoded
from bigvlm.objectives.matching import Matching

B, WRONG = 512, .1


def encode(tower, key):
    vector_BD = jnp.asarray(np.random.default_rng(len(key)).standard_normal((B, 4)), jnp.float32)
    return Encoded(vector_BD, vector_BD[:, None], jnp.ones((B, 1), bool))


encode.keys = lambda what: None  # as in evaluation
encode.part = lambda name: Merged(parent=None)


def test_a_tenth_of_small_numbers_is_wrong():
    for source in (0, 3):
        ids_B2 = jnp.stack([jnp.full(B, source, jnp.uint32), jnp.arange(B, dtype=jnp.uint32)], axis=1)
        objective = Matching(negatives='random', wrong=WRONG)
        features = objective.apply({}, encode, {'id': ids_B2}, method='features')
        right_P = np.asarray(objective.pairs(features, objective.select(features))['right_P'])
        assert abs((~right_P).mean() - WRONG) < 4 * (WRONG * (1 - WRONG) / B) ** .5
