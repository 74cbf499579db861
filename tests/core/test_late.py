"""Streamed late interaction against the dense formula in float64, value and gradients, on every shape of mesh.

Shapes: B batch, n tokens of a row, m of a column, D width; n shards of b = B/n.
"""

import math
import re
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigvlm.core import late, mesh as meshes, pairwise
from bigvlm.core.parts import RecipeError
from tests.fast import jit

B, N, M, D, TILE = 24, 5, 7, 6, 5  # b = 24, 6, 3: the tile divides none of them
SCALE = 5.
MESHES = {'one': dict(data=1), 'data': dict(data=8), 'fsdp': dict(data=4, fsdp=2), 'tensor': dict(data=2, fsdp=2, tensor=2)}
ROUTES = [('one', 'ring'), ('data', 'ring'), ('fsdp', 'ring'), ('fsdp', 'all_gather'), ('tensor', 'ring'), ('tensor', 'all_gather')]


def data(seed=0):
    """Unit tokens, texts like their images; masks with padding anywhere, an example of one real token and one of none."""
    rng = np.random.default_rng(seed)
    rows, cols = rng.normal(size=(B, N, D)), rng.normal(size=(B, M, D))
    cols[:, :3] += 1.5 * rows[:, 1:4]
    rows_mask, cols_mask = rng.random((B, N)) < .7, rng.random((B, M)) < .6
    rows_mask[:, 2], cols_mask[:, 1] = True, True
    rows_mask[3], cols_mask[4], cols_mask[5] = np.arange(N) == 1, np.arange(M) == 6, False
    return dict(rows=rows / np.linalg.norm(rows, axis=2, keepdims=True), cols=cols / np.linalg.norm(cols, axis=2, keepdims=True),
                rows_mask=rows_mask, cols_mask=cols_mask, label=rng.integers(-1, 6, B).astype(np.int32))


# name: (masked, labels as targets, smoothing)
CASES = {'whole': (False, False, 0.), 'padded': (True, False, 0.), 'labels': (True, True, .2)}


def streamed(case, d, options, rows, cols, scale):
    masked, labels, smoothing = CASES[case]
    masks = dict(rows_mask=jnp.asarray(d['rows_mask']), cols_mask=jnp.asarray(d['cols_mask'])) if masked else {}
    side = dict(target=pairwise.equal_labels, rows_side=d['label'], cols_side=d['label']) if labels else {}
    return late.softmax(rows, cols, scale, smoothing=smoothing, **masks, **side, **options)


def dense_scores(rows, cols, rows_mask, cols_mask):
    """(s_I, s_T), images as rows [B,B] both, from all B²·n·m similarities; without a real token all of an example's count."""
    rows_mask, cols_mask = (mask | ~mask.any(1, keepdims=True) for mask in (rows_mask, cols_mask))
    sim_ijkt = jnp.einsum('ikd,jtd->ijkt', rows, cols, precision='highest')
    best_ijk = jnp.where(cols_mask[None, :, None, :], sim_ijkt, -jnp.inf).max(3)
    best_ijt = jnp.where(rows_mask[:, None, :, None], sim_ijkt, -jnp.inf).max(2)
    return ((best_ijk * rows_mask[:, None]).sum(2) / rows_mask.sum(1)[:, None],
            (best_ijt * cols_mask).sum(2) / cols_mask.sum(1))


def looped_scores(d):
    """The same in NumPy from the definition, pair by pair: real tokens are picked out, nothing is masked."""
    def pick(x, real):
        return x[real] if real.any() else x
    found = np.zeros((2, B, B))
    for i in range(B):
        for j in range(B):
            x, y = pick(d['rows'][i], d['rows_mask'][i]), pick(d['cols'][j], d['cols_mask'][j])
            found[0, i, j] = np.mean([max(np.dot(a, b) for b in y) for a in x])
            found[1, i, j] = np.mean([max(np.dot(a, b) for a in x) for b in y])
    return found


def dense(case, d, rows, cols, scale):
    masked, labels, smoothing = CASES[case]
    every = np.ones((B, 1), bool)
    masks = (d['rows_mask'], d['cols_mask']) if masked else (every.repeat(N, 1), every.repeat(M, 1))
    label = d['label']
    q = np.array([[float(i == j or labels and label[i] == label[j] >= 0) for j in range(B)] for i in range(B)])

    def cross_entropy(logits, q):
        wanted = (1 - smoothing) * q / q.sum(1, keepdims=True) + smoothing / B
        return -jnp.sum(wanted * (logits - jnp.log(jnp.exp(logits).sum(1, keepdims=True))), 1)
    s_I, s_T = dense_scores(rows, cols, *masks)
    loss_B = .5 * (cross_entropy(scale * s_I, q) + cross_entropy(scale * s_T.T, q.T))
    return loss_B.mean(), loss_B


