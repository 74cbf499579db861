"""Text transformers like CLIP's and SigLIP's against the NumPy reference; pooling, padding, causality, sizes."""

import functools
import pathlib

import fast
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from bigvlm import recipe
from bigvlm.core import parts
from bigvlm.core.parts import RecipeError
from bigvlm.nn.random import example_keys
from bigvlm.towers.text import Text

SMALL = dict(size='', width=8, depth=2, heads=2, vocab=12, length=7, eot_id=11, pad_id=0, dtype='float32')
# A beginning, words, the end-of-text token (twice in the second: the first counts), padding; fewer than the positions.
IDS_BL = np.array([[10, 3, 4, 5, 11, 0], [10, 7, 11, 11, 0, 0]], np.int32)
CASES = {
    'clip': dict(causal=True, pool='eot', activation='quick_gelu', norm_eps=1e-3, out_dim=6, out_bias=False),
    'siglip': dict(pool='last', out_dim=6),
    'padded_mean': dict(pool='mean', mask_padding=True, mlp_dim=12, activation='gelu'),
    'max': dict(pool='max'), 'argmax': dict(causal=True, pool='argmax'), 'first': dict(pool='first', mask_padding=True)}
GRADIENTS = ('clip', 'siglip', 'padded_mean')
RNG = np.random.default_rng(0)
WEIGHT_BD = RNG.normal(size=(2, 8)).astype(np.float32)


@functools.cache
def params(**fields):
    tower = Text(**SMALL | fields)
    return reference.randomise(jax.eval_shape(tower.init, jax.random.key(0), IDS_BL)['params'])


@functools.cache
def compiled(train=False, gradient=True, **fields):
    """params, ids, keys -> (Encoded, gradient of Σ weight·pooled)."""
    tower = Text(**SMALL | fields)

    def loss(params, ids_BL, keys_B):
        out = tower.apply({'params': params}, ids_BL, keys_B=keys_B, train=train, layers=(0, -1))
        return jnp.sum(out.pooled_BD * WEIGHT_BD[:, :out.pooled_BD.shape[1]]), out

    def run(params, ids_BL, keys_B=None):
        if not gradient:
            return loss(params, ids_BL, keys_B)[1], None
        (_, out), slope = jax.value_and_grad(loss, has_aux=True)(params, ids_BL, keys_B)
        return out, slope
    return fast.jit(run)


@pytest.mark.parametrize('case', CASES)
def test_value_and_gradient_equal_the_reference(case):
    fields = CASES[case]
    tower, p = Text(**SMALL | fields), params(**fields)
    run = compiled(**fields) if case in GRADIENTS else compiled(gradient=False, **fields)
    out, gradient = run(p, IDS_BL)
    expected = [reference.text(ids, reference.float64(p), tower) for ids in IDS_BL]
    assert reference.relative(out.pooled_BD, [pooled for pooled, _, _ in expected]) < 1e-5
    assert reference.relative(out.tokens_BLD, [tokens for _, tokens, _ in expected]) < 1e-5
    for i in (0, -1):
        assert reference.relative(out.layers[i], [layers[i] for _, _, layers in expected]) < 1e-5
    np.testing.assert_array_equal(out.mask_BL, IDS_BL != 0)
    if case not in GRADIENTS:
        return

    def loss(p):
        pooled = [reference.text(ids, p, tower)[0] for ids in IDS_BL]
        return np.sum(pooled * WEIGHT_BD[:, :len(pooled[0])].astype(np.float64))
    errors = reference.slope_errors(loss, p, gradient)
    assert max(errors.values()) < 2e-5, errors


def test_what_comes_after_the_end_of_text_does_not_reach_clip():
    run, p = compiled(**CASES['clip']), params(**CASES['clip'])
    changed = IDS_BL.copy()
    changed[0, 5], changed[1, 3:] = 8, (2, 8, 11)
    before, after = run(p, IDS_BL)[0], run(p, changed)[0]
    np.testing.assert_array_equal(before.pooled_BD, after.pooled_BD)
    assert np.abs(before.tokens_BLD[1, 3:] - after.tokens_BLD[1, 3:]).max() > .01
    run, p = compiled(**CASES['siglip']), params(**CASES['siglip'])
    assert np.abs(run(p, IDS_BL)[0].pooled_BD - run(p, changed)[0].pooled_BD).max() > .01


