"""The streamed losses against dense formulas in float64, values and gradients, on every shape of mesh.

Shapes: B batch, D width; n shards of b = B/n.
"""

import math
import re
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from bigvlm.core import mesh as meshes, pairwise
from bigvlm.core.parts import RecipeError

B, D, TILE = 48, 7, 5  # b = 48, 12, 6: the tile divides none of them
SCALE, BIAS = 9., -4.
MESHES = {'one': dict(data=1), 'data': dict(data=8), 'fsdp': dict(data=4, fsdp=2),
          'tensor': dict(data=2, fsdp=2, tensor=2)}
ROUTES = [('one', 'ring')] + [(m, e) for m in ('data', 'fsdp', 'tensor') for e in ('ring', 'all_gather')]


def data(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(B, D))
    cols = rows + .7 * rng.normal(size=(B, D))
    words = rng.integers(0, 2**32, (10, 2), dtype=np.uint32)
    words[1, 0] = words[0, 0]  # equal in one word only: not equal
    return dict(rows=rows / np.linalg.norm(rows, axis=1, keepdims=True),
                cols=cols / np.linalg.norm(cols, axis=1, keepdims=True),
                label=rng.integers(-1, 6, B).astype(np.int32), words=words[rng.integers(0, 10, B)],
                teacher=.5 * rng.normal(size=(B, 3)))


def teacher_target(row_side, col_side, row_id, col_id):
    return jnp.exp(row_side @ col_side.T)


def dense_targets(d) -> dict[str, np.ndarray]:
    """The matrices of targets q, by loops."""
    label, words = d['label'], [tuple(w) for w in d['words']]
    pairs = [(i, j) for i in range(B) for j in range(B)]
    square = {
        'identity': [i == j for i, j in pairs],
        'labels': [i == j or (label[i] == label[j] and label[i] != -1) for i, j in pairs],
        'hashes': [words[i] == words[j] for i, j in pairs],
        'teacher': [math.exp(float(np.dot(d['teacher'][i], d['teacher'][j]))) for i, j in pairs]}
    return {k: np.array(v, np.float64).reshape(B, B) for k, v in square.items()}


# name: (loss, target function, name of its side array, name of the dense targets, smoothing)
CASES = {
    'softmax': (pairwise.softmax, pairwise.identity, None, 'identity', 0.),
    'softmax smooth': (pairwise.softmax, pairwise.identity, None, 'identity', .1),
    'softmax labels': (pairwise.softmax, pairwise.equal_labels, 'label', 'labels', 0.),
    'softmax hashes smooth': (pairwise.softmax, pairwise.equal_hashes, 'words', 'hashes', .3),
    'softmax teacher': (pairwise.softmax, teacher_target, 'teacher', 'teacher', 0.),
    'sigmoid': (pairwise.sigmoid, pairwise.identity, None, 'identity', 0.),
    'sigmoid labels': (pairwise.sigmoid, pairwise.equal_labels, 'label', 'labels', 0.),
}


def streamed(case, d, options, rows, cols, scale, bias):
    loss_fn, target, side, _, smoothing = CASES[case]
    arguments = dict(target=target, rows_side=d.get(side), cols_side=d.get(side), **options)
    if loss_fn is pairwise.sigmoid:
        return loss_fn(rows, cols, scale, bias, **arguments)
    return loss_fn(rows, cols, scale, smoothing=smoothing, **arguments)


def dense(case, targets, rows, cols, scale, bias):
    """The formulas over the whole matrix of logits."""
    loss_fn, _, _, name, smoothing = CASES[case]
    logits, q = scale * rows @ cols.T, targets[name]
    if loss_fn is pairwise.sigmoid:
        return -jnp.sum(jnp.log(jax.nn.sigmoid(jnp.where(q > 0, 1., -1.) * (logits + bias)))) / B

    def cross_entropy(logits, q):
        wanted = (1 - smoothing) * q / q.sum(1, keepdims=True) + smoothing / B
        return -jnp.mean(jnp.sum(wanted * (logits - jnp.log(jnp.exp(logits).sum(1, keepdims=True))), 1))
    return .5 * (cross_entropy(logits, q) + cross_entropy(logits.T, q.T))


