"""BERT-like towers against a NumPy formula (against transformers: tests/interop); padding, positions, dropout, sizes."""

import functools

import fast
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from bigvlm.core.parts import RecipeError
from bigvlm.nn.random import example_keys
from bigvlm.towers.bert import Bert

SMALL = dict(size='', width=8, depth=2, heads=2, vocab=12, length=7, dtype='float32', norm_eps=1e-3)
IDS_BL = np.array([[10, 3, 4, 5, 11, 0], [10, 7, 11, 0, 0, 0]], np.int32)  # fewer than the positions
CASES = {
    'bert': dict(pool='pooler'),
    'roberta': dict(pool='mean', first_position=2, types=1, pad_id=0, mlp_dim=12, out_dim=6),
    'flava': dict(pre_norm=True, pool='cls', out_dim=6, out_bias=False, qkv_bias=False),
    'altclip': dict(pool='cls', first_position=2, types=1, neck=5, out_dim=6, out_bias=False),
    'max': dict(pool='max', types=0, activation='relu')}
GRADIENTS = ('bert', 'altclip', 'flava')
WEIGHT_BD = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
KEYS_B = example_keys(jax.random.key(3), np.array([[0, 4], [1, 9]], np.uint32), 0)


@functools.cache
def params(**fields):
    shapes = jax.eval_shape(Bert(**SMALL | fields).init, jax.random.key(0), IDS_BL)['params']
    return reference.randomise(shapes)


@functools.cache
def compiled(train=False, gradient=False, **fields):
    """params, ids, keys -> (Encoded, gradient of Σ weight·pooled)."""
    tower = Bert(**SMALL | fields)

    def loss(params, ids_BL, keys_B):
        out = tower.apply({'params': params}, ids_BL, keys_B=keys_B, train=train, layers=(0, -1))
        return jnp.sum(out.pooled_BD * WEIGHT_BD[:, :out.pooled_BD.shape[1]]), out

    def run(params, ids_BL, keys_B=None):
        if not gradient:
            return loss(params, ids_BL, keys_B)[1], None
        (_, out), slope = jax.value_and_grad(loss, has_aux=True)(params, ids_BL, keys_B)
        return out, slope
    return fast.jit(run)


def formula(ids_L, p, tower):
    """(pooled, tokens, layers) of one text: each block adds and then norms, or, for pre_norm, as reference.transformer."""
    _, depth, _, heads = tower.dims()
    real_L = [int(i) != tower.pad_id for i in ids_L]
    x_LW = np.array([p['embed']['embedding'][i] + p['position'][at + tower.first_position] for at, i in enumerate(ids_L)])
    if tower.types:
        x_LW = x_LW + p['type'][0]
    x_LW, layers, eps = reference.layer_norm(x_LW, p['embed_norm'], tower.norm_eps), [], tower.norm_eps
    if tower.pre_norm:
        x_LW, layers = reference.transformer(x_LW, p['encoder'], heads, depth, tower.activation, eps, mask_L=real_L)
    else:
        assert 'norm' not in p['encoder']
        for i in range(depth):
            block = reference.layer_of(p['encoder']['blocks'], i)
            mixed = reference.attention(x_LW, x_LW, block['attention'], heads, mask_L=real_L)
            x_LW = reference.layer_norm(x_LW + mixed, block['norm1'], eps)
            x_LW = reference.layer_norm(x_LW + reference.mlp(x_LW, block['mlp'], tower.activation), block['norm2'], eps)
            layers.append(x_LW)
    if tower.pool == 'pooler':
        pooled = np.tanh(reference.dense(x_LW[0], p['pooler']))
    else:
        pooled = x_LW[0] if tower.pool == 'cls' else getattr(np, tower.pool)(x_LW[real_L], axis=0)
    if tower.neck:
        pooled = reference.dense(reference.layer_norm(pooled, p['neck_norm'], eps), p['neck'])
    return (reference.dense(pooled, p['out']) if tower.out_dim else pooled), x_LW, layers


@pytest.mark.parametrize('case', CASES)
def test_value_and_gradient_equal_the_formula(case):
    fields = CASES[case]
    tower, p = Bert(**SMALL | fields), params(**fields)
    out, gradient = compiled(gradient=case in GRADIENTS, **fields)(p, IDS_BL)
    expected = [formula(ids, reference.float64(p), tower) for ids in IDS_BL]
    assert reference.relative(out.pooled_BD, [pooled for pooled, _, _ in expected]) < 1e-5
    assert reference.relative(out.tokens_BLD, [tokens for _, tokens, _ in expected]) < 1e-5
    for i in (0, -1):
        assert reference.relative(out.layers[i], [layers[i] for _, _, layers in expected]) < 1e-5
    np.testing.assert_array_equal(out.mask_BL, IDS_BL != 0)
    if case not in GRADIENTS:
        return

    def loss(p):
        pooled = [formula(ids, p, tower)[0] for ids in IDS_BL]
        return np.sum(pooled * WEIGHT_BD[:, :len(pooled[0])].astype(np.float64))
    errors = reference.slope_errors(loss, p, gradient)
    assert max(errors.values()) < 2e-5, errors


