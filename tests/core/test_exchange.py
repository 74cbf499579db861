"""The engine below the losses: what it can reduce, which exchange is chosen, and how a TPU's compiler schedules the ring.

Shapes: B batch, K further keys, T tokens of an example, D width; r, c rows and columns of a tile.
"""

import logging
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging as absl_logging
from jax.sharding import PartitionSpec as P

from bigvlm.core import exchange, mesh as mesh_lib, pairwise
from bigvlm.plan import environment, hlo, topology as topologies

B, K, T, D, TILE = 48, 24, 3, 5, 4
ROUTES = [(mesh, way) for mesh in (dict(data=8), dict(data=2, fsdp=2, tensor=2)) for way in ('ring', 'all_gather')]


def late_interaction(rows_rTD, cols_cTD):
    """Each row's tokens find their best column tokens, and the other way round: two similarities that differ (FILIP)."""
    sim_rctu = jnp.einsum('rtd,cud->rctu', rows_rTD, cols_cTD)
    return sim_rctu.max(3).mean(2), sim_rctu.max(2).mean(2)


def dense(rows, cols, keys):
    """Rows tell their column from the others and from the keys, columns their row from the others; keys have no gradient."""
    to_cols_BB, to_rows_BB = late_interaction(rows, cols)
    to_keys_BK, _ = late_interaction(rows, keys)
    of_rows = jax.nn.log_softmax(jnp.concatenate([to_cols_BB, to_keys_BK], 1), 1)[jnp.arange(B), jnp.arange(B)]
    of_cols = jnp.diagonal(jax.nn.log_softmax(to_rows_BB, 0))
    return -(of_rows + of_cols).sum()


def streamed(rows, cols, keys, row_id, col_id, key_id, way):
    """The same on a shard: the loss, and its gradients to rows and columns."""
    def logits(rows, cols):
        q_rc = (rows[1][:, None] == cols[1][None, :]).astype(rows[0].dtype)
        return *late_interaction(rows[0], cols[0]), q_rc

    def statistics(rows, cols):
        of_rows, of_cols, q_rc = logits(rows, cols)
        return pairwise.tile_stats(of_rows, q_rc, 1), pairwise.tile_stats(of_cols, q_rc, 0)

    def gradients(of_keys, row, col):
        (x, row_id, row_norms), (y, col_id, col_norms) = row, col
        (of_rows, of_cols), back = jax.vjp(late_interaction, x, y)
        q_rc = logits((x, row_id), (y, col_id))[2]
        down = pairwise.logit_gradient(of_cols, q_rc, col_norms, 0, 0., 1)
        return back((pairwise.logit_gradient(of_rows, q_rc, row_norms, 1, 0., 1), jnp.zeros_like(down) if of_keys else down))

    row_stats, col_stats = exchange.reduce_pairs(statistics, (rows, row_id), (cols, col_id), pairwise.STATS, way)
    key_part, key_stats = exchange.reduce_pairs(statistics, (rows, row_id), (keys, key_id), pairwise.STATS, way)
    row_stats = pairwise.STATS.merge(row_stats, key_part)
    row_norms, col_norms, key_norms = map(pairwise.norms_of, (row_stats, col_stats, key_stats))
    loss = sum(exchange.total(norms.log_sum_exp - stats.hit / stats.weight, way.axes)
               for stats, norms in ((row_stats, row_norms), (col_stats, col_norms)))
    row_side = (rows, row_id, row_norms)
    drows, dcols = exchange.reduce_pairs(lambda *a: gradients(False, *a), row_side, (cols, col_id, col_norms), exchange.SUM, way)
    more, _ = exchange.reduce_pairs(lambda *a: gradients(True, *a), row_side, (keys, key_id, key_norms), exchange.SUM, way)
    return (drows + more, dcols), loss


@pytest.mark.parametrize('spec,way', ROUTES)
def test_directions_with_logits_of_their_own_and_further_keys(spec, way):
    rng = np.random.default_rng(0)
    rows, cols, keys = (2. * rng.normal(size=(n, T, D)) for n in (B, B, K))
    with jax.enable_x64(True):
        wanted, gradients = jax.value_and_grad(dense, (0, 1))(rows, cols, keys)
        assert abs(dense(rows, cols, keys) - dense(cols, rows, keys)) > 1e-3, 'the directions differ'
        mesh = mesh_lib.make_mesh(spec)
        with jax.set_mesh(mesh):
            route = exchange.route(B, D, jnp.float64, exchange=way, tile=TILE)
            run = jax.jit(jax.shard_map(lambda *a: streamed(*a, route), in_specs=(P(route.axes),) * 6,
                                        out_specs=((P(route.axes), P(route.axes)), P())))
            found, loss = run(rows, cols, keys, np.arange(B), np.arange(B), np.arange(B, B + K))
    np.testing.assert_allclose(loss, wanted, rtol=1e-12)
    for a, b in zip(found, gradients):
        np.testing.assert_allclose(a, b, atol=1e-12 * np.abs(b).max())


