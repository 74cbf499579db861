"""Softmax beyond the diagonal of one batch, against a dense formula: further keys, one direction, pairs that do not count,
smoothing per example, mixtures. Values and gradients, on several meshes, by both exchanges.

Shapes: B batch, D width, Q slots of a queue, K further keys; n shards of b = B/n.
"""

import functools
import math
import re

import fast
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigvlm.core import mesh as meshes, pairwise
from bigvlm.core.parts import RecipeError
from bigvlm.core.pairwise import Keys, Mixed

B, D, Q, K, TILE = 48, 7, 3, 16, 5
SCALE = 6.
MESHES = {'data': dict(data=8), 'tensor': dict(data=2, fsdp=2, tensor=2)}

def on_mesh(name):
    spec = MESHES[name]
    return meshes.make_mesh(spec, jax.devices()[:math.prod(spec.values())])


def data():
    """All arrays of all cases; rows, cols and keys are not of unit length, so that no logit is like another."""
    rng = np.random.default_rng(0)
    rows = .5 * rng.normal(size=(B, D))
    return dict(
        rows=rows, cols=rows + .4 * rng.normal(size=(B, D)), queue=.5 * rng.normal(size=(Q, B, D)), keys=.5 * rng.normal(size=(K, D)),
        filled=np.repeat([[True], [False], [True]], B, 1), known=np.arange(K) % 3 > 0,
        label=rng.integers(-1, 6, B).astype(np.int32), queue_label=rng.integers(-1, 6, (Q, B)).astype(np.int32),
        epsilon=rng.uniform(0., .5, B), share=rng.uniform(0., 1., B))


def partner(row_side, col_side, row_id, col_id):
    """Two views of an example, one after the other."""
    return (row_id ^ 1)[:, None] == col_id[None, :]


def same_label(row_side, col_side, row_id, col_id):
    """Other examples of the same label."""
    same = (row_side[:, None] == col_side[None, :]) & (row_side[:, None] >= 0)
    return same & (row_id[:, None] != col_id[None, :])


# name: of the data, the arguments of ``pairwise.softmax``.
CASES = {
    'queue with labels, keys, smoothing per example': lambda d: dict(
        target=pairwise.equal_labels, rows_side=d['label'], cols_side=d['label'], smoothing=d['epsilon'],
        more_cols=Keys(d['queue'], d['queue_label'], d['filled']), more_rows=Keys(d['keys'], jnp.full(K, -1))),
    'rows only, with a queue, smoothed': lambda d: dict(directions='rows', more_cols=Keys(d['queue'], counts=d['filled']), smoothing=.1),
    'columns only, with keys': lambda d: dict(directions='cols', more_rows=Keys(d['keys'], counts=d['known']), smoothing=d['epsilon']),
    'two views': lambda d: dict(directions='rows', target=partner, exclude=pairwise.identity),
    'pairs that do not count': lambda d: dict(exclude=same_label, rows_side=d['label'], cols_side=d['label'], smoothing=.1),
    'mixed': lambda d: dict(target=pairwise.mixed, rows_side=Mixed(jnp.arange(B)[::-1], d['share'])),
}


def dense_masks(name, d):
    """(targets [B, B + columns], [B + rows, B], which pairs count, likewise) by the definitions, further columns and rows last."""
    eye, label = np.eye(B), d['label']
    equal = (label[:, None] == label[None]) & (label[:, None] >= 0)
    none, everything = np.zeros((B, 0)), np.ones((B, 0), bool)
    q, count, right, below, right_count, below_count = eye, np.ones((B, B), bool), none, none.T, everything, everything.T
    if name.startswith('queue with labels'):
        flat = d['queue_label'].reshape(1, -1)
        q, right = np.maximum(eye, equal), ((label[:, None] == flat) & (flat >= 0)).astype(float)
        right_count = np.repeat(d['filled'].reshape(1, -1), B, 0)
        below, below_count = np.zeros((K, B)), np.ones((K, B), bool)
    if name.startswith('rows only'):
        right, right_count = np.zeros((B, Q * B)), np.repeat(d['filled'].reshape(1, -1), B, 0)
    if name.startswith('columns only'):
        below, below_count = np.zeros((K, B)), np.repeat(d['known'][:, None], B, 1)
    if name == 'two views':
        q, count = eye[np.arange(B) ^ 1], ~np.eye(B, dtype=bool)
    if name.startswith('pairs that'):
        count = ~(equal & ~np.eye(B, dtype=bool))
    if name == 'mixed':
        q = d['share'][:, None] * eye + (1 - d['share'])[:, None] * eye[::-1]
    return np.hstack([q, right]), np.vstack([q, below]), np.hstack([count, right_count]), np.vstack([count, below_count])