_references = {}


def reference(case, scale=SCALE, bias=BIAS, d=None, key=''):
    """(loss, gradients of rows, cols, scale, bias) in float64."""
    if (case, scale, key) not in _references:
        d = d or data()
        with jax.enable_x64(True):
            grad = jax.value_and_grad(lambda *a: dense(case, dense_targets(d), *a), argnums=(0, 1, 2, 3))
            _references[case, scale, key] = jax.tree.map(np.asarray, grad(d['rows'], d['cols'], scale, bias))
    return _references[case, scale, key]


def error(found, wanted) -> float:
    """The largest of max|difference| / max|wanted| over loss and gradients; zero where zero is wanted."""
    def one(a, b):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape and np.isfinite(a).all()
        return np.abs(a - b).max() / (np.abs(b).max() or 1.)
    return max(jax.tree.leaves(jax.tree.map(one, found, wanted)))


def on_mesh(name):
    spec = MESHES[name]
    return meshes.make_mesh(spec, jax.devices()[:math.prod(spec.values())])


def evaluate(mesh, embeddings, cases, d=None, scale=SCALE, bias=BIAS, **options):
    """{case: (loss, gradients)}, all in one compiled function, on batches sharded as in training."""
    d = d or data()
    with jax.set_mesh(mesh) if mesh else nullcontext():
        side = {k: jnp.asarray(v, embeddings if k == 'teacher' else None) for k, v in d.items()}
        inputs = [jnp.asarray(d[k], embeddings) for k in ('rows', 'cols')] + [jnp.asarray(scale), jnp.asarray(bias)]
        if mesh:
            side, inputs[:2] = jax.device_put((side, inputs[:2]), meshes.batch_sharding(mesh))

        def weighted(case):  # a cotangent of 4, not 1; a power of two rounds nothing
            return lambda *a: 4. * streamed(case, side, options, *a)[0]

        run = jax.jit(lambda *a: {c: jax.value_and_grad(weighted(c), (0, 1, 2, 3))(*a) for c in cases})
        return jax.tree.map(lambda x: x / 4, run(*inputs))


@pytest.mark.parametrize('mesh,way', ROUTES)
def test_float64_equals_dense_formula(mesh, way):
    with jax.enable_x64(True):
        found = evaluate(on_mesh(mesh), jnp.float64, CASES, exchange=way, tile=TILE)
    errors = {c: error(found[c], reference(c)) for c in CASES}
    print(errors)
    assert max(errors.values()) < 1e-12, errors


@pytest.mark.parametrize('mesh,way', [('fsdp', 'ring'), ('tensor', 'all_gather')])
def test_float32_equals_dense_formula(mesh, way):
    found = evaluate(on_mesh(mesh), jnp.float32, CASES, exchange=way, tile=TILE)
    errors = {c: error(found[c], reference(c)) for c in CASES}
    print(errors)
    assert max(errors.values()) < 2e-6, errors


@pytest.mark.parametrize('embeddings', ['bfloat16', 'float32'])
def test_bfloat16_products(embeddings):
    """Products of bfloat16 numbers with float32 sums: gradients to about 2^-8, one rounding, values much better."""
    d = data()
    for key in ('rows', 'cols', 'teacher'):
        d[key] = np.asarray(jnp.asarray(d[key], jnp.bfloat16), np.float64)  # rounding the input is not the loss's error
    found = evaluate(on_mesh('data'), embeddings, CASES, d=d, exchange='ring', tile=TILE, dtype='bfloat16')
    wanted = {c: reference(c, d=d, key='rounded') for c in CASES}
    values = {c: error(found[c][0], wanted[c][0]) for c in CASES}
    grads = {c: error(found[c][1], wanted[c][1]) for c in CASES}
    print(values, grads)
    assert max(values.values()) < 1e-4  # float32 sums; the teacher's target is made in bfloat16
    assert max(grads.values()) < 1e-2
    assert found['softmax'][1][0].dtype == jnp.dtype(embeddings)