@pytest.mark.parametrize('spec,way', ROUTES)
def test_columns_of_another_number_get_their_results(spec, way):
    """Sums over pairs of 48 rows with 24 columns, tiles of 4 and 3, per row and per column."""
    rows, cols = np.random.default_rng(0).normal(size=(B, D)), np.random.default_rng(1).normal(size=(K, D))
    with jax.enable_x64(True), jax.set_mesh(mesh_lib.make_mesh(spec)):
        route = exchange.route(B, D, jnp.float64, exchange=way, tile=TILE)

        def local(rows, cols):
            def tile(rows_rD, cols_cD):
                sim_rc = jnp.exp(rows_rD @ cols_cD.T)
                return (sim_rc.sum(1), sim_rc @ cols_cD), (sim_rc ** 2).sum(0)
            return exchange.reduce_pairs(tile, rows, cols, exchange.SUM, route)
        run = jax.jit(jax.shard_map(local, in_specs=P(route.axes), out_specs=P(route.axes)))
        (sums_B, mixed_BD), squares_K = run(rows, cols)
    sim_BK = np.exp(rows @ cols.T)
    for found, wanted in ((sums_B, sim_BK.sum(1)), (mixed_BD, sim_BK @ cols), (squares_K, (sim_BK ** 2).sum(0))):
        np.testing.assert_allclose(found, wanted, rtol=1e-12)


def test_arrays_of_one_number_per_item_share_a_permute():
    array = jax.ShapeDtypeStruct((B, D), jnp.float32)
    with jax.set_mesh(mesh_lib.make_mesh(dict(data=8))):
        text = jax.jit(lambda r, c: pairwise.softmax(r, c, 1., exchange='ring')[0]).lower(array, array).as_text()
    permutes = [line.split('->')[-1] for line in text.splitlines() if 'collective_permute' in line]
    assert len(permutes) == 4 and sum('6x6xf32' in p for p in permutes) == 2, permutes  # 6 statistics, and once more at the end


POD = mesh_lib.Wires('TPU v5 lite', 1, 4)


def choices(caplog):
    return [r.getMessage() for r in caplog.records if r.getMessage().startswith('exchange:')]


def test_auto_chooses_by_memory_and_says_why_once(caplog):
    absl_logging.set_verbosity(absl_logging.INFO)
    exchange._choose.cache_clear()
    small = 1024 * 64 * 2 * 4
    with jax.set_mesh(mesh_lib.make_mesh(dict(data=8))), caplog.at_level(logging.INFO):
        assert exchange.route(1024, 64, jnp.float32, gather_budget=small).exchange == 'all_gather'
        for _ in range(2):
            assert exchange.route(1024, 64, jnp.float32, gather_budget=small - 1).exchange == 'ring'
    said = choices(caplog)
    assert len(said) == 2 and 'ring for 1024 x 64' in said[1] and 'exceeds the budget' in said[1] and 'not known' in said[0]


def test_auto_weighs_what_a_ring_can_hide(caplog):
    """On one TPU slice: few examples a chip leave hops nothing to hide behind; many do. Memory comes first."""
    absl_logging.set_verbosity(absl_logging.INFO)
    exchange._choose.cache_clear()
    with caplog.at_level(logging.INFO):
        chosen = [exchange._choose(batch, 768, 256, 2, 2**40, POD) for batch in (32768, 131072, 2**20, 2**21)]
        assert chosen == ['all_gather', 'all_gather', 'ring', 'ring']
        assert exchange._choose(131072, 768, 256, 2, exchange.GATHER_BUDGET, POD) == 'ring'
    assert len(choices(caplog)) == 5 and 'ms' in choices(caplog)[0] and 'budget' in choices(caplog)[-1]


def test_what_the_exchanges_are_predicted_to_add():
    """By hand, for 128 examples of 768 bfloat16 numbers a chip."""
    both, column, product = 128 * 768 * 4, 128 * 768 * 6, 2 * 128 * 128 * 768 / 197e12
    times = exchange.predicted_seconds(32768, 768, 256, 2, POD)
    assert times['all_gather'] == pytest.approx(255 * both / 4.5e10 / 4 + 256 * product)
    assert times['ring'] == pytest.approx(256 * (exchange.HOP_SECONDS + column / 4.5e10 - 3 * product))
    four = exchange.predicted_seconds(32768, 768, 256, 2, mesh_lib.Wires('TPU v5 lite', 4, 3))
    assert four['all_gather'] == pytest.approx(255 * both / 4.5e10 / 3 + 256 * product + 192 * both / 3.125e9 / 64)
    assert four['ring'] == pytest.approx(256 * (exchange.HOP_SECONDS + column / 3.125e9 - 3 * product))
    assert exchange.predicted_seconds(32768, 768, 256, 2, mesh_lib.Wires('TPU v9', 1, 1)) is None