_references = {}


def reference(case, d=None, key=''):
    """((loss, loss_B), gradients of rows, cols, scale) in float64."""
    if (case, key) not in _references:
        with jax.enable_x64(True):
            d = d or data()
            gradient = jit(jax.value_and_grad(lambda *a: dense(case, d, *a), (0, 1, 2), has_aux=True))
            _references[case, key] = jax.tree.map(np.asarray, gradient(d['rows'], d['cols'], SCALE))
    return _references[case, key]


def error(found, wanted) -> float:
    """The largest of max|difference| / max|wanted|."""
    def one(a, b):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape and np.isfinite(a).all()
        return np.abs(a - b).max() / np.abs(b).max()
    return max(jax.tree.leaves(jax.tree.map(one, found, wanted)))


def on_mesh(name):
    return meshes.make_mesh(MESHES[name], jax.devices()[:math.prod(MESHES[name].values())])


def evaluate(mesh, tokens, cases, d=None, **options):
    """{case: ((loss, loss_B), gradients)}, in one compiled function, on batches sharded as in training."""
    d = d or data()
    with jax.set_mesh(mesh) if mesh else nullcontext():
        inputs = [jnp.asarray(d[k], tokens) for k in ('rows', 'cols')]
        if mesh:
            d, inputs = jax.device_put((d, inputs), meshes.batch_sharding(mesh))

        def loss(case):  # a cotangent of 4, not 1; a power of two rounds nothing
            def run(*a):
                value, metrics = streamed(case, d, options, *a)
                return 4. * value, (value, metrics['loss_B'])
            return run

        def run(*a):
            found = {c: jax.value_and_grad(loss(c), (0, 1, 2), has_aux=True)(*a) for c in cases}
            return {c: (value[1], jax.tree.map(lambda x: x / 4, g)) for c, (value, g) in found.items()}
        return jit(run)(*inputs, jnp.asarray(SCALE))


@pytest.mark.parametrize('mesh,way', ROUTES)
def test_float64_equals_dense_formula(mesh, way):
    cases = ('whole', 'labels') if (mesh, way) == ('data', 'ring') else ('labels',)
    with jax.enable_x64(True):
        found = evaluate(on_mesh(mesh), jnp.float64, cases, exchange=way, tile=TILE)
    errors = {c: error(found[c], reference(c)) for c in cases}
    print(errors)
    assert max(errors.values()) < 1e-12, errors


def test_float32_equals_dense_formula():
    found = evaluate(None, jnp.float32, ('whole', 'padded'))
    errors = {c: error(found[c], reference(c)) for c in found}
    print(errors)
    assert max(errors.values()) < 3e-6, errors


@pytest.mark.parametrize('tokens,options', [('bfloat16', {}), ('float32', dict(dtype='bfloat16')), ('float32', dict(wire='bfloat16'))])
def test_bfloat16(tokens, options):
    """Products of bfloat16 numbers with float32 sums: gradients to about 2^-8, one rounding, values much better."""
    d = data()
    for key in ('rows', 'cols'):
        d[key] = np.asarray(jnp.asarray(d[key], jnp.bfloat16), np.float64)  # rounding the input is not the loss's error
    found = evaluate(on_mesh('fsdp'), tokens, ('padded',), d=d, tile=TILE, **options)['padded']
    (value, gradients), (value64, gradients64) = found, reference('padded', d, 'rounded')
    print(error(value, value64), error(gradients, gradients64))
    assert error(value, value64) < 1e-5
    assert error(gradients, gradients64) < (3e-6 if 'wire' in options else 1e-2)
    assert gradients[0].dtype == jnp.dtype(tokens)


def test_equal_tokens_share_the_gradient():
    """As jnp.max shares it; padding that equals a real token gets nothing."""
    d = data()
    d['rows'][:, 4], d['cols'][:, 3], d['cols'][:, 0] = d['rows'][:, 2], d['cols'][:, 1], d['cols'][:, 1]
    d['cols'], d['rows'] = d['cols'].round(1), d['rows'].round(1)   # many other equal products
    with jax.enable_x64(True):
        found = evaluate(None, jnp.float64, ('whole', 'padded'), d=d, tile=TILE)
    for case in found:
        assert error(found[case], reference(case, d, 'ties')) < 1e-12
    _, (drows, dcols, _) = found['padded']
    padded_cols = ~d['cols_mask'] & d['cols_mask'].any(1, keepdims=True)
    assert not np.asarray(drows)[~d['rows_mask']].any() and not np.asarray(dcols)[padded_cols].any()
    assert (np.abs(np.asarray(found['whole'][1][1])[:, 3]) > 0).any()