@pytest.mark.parametrize('mesh,way', [('one', 'ring'), ('fsdp', 'ring'), ('tensor', 'all_gather')])
def test_embeddings_may_be_sent_in_bfloat16(mesh, way):
    """The loss of embeddings rounded to bfloat16, exactly; from that of unrounded ones it differs by about 2^-9."""
    d = data()
    rounded = d | {k: np.asarray(jnp.asarray(d[k], jnp.bfloat16), np.float64) for k in ('rows', 'cols')}
    with jax.enable_x64(True):
        found = evaluate(on_mesh(mesh), jnp.float64, CASES, exchange=way, tile=TILE, wire='bfloat16')
    assert max(error(found[c], reference(c, d=rounded, key='wire')) for c in CASES) < 1e-12
    off = [error(found[c][1][:2], reference(c)[1][:2]) for c in CASES]
    values = [error(found[c][0], reference(c)[0]) for c in CASES]
    print(off, values)
    assert 1e-4 < max(off) < 1e-2 and 1e-6 < max(values) < 2e-3


def test_what_is_sent_in_bfloat16():
    """With wire='bfloat16' embeddings take half the bytes; what comes home around the ring stays float32."""
    array = jax.ShapeDtypeStruct((8 * 32, 16), jnp.float32, sharding=meshes.batch_sharding(on_mesh('data')))

    def sent(way, wire, pattern):
        with jax.set_mesh(on_mesh('data')):
            text = jax.jit(jax.grad(lambda r, c: pairwise.sigmoid(r, c, 10., -10., exchange=way, tile=16, wire=wire)[0], (0, 1))
                           ).lower(array, array).as_text()
        return sorted(re.findall(pattern, text))
    permute, gather = r'collective_permute.*-> tensor<16x16x(\w+)>', r'all_gather.*-> tensor<.*16x16x(\w+)>'
    assert sent('ring', None, permute) == ['f32', 'f32', 'f32'] and sent('ring', 'bfloat16', permute) == ['bf16', 'f32', 'f32']
    assert sent('all_gather', None, gather) == ['f32', 'f32'] and sent('all_gather', 'bfloat16', gather) == ['bf16', 'bf16']


def test_a_ring_may_visit_shards_in_any_order(monkeypatch):
    cases = ('softmax labels', 'sigmoid')
    with jax.enable_x64(True):
        for order in ((0, 3, 1, 2, 7, 5, 6, 4), (7, 6, 5, 4, 3, 2, 1, 0)):
            monkeypatch.setattr(meshes, 'ring_order', lambda axes, order=order: order)
            found = evaluate(on_mesh('fsdp'), jnp.float64, cases, exchange='ring', tile=TILE)
            assert max(error(found[c], reference(c)) for c in cases) < 1e-12


def test_without_a_mesh_and_for_any_tile():
    cases = ('softmax labels', 'sigmoid')
    with jax.enable_x64(True):
        for tile in (1, 16, 1000):
            found = evaluate(None, jnp.float64, cases, tile=tile)
            assert max(error(found[c], reference(c)) for c in cases) < 1e-12, tile


def test_large_scale_stays_finite_and_right():
    """Logits up to ±100: exp of them overflows float32, and the sigmoid of most is 0 or 1 exactly."""
    cases = ('softmax', 'softmax labels', 'sigmoid')
    found = evaluate(on_mesh('data'), jnp.float32, cases, scale=100., bias=-10., exchange='ring', tile=TILE)
    for case in ('softmax', 'softmax labels'):
        assert error(found[case], reference(case, 100., -10.)) < 2e-5
    loss, grads = found['sigmoid']
    assert np.isfinite(loss) and all(np.isfinite(g).all() for g in grads)
    d = data()
    logits = 100. * d['rows'] @ d['cols'].T - 10.
    assert error(loss, np.logaddexp(0., np.where(np.eye(B), -1., 1.) * logits).sum() / B) < 2e-6