def dense(name, d, rows, cols, scale):
    """(loss, each example's part) over whole matrices of logits."""
    given = CASES[name](d)
    q_rows, q_cols, count_rows, count_cols = dense_masks(name, d)
    epsilon = jnp.broadcast_to(given.get('smoothing', 0.), B)
    further = {field: given[field].x.reshape(-1, D) if field in given else jnp.zeros((0, D)) for field in ('more_cols', 'more_rows')}

    def cross_entropy(logits, q, count):
        q = q * count
        wanted = (1 - epsilon)[:, None] * q / q.sum(1, keepdims=True) + epsilon[:, None] * count / count.sum(1, keepdims=True)
        log_p = jax.nn.log_softmax(jnp.where(count, logits, -jnp.inf), 1)
        return -(wanted * jnp.where(count, log_p, 0.)).sum(1)
    of_rows = cross_entropy(scale * rows @ jnp.concatenate([cols, further['more_cols']]).T, q_rows, count_rows)
    of_cols = cross_entropy(scale * cols @ jnp.concatenate([rows, further['more_rows']]).T, q_cols.T, count_cols.T)
    per_example = {'rows': of_rows, 'cols': of_cols, 'both': (of_rows + of_cols) / 2}[given.get('directions', 'both')]
    return per_example.mean(), per_example


@functools.cache
def references():
    """{case: (loss, each example's part, gradients of rows, columns and scale)} in float64."""
    d = data()
    with jax.enable_x64(True):
        grads = {name: jax.value_and_grad(lambda *a, name=name: dense(name, d, *a), (0, 1, 2), has_aux=True) for name in CASES}
        found = fast.jit(lambda *a: {name: grad(*a) for name, grad in grads.items()})(d['rows'], d['cols'], SCALE)
        return {name: jax.tree.map(np.asarray, (*values, gradients)) for name, (values, gradients) in found.items()}


def error(found, wanted) -> float:
    """The largest of max|difference| / max|wanted| over all arrays."""
    def one(a, b):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape and np.isfinite(a).all()
        return np.abs(a - b).max() / (np.abs(b).max() or 1.)
    return max(jax.tree.leaves(jax.tree.map(one, found, wanted)))


def evaluate(mesh, dtype, cases, **options):
    """{case: (loss, each example's part, gradients)}, and the gradients of keys, all in one compiled function."""
    d = {k: v.astype(dtype) if v.dtype == np.float64 else v for k, v in data().items()}
    with jax.set_mesh(mesh):
        def streamed(name, rows, cols, scale, queue):
            loss, metrics = pairwise.softmax(rows, cols, scale, **CASES[name](d | dict(queue=queue)), **options)
            return 4. * loss, metrics['loss_B']
        grad = {name: jax.value_and_grad(lambda *a, name=name: streamed(name, *a), (0, 1, 2, 3), has_aux=True) for name in cases}
        rows, cols = jax.device_put((d['rows'], d['cols']), meshes.batch_sharding(mesh))
        queue = jax.device_put(d['queue'], jax.NamedSharding(mesh, jax.P(None, meshes.batch_axes(mesh))))
        found = fast.jit(lambda *a: {name: grad[name](*a) for name in cases})(rows, cols, np.asarray(SCALE, dtype), queue)
    found = {name: (loss / 4, loss_B, jax.tree.map(lambda x: x / 4, gradients)) for name, ((loss, loss_B), gradients) in found.items()}
    assert all(not np.asarray(gradients[3]).any() for _, _, gradients in found.values()), 'keys have no gradient'
    return {name: (loss, loss_B, gradients[:3]) for name, (loss, loss_B, gradients) in found.items()}


@pytest.mark.parametrize('mesh,way', [('data', 'ring'), ('tensor', 'all_gather')])
def test_equals_the_dense_formula(mesh, way):
    cases = list(CASES)[::1 if way == 'ring' else 2]  # compiling is what takes time
    found = evaluate(on_mesh(mesh), np.float32, cases, exchange=way, tile=TILE)
    errors = {name: error(found[name], references()[name]) for name in cases}
    assert max(errors.values()) < 3e-6, errors


def test_the_cases_differ_from_the_plain_loss():
    """So that what a case adds cannot be left out unseen."""
    d = data()
    plain = float(fast.jit(pairwise.softmax)(d['rows'], d['cols'], SCALE)[0])
    losses = [plain] + [float(references()[name][0]) for name in CASES]
    assert min(abs(a - b) for i, a in enumerate(losses) for b in losses[:i]) > 1e-3, losses


