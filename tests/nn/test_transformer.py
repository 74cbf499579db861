"""The transformer against the NumPy reference, and its promises: scan, rematerialisation, causality, bfloat16."""

import functools

import fast
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from bigvlm.core import flops
from bigvlm.core.parts import RecipeError
from bigvlm.nn import transformer
from bigvlm.nn.random import example_keys
from bigvlm.nn.transformer import Transformer

HEADS, DEPTH = 2, 3
X_BLW = np.random.default_rng(0).normal(size=(2, 5, 8)).astype(np.float32)
WEIGHT_BLW = np.random.default_rng(1).normal(size=X_BLW.shape).astype(np.float32)
MASK_BL = np.array([[True] * 5, [True, True, True, False, False]])
KEYS_B = example_keys(jax.random.key(3), np.array([[0, 4], [1, 9]], np.uint32), 0)
CASES = {  # the norm's epsilon is large where its place would not show otherwise
    'bidirectional': dict(),
    'causal': dict(activation='quick_gelu', norm_eps=1e-2, causal=True),
    'padded': dict(activation='gelu', norm_eps=1e-3, padded=True),
    'causal_padded': dict(activation='relu', causal=True, padded=True, mlp_dim=12)}
BLOCK = transformer.Block(HEADS, 32, DEPTH, 'gelu_tanh', 'xavier', 1e-6, False, .2, .4, False, jnp.float32, 'xla')
RANDOM = dict(random=True, dropout=.2, drop_path=.4)
PARAMS = {}


def params(mlp_dim=0):
    if mlp_dim not in PARAMS:
        module = Transformer(DEPTH, HEADS, mlp_dim=mlp_dim)
        PARAMS[mlp_dim] = reference.randomise(jax.eval_shape(module.init, jax.random.key(0), X_BLW)['params'])
    return PARAMS[mlp_dim]


@functools.cache
def compiled(padded=False, random=False, layers=(), **fields):
    """params, x -> ((tokens, layers), gradient by params and x) of Σ weight·tokens."""
    module = Transformer(DEPTH, HEADS, **fields)

    def loss(params, x_BLW):
        tokens, collected = module.apply({'params': params}, x_BLW, keys_B=KEYS_B if random else None,
                                         mask_BL=jnp.asarray(MASK_BL) if padded else None, layers=layers)
        return jnp.sum(tokens.astype(jnp.float32) * WEIGHT_BLW), (tokens, collected)

    def run(params, x_BLW):
        (_, out), gradient = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x_BLW)
        return out, gradient
    return fast.jit(run)


def expected(p, x_BLW=X_BLW, padded=False, mlp_dim=0, norm_eps=1e-6, activation='gelu_tanh', causal=False):
    """Per example (tokens, layers)."""
    return [reference.transformer(x_BLW[b].astype(np.float64), p, HEADS, DEPTH, activation, norm_eps, causal,
                                  MASK_BL[b] if padded else None) for b in range(2)]


@pytest.mark.parametrize('case', CASES)
def test_value_and_gradient_equal_the_reference(case):
    fields = CASES[case]
    p = params(fields.get('mlp_dim', 0))
    (tokens, collected), (gradient, gradient_x) = compiled(layers=(0, -1), **fields)(p, X_BLW)
    found = expected(reference.float64(p), **fields)
    assert reference.relative(tokens, [t for t, _ in found]) < 1e-5
    assert collected.keys() == {0, -1}
    for i in (0, -1):
        assert reference.relative(collected[i], [layers[i] for _, layers in found]) < 1e-5

    def loss(both):
        found = expected(both['params'], both['x'], **fields)
        return float(sum((t * w).sum() for (t, _), w in zip(found, WEIGHT_BLW.astype(np.float64))))
    errors = reference.slope_errors(loss, {'params': p, 'x': X_BLW}, {'params': gradient, 'x': gradient_x})
    assert max(errors.values()) < 2e-5, errors


def test_scan_over_layers_equals_a_loop_over_sliced_parameters():
    """With dropout and drop path, whose draws and rates depend on the layer's number."""
    p = params()
    (tokens, _), _ = compiled(**RANDOM)(p, X_BLW)
    one = fast.jit(lambda p, x, layer: BLOCK.apply({'params': p}, x, layer, KEYS_B, None)[0])
    x_BLW = X_BLW
    for i in range(DEPTH):
        x_BLW = one(reference.layer_of(p['blocks'], i), x_BLW, i)
    last = [reference.layer_norm(np.asarray(x, np.float64), p['norm'], 1e-6) for x in x_BLW]
    assert reference.relative(tokens, last) < 1e-5
    (without, _), _ = compiled(layers=(0, -1))(p, X_BLW)
    assert reference.relative(tokens, without) > .1, 'nothing was dropped'


def test_every_layer_and_branch_draws_for_itself_and_deeper_ones_drop_more(monkeypatch):
    places, rates, made = [], [], params()

    def record(x_BLW, rate, keys_B, place):
        places.append(place)
        rates.append(rate)
        return x_BLW
    monkeypatch.setattr(transformer, 'dropout', record)
    monkeypatch.setattr(transformer, 'drop_path', record)
    for layer in range(DEPTH):
        p = reference.layer_of(made['blocks'], layer)
        jax.eval_shape(lambda x_BLW: BLOCK.apply({'params': p}, x_BLW, layer, KEYS_B, None)[0], X_BLW)
    assert len(set(places)) == len(places) == 4 * DEPTH
    assert rates[::2] == [.2] * 6 and rates[1::2] == [0., 0., .2, .2, .4, .4]


