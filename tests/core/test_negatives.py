"""Negatives: drawn in proportion to exp(similarity) among what is no positive, the same on every mesh and in every tile."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fast
from bigvlm.core import mesh as mesh_lib, negatives, pairwise

B, D = 16, 4
RNG = np.random.default_rng(0)
X, Y = (jnp.asarray(RNG.normal(size=(B, D)), jnp.float32) for _ in range(2))
LABEL_B = jnp.asarray(RNG.integers(0, 3, B), jnp.int32)
SEED_B = jnp.asarray(RNG.integers(0, 2 ** 32, B), jnp.uint32)


def dense(scale, positive_BB):
    """By the whole matrix, with the same noise."""
    id_B = jnp.arange(B)
    score_BB = scale * jnp.einsum('id,jd->ij', X, Y)
    for_rows = jnp.where(positive_BB, -jnp.inf, score_BB + negatives.gumbel(SEED_B[:, None], id_B[None]))
    for_cols = jnp.where(positive_BB, -jnp.inf, score_BB + negatives.gumbel((SEED_B ^ jnp.uint32(0x9E3779B9))[None], id_B[:, None]))
    return for_rows.argmax(1), for_cols.argmax(0)


@pytest.mark.parametrize('exchange', ['all_gather', 'ring'])
@pytest.mark.parametrize('sizes', [{}, dict(data=4), dict(data=2, fsdp=2, tensor=2)])
def test_equal_to_the_whole_matrix_on_every_mesh(exchange, sizes):
    mesh = mesh_lib.make_mesh(dict(data=1) | sizes, jax.devices()[:int(np.prod(list(sizes.values())))])
    same_BB = (LABEL_B[:, None] == LABEL_B[None]) & (LABEL_B[:, None] >= 0)
    with jax.set_mesh(mesh):
        found = fast.jit(lambda x, y, side, seed: negatives.draw(x, y, 3., seed, positive=pairwise.equal_labels, side=side,
                                                                 exchange=exchange, tile=4))(X, Y, LABEL_B, SEED_B)
    for mine, wanted in zip(found, dense(3., same_BB)):
        np.testing.assert_array_equal(mine, wanted)


def test_groups_and_rows_without_a_negative():
    rows_B, cols_B = fast.jit(lambda x, y, seed: negatives.draw(x, y, 1., seed, group=4))(X, Y, SEED_B)
    for found_B in (np.asarray(rows_B), np.asarray(cols_B)):
        assert (found_B // 4 == np.arange(B) // 4).all() and (found_B != np.arange(B)).all()
    alone_B, _ = fast.jit(lambda x, y, seed: negatives.draw(x, y, 1., seed, group=1))(X, Y, SEED_B)
    assert (np.asarray(alone_B) == -1).all()


def test_chances_are_those_of_the_softmax():
    draw = fast.jit(jax.vmap(lambda seed_B: negatives.draw(X, Y, 1.5, seed_B)[0]))
    seeds = jnp.asarray(RNG.integers(0, 2 ** 32, (6000, B)), jnp.uint32)
    found_NB = np.asarray(draw(seeds))
    score_BB = 1.5 * np.asarray(X, np.float64) @ np.asarray(Y, np.float64).T
    weight_BB = np.exp(score_BB) * ~np.eye(B, dtype=bool)
    for row in range(3):
        share = np.bincount(found_NB[:, row], minlength=B) / 6000
        np.testing.assert_allclose(share, weight_BB[row] / weight_BB[row].sum(), atol=.025)