def test_what_is_under_padding_reaches_no_token_of_the_text():
    run, p = compiled(**CASES['bert']), params(**CASES['bert'])
    longer = np.pad(IDS_BL, ((0, 0), (0, 1)))
    short, long = run(p, IDS_BL)[0], run(p, longer)[0]
    np.testing.assert_allclose(short.pooled_BD, long.pooled_BD, atol=1e-6)
    masked = fast.jit(lambda p, ids, mask: Bert(**SMALL, pool='mean').apply({'params': p}, ids, mask=mask).pooled_BD)
    other = np.where(IDS_BL == 0, 9, IDS_BL)  # a mask from outside replaces the padding's
    np.testing.assert_allclose(masked(p, other, IDS_BL != 0), masked(p, IDS_BL, IDS_BL != 0), atol=1e-6)
    assert np.abs(masked(p, other, other != 0) - masked(p, IDS_BL, IDS_BL != 0)).max() > .01
    assert np.isfinite(masked(p, IDS_BL, np.zeros((2, 6), bool))).all()


def test_dropout_is_in_training_only_and_belongs_to_the_example():
    fields, p = CASES['bert'], params(**CASES['bert'])
    run = compiled(train=True, dropout=.3, drop_path=.3, **fields)
    one, turned = run(p, IDS_BL, KEYS_B)[0].pooled_BD, run(p, IDS_BL[::-1], KEYS_B[::-1])[0].pooled_BD
    quiet = compiled(gradient=True, **fields)(p, IDS_BL)[0].pooled_BD
    np.testing.assert_allclose(one[::-1], turned, atol=1e-6)
    assert reference.relative(one, quiet) > .05
    calm = compiled(dropout=.3, drop_path=.3, **fields)(p, IDS_BL, KEYS_B)[0].pooled_BD
    np.testing.assert_allclose(calm, quiet, atol=1e-6)


@pytest.mark.parametrize('size, fields, known', [
    ('base', {}, 109_482_240), ('large', {}, 335_141_888), ('tiny', {}, 4_385_920),  # Hugging Face's BertModel
    ('base', dict(vocab=50_265, first_position=2, pad_id=1, types=1), 124_645_632)])  # RobertaModel
def test_released_models_have_as_many_parameters(size, fields, known):
    shapes = jax.eval_shape(Bert(size=size, pool='pooler', **fields).init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes)) == known


@pytest.mark.parametrize('fields, message', [
    (dict(size='XL'), "^size: unknown value 'XL' .valid: tiny, mini"), (dict(size='', width=8), '^size: give one of tiny, .*, or width'),
    (dict(heads=5), '^heads: 5 heads do not divide the width 768$'), (dict(pool='eot'), "^pool: unknown value 'eot' .valid: cls, mean"),
    (dict(pad_id=30_522), '^pad_id: 30522 is not a token'), (dict(length=0), '^length: found 0; valid: 1 or more$'),
    (dict(first_position=-1), '^first_position: found -1'), (dict(types=-1), '^types: found -1'),
    (dict(neck=-1), '^neck: found -1; valid: 0 or more$'), (dict(dropout=1.), '^dropout: 1.0')])
def test_impossible_fields_are_named_before_anything_runs(fields, message):
    with pytest.raises(RecipeError, match=message):
        Bert(**fields).check()


def test_bfloat16_is_of_compute_not_of_parameters():
    tower = Bert(**SMALL | dict(dtype='bfloat16', pool='pooler'), out_dim=6)
    shapes = jax.eval_shape(tower.init, jax.random.key(0), IDS_BL)
    out = jax.eval_shape(lambda p, ids: tower.apply(p, ids, keys_B=KEYS_B, train=True), shapes, IDS_BL)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype('float32')}
    assert out.pooled_BD.dtype == out.tokens_BLD.dtype == jnp.dtype('bfloat16')


def test_texts_longer_than_the_positions_are_refused():
    with pytest.raises(RecipeError, match='length: texts of 8 tokens are longer than the 7 positions'):
        jax.eval_shape(Bert(**SMALL).init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
