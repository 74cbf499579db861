"""Draws belong to examples: the right number of them, of the right size, wherever an example lies in a batch."""

import fast
import jax
import numpy as np
import pytest

from bigvlm.nn import random

B, L, W = 512, 4, 8
IDS_B2 = np.stack([np.arange(B) % 3, np.arange(B)], 1).astype(np.uint32)
X_BLW = np.random.default_rng(0).normal(size=(B, L, W)).astype(np.float32) + 3.
KEYS_B = fast.jit(lambda ids: random.example_keys(jax.random.key(0), ids, 7))(IDS_B2)
DRAWS = dict(dropout=fast.jit(lambda x, keys, place: random.dropout(x, .25, keys, place)),
             drop_path=fast.jit(lambda x, keys, place: random.drop_path(x, .25, keys, place)),
             patch_dropout=fast.jit(lambda x, keys, place: random.patch_dropout(x, .25, keys)))


def test_keys_differ_by_source_index_and_view_only():
    def data(key, ids, view):
        keys_B = random.example_keys(key, np.array(ids, np.uint32), view)
        return tuple(map(tuple, np.asarray(jax.random.key_data(keys_B))))
    key = jax.random.key(1)
    all_four = data(key, [[0, 0], [0, 1], [1, 0], [1, 1]], 0)
    assert len({*all_four, *data(key, [[0, 0], [1, 1]], 1), *data(jax.random.key(2), [[0, 0]], 0)}) == 7
    assert data(key, [[1, 1], [0, 1]], 0) == (all_four[3], all_four[1])


@pytest.mark.parametrize('name', DRAWS)
def test_an_example_draws_the_same_in_another_place_of_another_batch(name):
    draw = DRAWS[name]
    whole, turned = draw(X_BLW, KEYS_B, 5), draw(X_BLW[::-1][:7], KEYS_B[::-1][:7], 5)
    np.testing.assert_array_equal(whole[::-1][:7], turned)


@pytest.mark.parametrize('name', ('dropout', 'drop_path'))
def test_another_place_draws_anew(name):
    draw = DRAWS[name]
    kept, kept_elsewhere = (np.asarray(draw(X_BLW, KEYS_B, place)) != 0 for place in (5, 6))
    # Independent draws agree with probability .75² + .25².
    assert abs((kept == kept_elsewhere).mean() - .625) < .06


def test_dropout_keeps_the_mean_and_drops_numbers_independently():
    out = np.asarray(DRAWS['dropout'](X_BLW, KEYS_B, 5))
    kept = out != 0
    np.testing.assert_allclose(out[kept], X_BLW[kept] / .75, rtol=1e-6)
    assert abs(kept.mean() - .75) < .01                                    # 3 standard deviations of 16,384 draws
    assert np.abs(kept.mean(axis=0) - .75).max() < .09                     # of every place in an example
    assert np.abs(kept.reshape(B, -1).mean(axis=1) - .75).max() < .35      # and in every example
    assert abs(out.mean() - X_BLW.mean()) < .05
    covariance = (kept[:, 0, 0] & kept[:, 0, 1]).mean() - kept[:, 0, 0].mean() * kept[:, 0, 1].mean()
    assert abs(covariance) < .03


def test_drop_path_drops_whole_examples():
    out = np.asarray(DRAWS['drop_path'](X_BLW, KEYS_B, 5))
    kept_B = out.any(axis=(1, 2))
    np.testing.assert_allclose(out[kept_B], X_BLW[kept_B] / .75, rtol=1e-6)
    assert abs(kept_B.mean() - .75) < .06


def test_patch_dropout_keeps_so_many_tokens_in_order_and_no_favourites():
    tokens_BLW = np.tile(np.arange(10, dtype=np.float32)[None, :, None], (B, 1, 2))
    rates = {.25: 8, .5: 5, .99: 1}  # of ten tokens
    found = fast.jit(lambda x, keys: [random.patch_dropout(x, rate, keys) for rate in rates])(tokens_BLW, KEYS_B)
    for out, kept in zip(map(np.asarray, found), rates.values()):
        assert out.shape == (B, kept, 2)
        assert (np.diff(out[..., 0], axis=1) > 0).all(), 'not in order, or one twice'
        assert (out[..., 0] == out[..., 1]).all()
        chosen_L = np.bincount(out[..., 0].astype(int).ravel(), minlength=10) / B
        assert np.abs(chosen_L - kept / 10).max() < .09, chosen_L
    assert len({tuple(row) for row in np.asarray(found[1])[:20, :, 0]}) > 10, 'examples lose the same patches'


@pytest.mark.parametrize('draw', [lambda keys, rate: random.dropout(X_BLW, rate, keys, 0),
                                  lambda keys, rate: random.patch_dropout(X_BLW, rate, keys)])
def test_without_keys_or_rate_nothing_is_drawn(draw):
    assert draw(None, .5) is X_BLW and draw(KEYS_B, 0.) is X_BLW
    assert random.drop_path(X_BLW, .5, None, 0) is X_BLW
