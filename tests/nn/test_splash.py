"""The TPU's attention kernel, run by Pallas's interpreter, against loops over heads and queries."""

import fast
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from bigvlm.core import mesh as mesh_lib
from bigvlm.nn import splash
from bigvlm.nn.attention import attend

RNG = np.random.default_rng(0)


def example(t, s, heads=2, width=8, batch=2, masked=.3):
    """Queries, keys, values; weights of a scalar loss; a mask with the first key always there."""
    arrays = [RNG.normal(size=(batch, n, heads, width)).astype(np.float32) for n in (t, s, s, t)]
    mask_BS = RNG.random((batch, s)) >= masked
    mask_BS[:, 0] = True
    return *arrays, mask_BS


def value_and_gradient(weight_BTNH, **options):
    def loss(*qkv):
        out_BTNH = splash.attend(*qkv, interpret=True, **options)
        return jnp.sum(out_BTNH * weight_BTNH), out_BTNH
    return fast.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))


def plain(query_BTNH, key_BSNH, value_BSNH, mask_BS, causal):
    """softmax(q k / √H) v in float64, one query at a time."""
    out = np.zeros(query_BTNH.shape)
    for b, t, n in np.ndindex(query_BTNH.shape[:3]):
        seen_S = mask_BS[b] & (np.arange(key_BSNH.shape[1]) <= t if causal else True)
        logit_S = key_BSNH[b, :, n].astype(np.float64) @ query_BTNH[b, t, n] / query_BTNH.shape[-1] ** .5
        weight_S = np.where(seen_S, np.exp(logit_S - logit_S[seen_S].max()), 0.)
        out[b, t, n] = weight_S / weight_S.sum() @ value_BSNH[b, :, n]
    return out


@pytest.mark.parametrize('t, s, causal', [(130, 130, False), (140, 140, True), (3, 200, False)])
def test_value_and_gradient_equal_the_plain_formula_with_padding(t, s, causal):
    """Lengths that are no multiple of a tile: what is padded must be neither seen nor returned."""
    query, key, value, weight, mask_BS = example(t, s)
    (_, out), gradient = value_and_gradient(weight, mask_BS=jnp.asarray(mask_BS), causal=causal)(query, key, value)
    assert reference.relative(out, plain(query, key, value, mask_BS, causal)) < 1e-5

    def loss(p):
        return float((plain(p['query'], p['key'], p['value'], mask_BS, causal) * weight).sum())
    errors = reference.slope_errors(loss, dict(query=query, key=key, value=value), dict(zip(('query', 'key', 'value'), gradient)))
    assert max(errors.values()) < 2e-5, errors


@pytest.mark.parametrize('mesh', [dict(data=8), dict(data=2, fsdp=2, tensor=2), dict(data=2, tensor=4)])
def test_the_same_on_every_mesh(mesh):
    """Heads are split over ``tensor`` where it divides them (here 2), and are not where it does not (here 4)."""
    query, key, value, weight, mask_BS = example(129, 129, batch=8)
    (_, alone), gradient = value_and_gradient(weight, mask_BS=jnp.asarray(mask_BS))(query, key, value)
    with jax.set_mesh(mesh_lib.make_mesh(mesh)):
        (_, out), gradient_m = value_and_gradient(weight, mask_BS=jnp.asarray(mask_BS))(query, key, value)
    assert reference.relative(out, alone) < 1e-6
    for a, b in zip(gradient, gradient_m):
        assert reference.relative(b, a) < 1e-6


def test_no_mask_is_all_keys():
    query, key, value, weight, _ = example(5, 5)
    (_, out), _ = value_and_gradient(weight)(query, key, value)
    assert reference.relative(out, attend(query, key, value, implementation='xla')) < 1e-5


def test_tiles_pad_least():
    assert [splash._tile(n) for n in (1, 128, 196, 256, 577, 729, 1024)] == [128, 128, 256, 256, 128, 384, 512]