def test_biases_are_where_the_fields_say():
    assert 'out/bias' in reference.flat(params(**CASES['siglip']))
    assert 'out/bias' not in reference.flat(params(**CASES['clip']))


def test_a_mask_from_outside_replaces_padding():
    fields = CASES['padded_mean']
    tower, p = Text(**SMALL | fields), params(**fields)
    apply = fast.jit(lambda p, ids, mask: tower.apply({'params': p}, ids, mask=mask))
    cut = apply(p, IDS_BL, jnp.arange(6) < jnp.array([[3], [2]]))
    short = IDS_BL.copy()
    short[0, 3:], short[1, 2:] = 0, 0
    np.testing.assert_allclose(cut.pooled_BD, compiled(**fields)(p, short)[0].pooled_BD, atol=1e-6)
    nothing = apply(p, IDS_BL, jnp.zeros((2, 6), bool))
    assert np.isfinite(nothing.pooled_BD).all()


def test_dropout_is_in_training_only_and_belongs_to_the_example():
    fields, p = CASES['siglip'], params(**CASES['siglip'])
    keys_B = example_keys(jax.random.key(3), np.array([[0, 4], [1, 9]], np.uint32), 0)
    train = compiled(train=True, gradient=False, dropout=.3, drop_path=.3, **fields)
    quiet, one = compiled(**fields)(p, IDS_BL)[0].pooled_BD, train(p, IDS_BL, keys_B=keys_B)[0].pooled_BD
    turned = train(p, IDS_BL[::-1], keys_B=keys_B[::-1])[0].pooled_BD
    np.testing.assert_allclose(one[::-1], turned, atol=1e-6)
    assert reference.relative(one, quiet) > .05
    calm = compiled(gradient=False, dropout=.3, drop_path=.3, **fields)(p, IDS_BL, keys_B=keys_B)[0].pooled_BD
    np.testing.assert_allclose(calm, quiet, atol=1e-6)


def count(tower, example):
    shapes = jax.eval_shape(tower.init, jax.random.key(0), jnp.zeros((1, *example[0]), example[1]))
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize('name, scalars, known', [('clip_b32', 1, 151_277_313), ('siglip_l16_256', 2, 652_150_786)])
def test_released_models_have_as_many_parameters(name, scalars, known):
    """Both towers of the recipe and the loss's scalars, as openai's and google's released models count."""
    config = recipe.resolve(recipe.from_command_line(str(pathlib.Path(__file__).parents[2] / 'configs' / f'{name}.py')))
    towers = [parts.build('bigvlm.towers', spec, where='towers') for spec in config['towers'].values()]
    assert sum(count(tower, tower.example()) for tower in towers) + scalars == known


@pytest.mark.parametrize('fields, message', [
    (dict(size='XL'), "^size: unknown value 'XL' .valid: mu, Ti, S"),
    (dict(size='', width=8, depth=1), '^size: give one of mu, .*, or width, depth and heads$'),
    (dict(heads=5), '^heads: 5 heads do not divide the width 768$'),
    (dict(pool='cls'), "^pool: unknown value 'cls' .valid: eot, argmax, last, first, max, mean"),
    (dict(pool='eot', eot_id=49_407), '^eot_id: 49407 is not a token of a vocabulary of 32000$'),
    (dict(length=0), '^length: 0 positions hold no text$'),
    (dict(dropout=1.5), r'^dropout: 1.5 is not in \[0, 1\)'),
    (dict(remat='some'), "^remat: unknown value 'some' .valid: none, full"),
    (dict(dtype='half'), "^dtype: unknown value 'half' .valid: bfloat16")])
def test_impossible_fields_are_named_before_anything_runs(fields, message):
    with pytest.raises(RecipeError, match=message) as error:
        Text(**fields).check()
    assert '\n' not in str(error.value)


def test_texts_longer_than_the_positions_are_refused():
    with pytest.raises(RecipeError, match='length: texts of 8 tokens are longer than the 7 positions'):
        jax.eval_shape(Text(**SMALL).init, jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