def test_auto_on_a_cpu():
    """Hops cost there, and so do products: few examples are gathered, many take the ring."""
    mesh = mesh_lib.make_mesh(dict(data=8))
    with jax.set_mesh(mesh), mesh_lib.activate(mesh):
        assert [exchange.route(batch, 512, jnp.float32).exchange for batch in (64, 512, 1024, 4096)] == [
            'all_gather', 'all_gather', 'ring', 'ring']


def test_route_axes_tile_and_order():
    with jax.set_mesh(mesh_lib.make_mesh(dict(data=2, fsdp=2, tensor=2))):
        assert exchange.route(48, 8, jnp.float32, tile=5) == (('data', 'fsdp'), 'all_gather', 5, (0, 1, 2, 3))
    with jax.set_mesh(mesh_lib.make_mesh(dict(data=1), jax.devices()[:1])):
        assert exchange.route(48, 8, jnp.float32, tile=64) == ((), 'auto', 64, ())
    assert [exchange._cut(jnp.zeros((48, 2)), t).shape for t in (1, 5, 7, 48, 100)] == [
        (48, 1, 2), (12, 4, 2), (8, 6, 2), (1, 48, 2), (1, 48, 2)]


def compiled_ring(topology, loss, batch, width, tile):
    """Loss and gradients by the ring, compiled ahead of time for a TPU slice; embeddings float32, products bfloat16."""
    os.environ.update({k: v for k, v in environment.variables(os.environ).items() if k != 'XLA_FLAGS'})
    mesh = mesh_lib.make_mesh(dict(data=-1, fsdp=4), topologies.get(topology).devices)
    rows = jax.ShapeDtypeStruct((batch, width), jnp.float32, sharding=mesh_lib.batch_sharding(mesh))
    scalar = jax.ShapeDtypeStruct((), jnp.float32, sharding=mesh_lib.replicated(mesh))

    def value(rows, cols, scale, bias):
        options = dict(exchange='ring', tile=tile, dtype='bfloat16')
        if loss == 'softmax':
            return pairwise.softmax(rows, cols, scale, **options)[0]
        return pairwise.sigmoid(rows, cols, scale, bias, **options)[0]

    with jax.set_mesh(mesh), mesh_lib.activate(mesh):
        layouts = (mesh_lib.replicated(mesh), (mesh_lib.batch_sharding(mesh),) * 2 + (mesh_lib.replicated(mesh),) * 2)
        return jax.jit(jax.value_and_grad(value, (0, 1, 2, 3)), out_shardings=layouts).trace(rows, rows, scalar, scalar).lower(
            lowering_platforms=('tpu',)).compile()


def has_product(program, instruction) -> bool:
    inner = *instruction.called, *re.findall(r'body=%?([\w.-]+)', instruction.rest)
    return instruction.opcode in ('convolution', 'dot') or any(
        has_product(program, i) for name in inner for i in program.computations[name].instructions.values())


@pytest.mark.aot
@pytest.mark.parametrize('topology,loss', [('v5e:4x4', 'softmax'), ('v5e:8x8', 'sigmoid'), ('v5e:8x8', 'softmax')])
def test_permutes_run_beside_the_products_of_their_hop(topology, loss):
    """Started before, done after all of them: in each loop over hops, as the compiler has scheduled it."""
    shards = 16 if topology == 'v5e:4x4' else 64
    text = compiled_ring(topology, loss, shards * 512, 256, 256).as_text()
    kinds = {(c.kind, c.asynchronous) for c in hlo.collectives(text).collectives if c.times > 1}
    assert kinds == {('collective-permute', True)}
    program, loops = hlo.parse(text), 0
    for computation in program.computations.values():
        at = {kind: [i for i, x in enumerate(computation.instructions.values()) if x.opcode == f'collective-permute-{kind}']
              for kind in ('start', 'done')}
        if at['start'] and computation.name != program.entry:
            products = [i for i, x in enumerate(computation.instructions.values()) if has_product(program, x)]
            assert max(at['start']) < min(products) and max(products) < min(at['done']), computation.name
            loops += 1
    assert loops == (2 if loss == 'softmax' else 1)


@pytest.mark.aot
@pytest.mark.parametrize('loss', ['softmax', 'sigmoid'])
def test_what_4096_examples_a_chip_hold(loss):
    """A chip's part of a batch of 1,048,576 on 256 chips, here on 16: float32 embeddings and gradients are 0.047 GiB."""
    memory = compiled_ring('v5e:4x4', loss, 16 * 4096, 768, 1024).memory_analysis()
    assert memory.temp_size_in_bytes <= .02 * 2**30 and memory.peak_memory_in_bytes <= .2 * 2**30