def test_accuracy_counts_further_keys_and_leaves_out_pairs():
    x, = np.random.default_rng(0).normal(size=(1, 8, 4)).astype(np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    cases = (dict(), 1.), (dict(more_cols=Keys(2. * x)), .5), (dict(directions='rows', more_cols=Keys(2. * x)), 0.), \
        (dict(more_cols=Keys(2. * x, counts=np.zeros(8, bool))), 1.)  # rows always lose to a longer self, columns still win
    found = fast.jit(lambda: [pairwise.softmax(x, x, 1., **options)[1]['accuracy'] for options, _ in cases])()
    assert [float(accuracy) for accuracy in found] == [wanted for _, wanted in cases]


def test_tiles_of_very_negative_logits_do_not_overflow():
    """A tile's shift of -200 must not meet the empty statistics' shift of 0 in an exponential."""
    x = np.eye(4, dtype=np.float32) + 1.
    loss, metrics = fast.jit(lambda: pairwise.softmax(x, -x, 100., tile=1))()
    logits = -100. * (x @ x.T)
    assert logits.max() < -300 and abs(loss - (np.diag(-logits) + jax.nn.logsumexp(logits, 1)).mean()) < 1e-2
    assert np.isfinite(metrics['loss_B']).all()


def sizes_in(hlo: str) -> set[int]:
    """The number of elements of every array in the compiled text."""
    return {math.prod(map(int, dims.split(','))) for dims in re.findall(r'\b[a-z]+[0-9]+\[([0-9,]+)\]', hlo)}


@pytest.mark.parametrize('way', ['ring', 'all_gather'])
def test_no_array_of_all_pairs(way):
    """Forward and backward, compiled for 8 devices: no B·B, b·b, B·K, b·K or b·K/n elements, and what moves is the batch."""
    shard, width, tile, slots = 26, 7, 13, 5
    batch, own = 8 * shard, slots * shard
    forbidden = {batch * batch, batch * shard, shard * shard, batch * batch * slots, batch * own, shard * own}
    mesh = on_mesh('data')
    array = jax.ShapeDtypeStruct((batch, width), jnp.float32, sharding=meshes.batch_sharding(mesh))
    queue = jax.ShapeDtypeStruct((slots, batch, width), jnp.float32, sharding=jax.NamedSharding(mesh, jax.P(None, meshes.batch_axes(mesh))))

    def loss(rows, cols, queue):
        return pairwise.softmax(rows, cols, 10., more_cols=Keys(queue), more_rows=Keys(queue), exclude=partner, exchange=way, tile=tile)[0]

    def whole_matrix(rows, cols, queue):
        keys = jnp.concatenate([cols, queue.reshape(-1, width)])
        return jax.nn.logsumexp(rows @ keys.T, axis=1).mean()
    with jax.set_mesh(mesh):
        dense_text, text = (fast.jit(jax.value_and_grad(f, (0, 1))).lower(array, array, queue).compile().as_text()
                            for f in (whole_matrix, loss))
    assert sizes_in(dense_text) & {shard * (slots + 1) * batch}
    assert tile * tile in sizes_in(text) and not sizes_in(text) & forbidden
    assert ('collective-permute' in text) == (way == 'ring') and ('all-gather' in text) == (way == 'all_gather')
    if way == 'ring':  # keys stay where they are
        moved = re.findall(r'= (?:\()?f32\[([0-9,]+)\][^=]*collective-permute', text)
        assert moved and all(math.prod(map(int, m.split(','))) <= tile * max(width, 7) for m in moved), moved


def test_errors_say_what_would_be_valid():
    x = jnp.ones((12, 3))
    with pytest.raises(RecipeError, match="directions: found 'left'; valid: both, rows, cols"):
        pairwise.softmax(x, x, 1., directions='left')
    with pytest.raises(ValueError, match='more_cols: nothing looks at them'):
        pairwise.softmax(x, x, 1., directions='cols', more_cols=Keys(x))
    with pytest.raises(ValueError, match=r'more_rows: keys must be \[K, D\] or \[Q, B, D\]; found \(12, 4\)'):
        pairwise.softmax(x, x, 1., more_rows=Keys(jnp.ones((12, 4))))
    with pytest.raises(ValueError, match=r'smoothing must be a number or \[B\]; found \(3,\) for 12 examples'):
        pairwise.softmax(x, x, 1., smoothing=jnp.zeros(3))
