"""Swin against a NumPy formula, which attends by the windows' borders instead of rolling (against transformers: tests/interop)."""

import functools

import fast
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from bigvlm.core import flops
from bigvlm.core.parts import RecipeError
from bigvlm.nn.random import example_keys
from bigvlm.towers import swin
from bigvlm.towers.swin import Swin

SMALL = dict(size='', width=8, depths=(2, 4), heads=(2, 4), window=3, patch=2, image=14, mlp_ratio=2., norm_eps=1e-3, dtype='float32')
RNG = np.random.default_rng(0)
SIDES = {'odd': (14, 18), 'smaller than a window': (8, 12)}  # grids of 7×9, then 4×5; of 4×6, then 2×3
IMAGES = {name: RNG.integers(0, 256, (2, *sides, 3)).astype(np.uint8) for name, sides in SIDES.items()}
WEIGHT_BD = RNG.normal(size=(2, 6)).astype(np.float32) * np.float32([[1], [0]])  # the gradient is the first image's: the formula is slow
KEYS_B = example_keys(jax.random.key(3), np.array([[0, 4], [1, 9]], np.uint32), 0)


@functools.cache
def params():
    shapes = jax.eval_shape(Swin(**SMALL, out_dim=6).init, jax.random.key(0), IMAGES['odd'])['params']
    return reference.randomise(shapes, spread=.3)


@functools.cache
def compiled(gradient=False, train=False, **fields):
    """params, images, keys -> (Encoded, gradient of Σ weight·pooled)."""
    tower = Swin(**SMALL | dict(out_dim=6) | fields)

    def loss(params, image_BHWC, keys_B):
        out = tower.apply({'params': params}, image_BHWC, keys_B=keys_B, train=train, layers=(0, -1))
        return jnp.sum(out.pooled_BD * WEIGHT_BD), out

    def run(params, image_BHWC, keys_B=None):
        if not gradient:
            return loss(params, image_BHWC, keys_B)[1], None
        (_, out), slope = jax.value_and_grad(loss, has_aux=True)(params, image_BHWC, keys_B)
        return out, slope
    return fast.jit(run)