def test_the_two_directions_are_two_matrices():
    d = data()
    mine = jit(late.scores)(*(jnp.asarray(d[k], jnp.float32) for k in ('rows', 'cols')),
                            *(jnp.asarray(d[k]) for k in ('rows_mask', 'cols_mask')))
    wanted = looped_scores(d)
    assert error(mine, tuple(wanted)) < 1e-6
    assert error(dense_scores(d['rows'], d['cols'], d['rows_mask'], d['cols_mask']), tuple(wanted)) < 1e-6
    assert np.abs(wanted[0] - wanted[1]).max() > .1
    few = jit(late.scores)(jnp.asarray(d['rows'][:3]), jnp.asarray(d['cols']))
    assert few[0].shape == few[1].shape == (3, B)


def test_one_token_a_side_is_the_contrast_of_embeddings():
    d = data()
    rows, cols = d['rows'][:, 0], d['cols'][:, 0]
    both = jit(lambda x, y: (late.softmax(x[:, None], y[:, None], SCALE), pairwise.softmax(x, y, SCALE)))
    assert error(*both(jnp.asarray(rows), jnp.asarray(cols))) < 1e-6


def test_accuracy_counts_both_directions():
    d = data()
    s_I, s_T = looped_scores(d)
    wanted = .5 * ((s_I.argmax(1) == np.arange(B)).mean() + (s_T.argmax(0) == np.arange(B)).mean())
    with jax.set_mesh(on_mesh('fsdp')):
        _, metrics = jit(lambda r, c: streamed('padded', d, dict(tile=TILE), r, c, SCALE))(
            jnp.asarray(d['rows'], jnp.float32), jnp.asarray(d['cols'], jnp.float32))
    assert .1 < wanted < .95 and abs(metrics['accuracy'] - wanted) < 1e-6


def sizes_in(hlo: str) -> set[int]:
    return {math.prod(map(int, dims.split(','))) for dims in re.findall(r'\b[a-z]+[0-9]+\[([0-9,]+)\]', hlo)}


@pytest.mark.parametrize('way', ['ring', 'all_gather'])
def test_no_array_of_all_pairs(way):
    """Compiled for 8 devices: similarities of one tile of pairs exist, those of B·B, B·b or b·b pairs do not, by token or not."""
    batch, shard, tile = 8 * 26, 26, 13
    pairs = {batch * batch, batch * shard, shard * shard}
    forbidden = {p * tokens for p in pairs for tokens in (1, N, M, N * M)}
    on = meshes.batch_sharding(on_mesh('data'))
    rows, cols = (jax.ShapeDtypeStruct((batch, tokens, D), jnp.float32, sharding=on) for tokens in (N, M))
    with jax.set_mesh(on_mesh('data')):
        gradient = jit(jax.grad(lambda r, c: late.softmax(r, c, 10., exchange=way, tile=tile)[0], (0, 1)))
        text = gradient.lower(rows, cols).compile().as_text()
    sizes = sizes_in(text)
    assert tile * tile * N * M in sizes and not sizes & forbidden
    assert (batch * M * D in sizes) == (way == 'all_gather')   # the ring never holds the other devices' tokens


def test_default_tile():
    assert late.default_tile(196, 77) == 33 and late.default_tile(49, 20) == 130 and late.default_tile(10_000, 10_000) == 1


def test_errors_say_what_would_be_valid():
    x, y = jnp.ones((12, 3, 2)), jnp.ones((12, 4, 2))
    with pytest.raises(RecipeError, match="exchange: found 'rong'; valid: auto, ring, all_gather"):
        late.softmax(x, y, 1., exchange='rong')
    with pytest.raises(RecipeError, match='tile: found 0'):
        late.softmax(x, y, 1., tile=0)
    with pytest.raises(RecipeError, match='smoothing: found -1'):
        late.softmax(x, y, 1., smoothing=-1)
    with pytest.raises(ValueError, match=r'found \(12, 3, 2\) and \(4, 4, 2\)'):
        late.softmax(x, y[:4], 1.)
    with pytest.raises(ValueError, match=r'a mask must be \[12, 4\].*found \(12, 3\)'):
        late.softmax(x, y, 1., cols_mask=jnp.ones((12, 3), bool))
    with jax.set_mesh(on_mesh('data')), pytest.raises(RecipeError, match='12 examples .* 8 shards'):
        late.softmax(x, y, 1.)
