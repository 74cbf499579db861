"""An op for tests: a number drawn at random, and the number of the drawn caption."""
import numpy as np


def noise():
    def op(example, rng):
        return {**example, 'noise': rng.random(), 'drawn': np.int32(example['caption'].split()[1])}
    return op