def windows(x_HWC, p, tower, heads, shifted):
    """Attention of each token to those between the same borders: every ``window`` tokens, moved by half of that if shifted."""
    sides, size = x_HWC.shape[:2], tower.window
    whole = [-(-side // size) * size if side > size else side for side in sides]
    move = [size // 2 if shifted and side > size else 0 for side in sides]
    padded = np.zeros((*whole, x_HWC.shape[2]))
    padded[:sides[0], :sides[1]] = x_HWC
    groups = {}
    for y in range(whole[0]):
        for x in range(whole[1]):
            groups.setdefault(((y - move[0]) // size, (x - move[1]) // size), []).append((y, x))
    found = np.zeros_like(padded)
    for places in groups.values():
        own = np.array([padded[place] for place in places])
        query, key, value = (reference.dense(own, p[name]) for name in ('query', 'key', 'value'))
        down, across = (np.subtract.outer(axis, axis) for axis in np.array(places).T)
        width = own.shape[1] // heads
        mixed = np.zeros_like(query)
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            bias = p['position_bias'][(down + size - 1) * (2 * size - 1) + across + size - 1, head]
            weights = np.exp(query[:, part] @ key[:, part].T / np.sqrt(width) + bias)
            mixed[:, part] = weights / weights.sum(1, keepdims=True) @ value[:, part]
        for place, row in zip(places, reference.dense(mixed, p['out'])):
            found[place] = row
    return found[:sides[0], :sides[1]]


def formula(image_HWC, p, tower):
    """(pooled, tokens, [tokens after each stage]) of one image."""
    _, depths, heads = tower.dims()
    rows, columns = (side // tower.patch for side in image_HWC.shape[:2])
    x = reference.dense(reference.patches(image_HWC, tower.patch, tower.mean, tower.std), p['patch_embed']).reshape(rows, columns, -1)
    x, eps, stages = reference.layer_norm(x, p['patch_norm'], tower.norm_eps), tower.norm_eps, []
    for i, depth in enumerate(depths):
        for block in range(depth):
            q = reference.layer_of(p[f'stage{i}']['blocks'][('plain', 'shifted')[block % 2]], block // 2)
            x = x + windows(reference.layer_norm(x, q['norm1'], eps), q['attention'], tower, heads[i], block % 2)
            x = x + reference.mlp(reference.layer_norm(x, q['norm2'], eps), q['mlp'], tower.activation)
        stages.append(x.reshape(-1, x.shape[2]))
        if i + 1 < len(depths):
            even = np.pad(x, ((0, x.shape[0] % 2), (0, x.shape[1] % 2), (0, 0)))
            four = [even[y::2, z::2] for z, y in ((0, 0), (0, 1), (1, 0), (1, 1))]
            x = reference.dense(reference.layer_norm(np.concatenate(four, 2), p[f'merge{i}']['norm'], eps), p[f'merge{i}']['reduction'])
    tokens = reference.layer_norm(x, p['norm'], eps).reshape(-1, x.shape[2])
    return reference.dense(tokens.mean(0), p['out']), tokens, stages


@pytest.mark.parametrize('name', SIDES)
def test_value_and_gradient_equal_the_formula(name):
    tower, p, image_BHWC = Swin(**SMALL, out_dim=6), params(), IMAGES[name]
    out, gradient = compiled(gradient=name == 'odd')(p, image_BHWC)
    expected = [formula(image, reference.float64(p), tower) for image in image_BHWC]
    assert reference.relative(out.pooled_BD, [pooled for pooled, _, _ in expected]) < 1e-5
    assert reference.relative(out.tokens_BLD, [tokens for _, tokens, _ in expected]) < 1e-5
    for i in (0, -1):
        assert reference.relative(out.layers[i], [stages[i] for _, _, stages in expected]) < 1e-5
    if name != 'odd':
        return

    def loss(p):
        return formula(image_BHWC[0], p, tower)[0] @ WEIGHT_BD[0]
    errors = reference.slope_errors(loss, p, gradient)
    assert max(errors.values()) < 2e-5, errors


def test_dropped_branches_belong_to_the_example_and_deeper_blocks_drop_more(monkeypatch):
    image_BHWC, p = IMAGES['odd'], params()
    run = compiled(train=True, dropout=.2, drop_path=.5)
    one, turned = run(p, image_BHWC, KEYS_B)[0].pooled_BD, run(p, image_BHWC[::-1], KEYS_B[::-1])[0].pooled_BD
    np.testing.assert_allclose(one[::-1], turned, atol=1e-5)
    quiet = compiled(gradient=True)(p, image_BHWC)[0].pooled_BD
    assert reference.relative(one, quiet) > .05
    rates, places = [], []

    def record(x, rate, keys_B, place):
        rates.append(rate)
        places.append(place)
        return x
    monkeypatch.setattr(swin, 'drop_path', record)
    stages = []
    monkeypatch.setattr(swin, 'Stage', lambda *fields, name: stages.append(fields) or (lambda x_BHWC, keys_B: x_BHWC))
    jax.eval_shape(lambda: Swin(**SMALL, drop_path=.5).init(jax.random.key(0), image_BHWC))
    for i, (block, depth, before, *_) in enumerate(stages):
        pair_params = reference.layer_of(p[f'stage{i}']['blocks'], 0)
        for layer in range(before, before + depth, 2):  # what the scan counts
            jax.eval_shape(lambda x: swin.Pair(block).apply({'params': pair_params}, x, layer, KEYS_B), jnp.zeros((2, 4, 4, 8 * 2 ** i)))
    np.testing.assert_allclose(rates, np.repeat([0., .1, .2, .3, .4, .5], 2), rtol=1e-6)
    assert len({*places}) == 12


def test_rematerialisation_repeats_what_it_does_not_keep():
    """That it changes no gradient is tested above: towers rematerialise unless told otherwise."""
    none, kept, full = (flops.count(compiled(gradient=True, **remat).__wrapped__, params(), IMAGES['odd'])
                        for remat in (dict(remat='none'), {}, dict(remat='full')))
    assert none < kept < full


@pytest.mark.parametrize('size, known', [('T', 27_519_354), ('B', 86_743_224)])
def test_released_models_have_as_many_parameters(size, known):
    """timm's swin_*_patch4_window7_224 without their classifiers of 1,000."""
    shapes = jax.eval_shape(Swin(size=size).init, jax.random.key(0), jnp.zeros((1, 224, 224, 3), jnp.uint8))
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes)) == known


@pytest.mark.parametrize('fields, message', [
    (dict(size='H'), "^size: unknown value 'H' .valid: T, S, B, L"),
    (dict(size='', width=8), '^size: give one of T, .*, or width and depths'),
    (dict(depths=(2, 3)), r'^depths: \(2, 3\) must be even'), (dict(heads=(3, 6)), '^heads: .* one number per stage'),
    (dict(heads=(5, 6, 12, 24)), r'^heads: .* divides \[96, 192'), (dict(image=222), '^image: a side of 222 is not a multiple'),
    (dict(window=1), '^window: found 1'), (dict(drop_path=1.), '^drop_path: 1.0'), (dict(remat='some'), '^remat: unknown')])
def test_impossible_fields_are_named_before_anything_runs(fields, message):
    with pytest.raises(RecipeError, match=message):
        Swin(**fields).check()


def test_bfloat16_is_of_compute_not_of_parameters():
    tower = Swin(**SMALL | dict(dtype='bfloat16'), out_dim=6)
    shapes = jax.eval_shape(tower.init, jax.random.key(0), IMAGES['odd'])
    out = jax.eval_shape(lambda p, image: tower.apply(p, image, keys_B=KEYS_B, train=True, layers=(1,)), shapes, IMAGES['odd'])
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype('float32')}
    assert {leaf.dtype for leaf in jax.tree.leaves(out)} == {jnp.dtype('bfloat16')}


def test_images_that_patches_do_not_cut_are_refused():
    with pytest.raises(RecipeError, match='^image: images of 18×17 are not cut evenly by patches of 2'):
        jax.eval_shape(Swin(**SMALL).init, jax.random.key(0), jnp.zeros((1, 18, 17, 3), jnp.uint8))
