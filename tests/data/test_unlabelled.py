"""Pairs get the label that is none; labels that are there stay."""

import numpy as np

from bigvlm.data.ops.unlabelled import unlabelled


def test_only_what_has_no_label_gets_minus_one():
    rng = np.random.default_rng(0)
    made = unlabelled()({'caption': 'a dog'}, rng)
    assert made['label'] == -1 and made['label'].dtype == np.int32 and made['caption'] == 'a dog'
    assert unlabelled()({'label': 3}, rng) == {'label': 3}
    assert unlabelled('kind')({'label': 3}, rng)['kind'] == -1