def test_gradient_reaches_parameters_of_any_layout():
    """Through a weight stored over fsdp and tensor: counting a replica twice anywhere would show here."""
    d, mesh = data(), on_mesh('tensor')
    weight = np.random.default_rng(1).normal(size=(D + 1, D))  # D + 1 = 8 rows over fsdp x tensor = 4
    padded = np.concatenate([d['rows'], np.ones((B, 1))], 1)

    def dense_loss(w):
        return dense('softmax', dense_targets(d), padded @ w, d['cols'], SCALE, BIAS)

    def loss(w, rows, cols, way):
        return 3. * pairwise.softmax(rows @ w, cols, SCALE, exchange=way, tile=TILE)[0]

    with jax.enable_x64(True):
        wanted = 3. * jax.grad(dense_loss)(weight)
        with jax.set_mesh(mesh):
            w = jax.device_put(weight, NamedSharding(mesh, P(('fsdp', 'tensor'))))
            rows, cols = jax.device_put((padded, d['cols']), meshes.batch_sharding(mesh))
            for way in ('ring', 'all_gather'):
                assert error(jax.jit(jax.grad(loss), static_argnums=3)(w, rows, cols, way), wanted) < 1e-12


def test_value_alone_equals_value_with_gradient():
    d = data()
    for case in ('softmax', 'sigmoid'):
        with jax.set_mesh(on_mesh('data')), jax.enable_x64(True):
            value = jax.jit(lambda *a, c=case: streamed(c, {}, dict(exchange='ring', tile=TILE), *a)[0])
            assert error(value(d['rows'], d['cols'], SCALE, BIAS), reference(case)[0]) < 1e-12


def test_metrics():
    d = data()
    targets = dense_targets(d)
    logits = SCALE * d['rows'] @ d['cols'].T
    positive = targets['labels'] > 0

    def wins(logits, positive):
        return np.mean([row[p].max() > row[~p].max() for row, p in zip(logits, positive)])
    for way in ('ring', 'all_gather'):
        with jax.set_mesh(on_mesh('data')), jax.enable_x64(True):
            @jax.jit
            def metrics(rows, cols, way=way):
                options = dict(exchange=way, tile=TILE)
                return {k: v for c in ('softmax labels', 'sigmoid labels')
                        for k, v in streamed(c, d, options, rows, cols, SCALE, BIAS)[1].items()}
            found = metrics(d['rows'], d['cols'])
        wanted = .5 * (wins(logits, positive) + wins(logits.T, positive.T))
        assert .1 < wanted < .9 and error(found['accuracy'], wanted) < 1e-12
        assert error(found['positive'], logits[positive].mean() + BIAS) < 1e-12
        assert error(found['negative'], logits[~positive].mean() + BIAS) < 1e-12


def dense_per_example(case, targets, d):
    """Each example's part of the loss [B], in NumPy: ½(row + column) of cross-entropies, or a row's sum of softplus."""
    loss_fn, _, _, name, smoothing = CASES[case]
    logits, q = SCALE * d['rows'] @ d['cols'].T, targets[name]
    if loss_fn is pairwise.sigmoid:
        return np.logaddexp(0., np.where(q > 0, -1., 1.) * (logits + BIAS)).sum(1)

    def cross_entropy(logits, q):
        wanted = (1 - smoothing) * q / q.sum(1, keepdims=True) + smoothing / B
        return -(wanted * (logits - np.log(np.exp(logits).sum(1, keepdims=True)))).sum(1)
    return .5 * (cross_entropy(logits, q) + cross_entropy(logits.T, q.T))