def test_rematerialisation_changes_cost_but_no_value_or_gradient():
    runs = [compiled(**RANDOM), *(compiled(remat=r, **RANDOM) for r in ('dots_with_no_batch_dims_saveable', 'full'))]
    costs = [flops.count(run.__wrapped__, params(), X_BLW) for run in runs]
    assert costs[0] < costs[1] < costs[2], 'nothing is recomputed, or the policy saves nothing'
    plain, *others = (jax.tree_util.tree_leaves_with_path(run(params(), X_BLW)) for run in runs)
    for other in others:
        for (path, a), (_, b) in zip(plain, other):
            if "'key'" not in str(path) or "'bias'" not in str(path):  # keys' biases have a gradient of rounding errors
                assert reference.relative(b, a) < 1e-5, path


def test_every_named_activation_saves_what_it_stands_for():
    """FLOPs of the forward pass that are not repeated, per layer: what a name's own product costs."""
    cost = {remat: flops.count(compiled(remat=remat).__wrapped__, params(), X_BLW) for remat in (
        'none', 'full', *transformer.NAMES, 'qkv+context+attended+hidden')}
    (b, l, w), m = X_BLW.shape, 4 * X_BLW.shape[-1]
    product = DEPTH * 2 * b * l * w
    saved = {name: cost['full'] - cost[name] for name in transformer.NAMES}
    attention = 2 * DEPTH * 2 * b * l * l * w  # scores, and their product with the values
    assert saved == {'qkv': 3 * product * w, 'context': attention // 2, 'attended': product * w, 'hidden': product * m}
    assert cost['qkv+context+attended+hidden'] == cost['none'] + attention // 2, 'scores are never kept'


def test_causal_tokens_do_not_depend_on_later_ones():
    changed = X_BLW.copy()
    changed[:, 3:] = X_BLW[:, 1::-1]  # (a shift of a whole token is nothing to the norms)
    for fields, causal in ((CASES['causal'], True), (CASES['bidirectional'], False)):
        run = compiled(layers=(0, -1), **fields)
        before, after = run(params(), X_BLW)[0][0], run(params(), changed)[0][0]
        assert np.abs(before[:, 3:] - after[:, 3:]).max() > .01
        assert (np.abs(before[:, :3] - after[:, :3]).max() == 0) == causal


def test_bfloat16_compute_keeps_float32_parameters():
    """Eight bits of mantissa: 3 % of the largest token, 6 % of a leaf's gradient (keys' biases have none but noise)."""
    made = jax.eval_shape(Transformer(DEPTH, HEADS, dtype=jnp.bfloat16).init, jax.random.key(0), X_BLW)
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype('float32')}
    (tokens, _), (gradient, _) = compiled(dtype=jnp.bfloat16)(params(), X_BLW.astype(jnp.bfloat16))
    (tokens_32, _), (gradient_32, _) = compiled(layers=(0, -1))(params(), X_BLW)
    assert tokens.dtype == jnp.bfloat16
    assert reference.relative(tokens, tokens_32) < .03
    for path, leaf in reference.flat(gradient).items():
        assert leaf.dtype == jnp.float32, path
        if 'key/bias' not in path:
            assert reference.relative(leaf, reference.flat(gradient_32)[path]) < .06, path


def test_initial_values():
    """Xavier of big_vision; CLIP's normals by width and depth; biases zero, norms one; every layer drawn by itself."""
    width, depth = 64, 2
    for scheme in ('xavier', 'clip'):
        module = Transformer(depth, 4, init_scheme=scheme)
        p = reference.flat(fast.jit(module.init)(jax.random.key(0), np.zeros((1, 2, width), np.float32))['params'])
        stds = {path.removeprefix('blocks/').removesuffix('/kernel'): np.asarray(leaf).std(axis=(1, 2))
                for path, leaf in p.items() if path.endswith('kernel')}
        narrow, wide = (2 / (2 * width)) ** .5, (2 / (5 * width)) ** .5  # Glorot: sqrt(2 / (in + out))
        wanted = dict.fromkeys(('attention/query', 'attention/key', 'attention/value', 'attention/out'), narrow)
        wanted |= {'mlp/fc1': wide, 'mlp/fc2': wide}
        if scheme == 'clip':
            out = width ** -.5 * (2 * depth) ** -.5
            wanted = dict.fromkeys(('attention/query', 'attention/key', 'attention/value'), width ** -.5)
            wanted |= {'attention/out': out, 'mlp/fc1': (2 * width) ** -.5, 'mlp/fc2': out}
        for path, std_L in stds.items():
            np.testing.assert_allclose(std_L, wanted.pop(path), rtol=.05)
        assert not wanted
        for path, leaf in p.items():
            if not path.endswith('kernel'):
                assert (leaf == path.endswith('scale')).all(), path
        kernel = p['blocks/mlp/fc1/kernel']
        assert not np.allclose(kernel[0], kernel[1])


@pytest.mark.parametrize('fields, message', [
    (dict(remat='ful'), "remat: unknown value 'ful' .*everything_saveable, or some of qkv, .* joined by"),
    (dict(remat='qkv+qkv'), "remat: unknown value 'qkv.qkv'"),
    (dict(activation='gelu2'), "activation: unknown value 'gelu2' .*quick_gelu"),
    (dict(init_scheme='he'), "init_scheme: unknown value 'he' .valid: xavier, clip"),
    (dict(heads=3), 'heads: 3 heads do not divide the width 8')])
def test_impossible_fields_are_named(fields, message):
    with pytest.raises(RecipeError, match=message):
        jax.eval_shape(Transformer(**(dict(depth=1, heads=2) | fields)).init, jax.random.key(0), X_BLW)


def test_a_layer_that_is_not_there_is_named():
    for i in (3, -4):
        with pytest.raises(RecipeError, match=f'no layer {i} among 3'):
            jax.eval_shape(lambda p: Transformer(DEPTH, HEADS).apply({'params': p}, X_BLW, layers=(i,)), params())