@pytest.mark.parametrize('mesh,way', [('one', 'ring'), ('data', 'all_gather'), ('tensor', 'ring')])
def test_losses_per_example(mesh, way):
    """By value, with and without a gradient asked for; their mean is the loss, and they have no gradient."""
    d, on = data(), on_mesh(mesh)
    targets = dense_targets(d)
    with jax.set_mesh(on), jax.enable_x64(True):
        side, inputs = jax.device_put((d, (d['rows'], d['cols'])), meshes.batch_sharding(on))

        def run(case):
            def loss(rows, cols):
                value, metrics = streamed(case, side, dict(exchange=way, tile=TILE), rows, cols, SCALE, BIAS)
                return value + metrics['loss_B'].sum(), (value, metrics['loss_B'])
            return loss

        found = jax.jit(lambda *a: {c: (run(c)(*a)[1], jax.value_and_grad(run(c), (0, 1), has_aux=True)(*a)) for c in CASES})(*inputs)
    for case, ((loss, loss_B), ((_, (_, again_B)), gradients)) in found.items():
        wanted_B = dense_per_example(case, targets, d)
        assert error(loss_B, wanted_B) < 1e-12 and error(again_B, wanted_B) < 1e-12, case
        assert error(np.asarray(loss_B).mean(), loss) < 1e-12
        assert error(gradients, reference(case)[1][:2]) < 1e-12, case


def test_equal_embeddings_are_not_called_right():
    same = jnp.ones((8, 2))
    loss, metrics = pairwise.softmax(same, same, 1.)
    assert metrics['accuracy'] == 0. and abs(float(loss) - math.log(8)) < 1e-6


def sizes_in(hlo: str) -> set[int]:
    """The number of elements of every array in the compiled text."""
    return {math.prod(map(int, dims.split(','))) for dims in re.findall(r'\b[a-z]+[0-9]+\[([0-9,]+)\]', hlo)}


@pytest.mark.parametrize('loss', ['softmax', 'sigmoid'])
def test_no_array_of_all_pairs(loss):
    """Forward and backward, compiled for 8 devices: nothing of B·B, B·b or b·b elements; the dense formula has them."""
    batch, shard, width, tile = 8 * 26, 26, 7, 13
    forbidden = {batch * batch, batch * shard, shard * shard}
    array = jax.ShapeDtypeStruct((batch, width), jnp.float32, sharding=meshes.batch_sharding(on_mesh('data')))

    def compiled(function):
        with jax.set_mesh(on_mesh('data')):
            return jax.jit(jax.value_and_grad(function, (0, 1))).lower(array, array).compile().as_text()

    def whole_matrix(rows, cols):
        return jax.nn.logsumexp(rows @ cols.T, axis=1).mean()

    assert sizes_in(compiled(whole_matrix)) & forbidden
    for way in ('ring', 'all_gather'):
        if loss == 'softmax':
            text = compiled(lambda r, c, way=way: pairwise.softmax(r, c, 10., exchange=way, tile=tile)[0])
        else:
            text = compiled(lambda r, c, way=way: pairwise.sigmoid(r, c, 10., -10., exchange=way, tile=tile)[0])
        assert tile * tile in sizes_in(text) and not sizes_in(text) & forbidden
        assert ('collective-permute' in text) == (way == 'ring')
        assert ('all-gather' in text) == (way == 'all_gather')
        whole = batch * width  # the ring never holds the other devices' columns
        assert (whole in sizes_in(text)) == (way == 'all_gather')


def test_errors_say_what_would_be_valid():
    x = jnp.ones((12, 3))
    with pytest.raises(RecipeError, match="exchange: found 'rong'; valid: auto, ring, all_gather"):
        pairwise.softmax(x, x, 1., exchange='rong')
    with pytest.raises(RecipeError, match="wire: found 'int8'; valid: float32, bfloat16 or None"):
        pairwise.sigmoid(x, x, 1., 0., wire='int8')
    with pytest.raises(RecipeError, match='tile: found 0'):
        pairwise.sigmoid(x, x, 1., 0., tile=0)
    with pytest.raises(RecipeError, match='smoothing: found 1.5'):
        pairwise.softmax(x, x, 1., smoothing=1.5)
    with pytest.raises(ValueError, match=r'found \(12, 3\) and \(4, 3\)'):
        pairwise.softmax(x, x[:4], 1.)
    with jax.set_mesh(on_mesh('data')), pytest.raises(RecipeError, match='12 examples .* 8 shards'):
        pairwise.softmax(x, x, 1.)
