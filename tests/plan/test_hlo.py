"""What is read from a program's text, against small programs whose traffic is known, and against every way of writing it."""


import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec as P

from bigvlm.core import mesh as mesh_lib
from bigvlm.plan import hlo, topology

BATCH = ('data', 'fsdp')


def local(x):
    """Per shard: a ring of 5 hops (permutes of x), 3 sums over fsdp of x, one gather over data."""
    n = lax.axis_size(BATCH)

    def hop(carry, _):
        x, acc = carry
        return (lax.ppermute(x, BATCH, [(i, (i + 1) % n) for i in range(n)]), acc + jnp.tanh(x @ x.T) @ x), None

    def add(acc, _):
        return jnp.tanh(acc) + lax.psum(jnp.sin(acc), 'fsdp'), None
    (_, acc), _ = lax.scan(hop, (x, jnp.zeros_like(x)), length=5)
    acc, _ = lax.scan(add, acc, length=3)
    return acc + lax.all_gather(jnp.cos(acc), 'data', tiled=True).sum(0)


def compiled(mesh, platform):
    x = jax.ShapeDtypeStruct((64 * mesh.size, 128), jnp.float32, sharding=NamedSharding(mesh, P(BATCH)))
    run = jax.shard_map(local, mesh=mesh, in_specs=P(BATCH), out_specs=P(BATCH), check_vma=False)
    return jax.jit(run).trace(x).lower(lowering_platforms=(platform,)).compile().as_text()


def check_known(traffic, data, fsdp):
    x = 64 * 128 * 4
    assert not traffic.unknown
    found = {(row['kind'], row['axes']): (row['times'], row['bytes'], row['wire'], row['group']) for row in traffic.table()}
    assert found == {
        ('collective-permute', BATCH): (5, 5 * x, 5 * x, 2),
        ('all-reduce', ('fsdp',)): (3, 3 * x, 3 * x * 2 * (fsdp - 1) / fsdp, fsdp),
        ('all-gather', ('data',)): (1, data * x, (data - 1) * x, data)}
    assert traffic.bytes == (5 + 3 + data) * x


def test_a_program_with_known_traffic_on_cpu():
    mesh = mesh_lib.make_mesh(dict(data=2, fsdp=4))
    traffic = hlo.collectives(compiled(mesh, 'cpu'), dict(mesh.shape))
    check_known(traffic, 2, 4)
    assert not any(c.asynchronous for c in traffic.collectives)


@pytest.mark.aot
def test_a_program_with_known_traffic_on_tpu():
    """float32 matrix products take bfloat16 operands there, so what feeds only them may travel as such: half the bytes."""
    mesh = mesh_lib.make_mesh(dict(data=2, fsdp=4), topology.get('v5e:2x4').devices)
    text = compiled(mesh, 'tpu')
    assert 'known_trip_count' not in text, 'trip counts are read from the loops themselves'
    traffic = hlo.collectives(text, dict(mesh.shape))
    assert not traffic.unknown
    times = {(row['kind'], row['axes']): (row['times'], row['bytes'] / (64 * 128 * 4)) for row in traffic.table()}
    assert times.pop(('collective-permute', BATCH)) in ((5, 5.), (5, 2.5))
    assert times == {('all-reduce', ('fsdp',)): (3, 3.), ('all-gather', ('data',)): (1, 2.)}


def test_without_a_mesh_axes_are_not_named():
    mesh = mesh_lib.make_mesh(dict(data=2, fsdp=4))
    assert {c.axes for c in hlo.collectives(compiled(mesh, 'cpu')).collectives} == {()}
    with pytest.raises(hlo.Unreadable, match='program of 8 devices'):
        hlo.collectives(compiled(mesh, 'cpu'), dict(data=4))


# Texts as compilers write them, cut down to what matters.

HEAD = 'HloModule jit_f, is_scheduled=true, num_partitions=8\n'
ADD = '''
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}
'''


def read(text, mesh=None):
    return hlo.collectives(HEAD + ADD + text, mesh or dict(data=2, fsdp=4))


LOOP = '''
%body (state: (s32[], f32[16])) -> (s32[], f32[16]) {{
  %state = (s32[], f32[16]) parameter(0)
  %i = s32[]{{:T(128)}} get-tuple-element(%state), index=0
  %x = f32[16] get-tuple-element(%state), index=1
  %copy.1 = s32[] copy(%i)
  %step = s32[] constant({step})
  %next = s32[] add(%copy.1, %step)
  %r = f32[16] all-reduce(%x), replica_groups={{{{0,1,2,3}},{{4,5,6,7}}}}, to_apply=%add
  ROOT %out = (s32[], f32[16]) tuple(%next, %r)
}}
%condition (state.1: (s32[], f32[16])) -> pred[] {{
  %state.1 = (s32[], f32[16]) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %end = s32[] {end}
  ROOT %lt = pred[] compare(%i.1, %end), direction={direction}
}}
ENTRY %main (x.1: f32[16], n: s32[]) -> f32[16] {{
  %x.1 = f32[16] parameter(0)
  %n = s32[] parameter(1)
  %begin = s32[] constant({begin})
  %copy = s32[] copy(%begin)
  %init = (s32[], f32[16]) tuple(%copy, %x.1)
  %loop = (s32[], f32[16]) while(%init), condition=%condition, body=%body
  ROOT %result = f32[16] get-tuple-element(%loop), index=1
}}
'''


@pytest.mark.parametrize('begin, end, step, trips', [(0, 12, 1, 12), (1, 12, 1, 11), (0, 12, 5, 3), (4, 4, 1, 0)])
def test_a_loops_length_is_read_from_its_counter(begin, end, step, trips):
    traffic = read(LOOP.format(begin=begin, end=f'constant({end})', step=step, direction='LT'))
    assert not traffic.unknown
    assert [(c.times, c.bytes, c.axes) for c in traffic.collectives] == [(trips, 64., ('fsdp',))]


@pytest.mark.parametrize('change', [dict(direction='NE'), dict(end='rng()'), dict(step=0)])
def test_a_loop_of_unknown_length_is_said_to_be(change):
    traffic = read(LOOP.format(**dict(begin=0, end='constant(12)', step=1, direction='LT') | change))
    assert traffic.unknown == ('loop in main',)
    assert traffic.bytes == 64., 'counted once, and marked'


def test_a_loop_of_unknown_length_without_collectives_does_not_matter():
    text = LOOP.format(begin=0, end='rng()', step=1, direction='LT')
    assert not read(text.replace('all-reduce(%x), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add', 'sine(%x)')).unknown


def test_metadata_of_a_kernel_that_runs_over_lines_ends_no_computation():
    text = """HloModule m, num_partitions=4

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %kernel = f32[8]{0} custom-call(%x), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"block": "8"
}}, metadata={op_name="attention"}
  ROOT %sum = f32[8]{0} all-reduce(%kernel), replica_groups={{0,1,2,3}}, to_apply=%add
}
"""
    (found,) = hlo.collectives(text, {'data': 4}).collectives
    assert (found.kind, found.bytes, found.axes) == ('all-reduce', 32, ('data',))


def test_one_asynchronous_fusion_is_one_collective():
    gather = ('all-gather(%p{0}), channel_id=8, replica_groups={{{{0,1,2,3}},{{4,5,6,7}}}}, dimensions={{0}}, '
              'frontend_attributes={{chain_id="6"}}')
    fused = ''.join(f'''
%{name} (p{i}: bf16[4]) -> bf16[16] {{
  %p{i} = bf16[4] parameter(0)
  ROOT %g{i} = bf16[16]{{0:T(8,128)(2,1)S(1)}} {gather.format(i)}
}}''' for i, name in enumerate(('fused_computation.1', 'async_collective_fusion.2', 'fused_computation.3')))
    traffic = read(fused + '''
ENTRY %main (x: bf16[4]) -> bf16[16] {
  %x = bf16[4] parameter(0)
  %async-collective-start.5 = (bf16[4], bf16[16], u32[]) fusion(%x), kind=kCustom, calls=%fused_computation.1
  %e = bf16[4] get-tuple-element(%async-collective-start.5), index=0
  %fusion.7 = bf16[16] fusion(%e), kind=kOutput, calls=%async_collective_fusion.2
  ROOT %async-collective-done.5 = bf16[16] fusion(%e), kind=kCustom, calls=%fused_computation.3
}''')
    assert [(c.kind, c.bytes, c.wire, c.asynchronous) for c in traffic.collectives] == [('all-gather', 32., 24., True)]


def test_an_asynchronous_fusion_without_its_start_is_an_error():
    with pytest.raises(hlo.Unreadable, match='without a start, of the chains 6'):
        read('''
%fused_computation.3 (p: bf16[4]) -> bf16[16] {
  %p = bf16[4] parameter(0)
  ROOT %g = bf16[16] all-gather(%p), replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}, frontend_attributes={chain_id="6"}
}
ENTRY %main (x: bf16[4]) -> bf16[16] {
  %x = bf16[4] parameter(0)
  ROOT %another = bf16[16] fusion(%x), kind=kCustom, calls=%fused_computation.3
}''')


def test_a_fusion_of_all_reduce_and_slice_is_a_reduce_scatter():
    traffic = read('''
%all-reduce-scatter.6 (input: bf16[16,8]) -> bf16[4,8] {
  %input = bf16[16,8]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-reduce.143 = bf16[16,8] all-reduce(%input), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %zero = u32[] constant(0)
  ROOT %slice = bf16[4,8] dynamic-slice(%all-reduce.143, %zero, %zero), dynamic_slice_sizes={4,8}
}
ENTRY %main (x: bf16[16,8]) -> bf16[4,8] {
  %x = bf16[16,8] parameter(0)
  ROOT %fusion.1 = bf16[4,8] fusion(%x), kind=kCustom, calls=%all-reduce-scatter.6
}''')
    assert [(c.kind, c.bytes, c.wire) for c in traffic.collectives] == [('reduce-scatter', 256., 192.)]


@pytest.mark.parametrize('between, sync, hidden', [
    ('  %work = f32[16] fusion(%x), kind=kLoop, calls=%empty\n', '', True), ('', '', False),
    ('  %work = f32[16] fusion(%x), kind=kLoop, calls=%empty\n', ', backend_config={"collective_backend_config":{"is_sync":true}}', False)])
def test_a_start_with_nothing_before_its_done_is_not_overlapped(between, sync, hidden):
    traffic = read(f'''
%empty (p: f32[16]) -> f32[16] {{
  ROOT %p = f32[16] parameter(0)
}}
ENTRY %main (x: f32[16]) -> f32[64] {{
  %x = f32[16] parameter(0)
  %s = (f32[16], f32[64]) all-gather-start(%x), replica_groups=[2,4]<=[8], dimensions={{0}}{sync}
{between}  ROOT %d = f32[64] all-gather-done(%s)
}}''')
    assert [(c.kind, c.bytes, c.asynchronous) for c in traffic.collectives] == [('all-gather', 256., hidden)]


@pytest.mark.parametrize('groups, axes, size', [
    ('{}', ('data', 'fsdp'), 8), ('{{0,1,2,3},{4,5,6,7}}', ('fsdp',), 4), ('{{0,4},{1,5},{2,6},{3,7}}', ('data',), 2),
    ('[2,4]<=[8]', ('fsdp',), 4), ('[4,2]<=[2,4]T(1,0)', ('data',), 2), ('[1,8]<=[8]', ('data', 'fsdp'), 8),
    ("mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", ('fsdp',), 4), ("mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1'}", ('data', 'fsdp'), 8),
    ("mesh['a'=8] {'a'}", ('data', 'fsdp'), 8), ("mesh['a'=8] {'a':(1)2}", ('data',), 2), ("mesh['a'=8] {'a':(2)4}", ('fsdp',), 4),
    ("mesh['axis_0'=1,'axis_1'=4,'axis_2'=1,'axis_3'=2], device_ids=([2,4]T(1,0)) {'axis_1'}", ('fsdp',), 4)])
def test_every_way_to_name_groups(groups, axes, size):
    traffic = read(f'''
ENTRY %main (x: f32[16]) -> f32[16] {{
  %x = f32[16] parameter(0)
  ROOT %r = f32[16] all-reduce(%x), channel_id=1, replica_groups={groups}, use_global_device_ids=true, to_apply=%add
}}''')
    assert [(c.axes, c.group, c.bytes) for c in traffic.collectives] == [(axes, size, 64.)]


def test_groups_that_are_not_understood_are_an_error():
    with pytest.raises(hlo.Unreadable, match='the groups of r: something_new'):
        read('''
ENTRY %main (x: f32[16]) -> f32[16] {
  %x = f32[16] parameter(0)
  ROOT %r = f32[16] all-reduce(%x), replica_groups=something_new[2], to_apply=%add
}''')


ON_ANOTHER_CORE = '''
%called (p: f32[16]) -> f32[64] {{
  %p = f32[16] parameter(0)
  ROOT %g = f32[64] all-gather(%p), replica_groups={{{{0,1,2,3}},{{4,5,6,7}}}}, dimensions={{0}}
}}
%empty (q: f32[16]) -> f32[16] {{
  ROOT %q = f32[16] parameter(0)
}}
ENTRY %main (x: f32[16]) -> f32[64] {{
  %x = f32[16] parameter(0)
  %s = ((f32[16]), f32[64]) {start}(%x), async_execution_thread="sparsecore", {called}=%called
{between}  ROOT %d = f32[64] {done}(%s)
}}'''


@pytest.mark.parametrize('start, called, done', [('call-start', 'to_apply', 'call-done'), ('async-start', 'calls', 'async-done')])
def test_a_collective_that_another_core_runs(start, called, done):
    for between, hidden in (('', False), ('  %work = f32[16] fusion(%x), kind=kLoop, calls=%empty\n', True)):
        traffic = read(ON_ANOTHER_CORE.format(start=start, called=called, done=done, between=between))
        assert [(c.kind, c.bytes, c.asynchronous) for c in traffic.collectives] == [('all-gather', 256., hidden)]


def test_a_collective_that_nothing_known_runs_is_an_error():
    with pytest.raises(hlo.Unreadable, match='g in called: nothing that this reader knows runs it'):
        read(ON_ANOTHER_CORE.format(start='new-start', called='program', done='new-done', between=''))


def test_between_slices():
    attributes = ('channel_id=1, is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="r_0",'
                  '_xla_megascale_target="{1,2}x{0:7}",_xla_megascale_transfer_type="%s"}')
    for what, kind, size in (('ALL_REDUCE', 'all-reduce', 64.), ('ALL_GATHER', 'all-gather', 128.)):
        given = attributes % what
        traffic = read(f'''
ENTRY %main (x: f32[16]) -> f32[16] {{
  %x = f32[16] parameter(0)
  %t = token[] after-all()
  %send.1 = (f32[16], u32[], token[]) send(%x, %t), {given}
  %recv.1 = (f32[16], u32[], token[]) recv(%t), {given}
  %sd = token[] send-done(%send.1), channel_id=1
  %rd = (f32[16], token[]) recv-done(%recv.1), channel_id=1
  ROOT %y = f32[16] get-tuple-element(%rd), index=0
}}''')
        assert [(c.kind, c.bytes, c.axes, c.group) for c in traffic.collectives] == [(kind, size, (hlo.NETWORK,), 2)]


def test_of_branches_the_largest_counts():
    branch = '''
%b{i} (p{i}: f32[{n}]) -> f32[{n}] {{
  %p{i} = f32[{n}] parameter(0)
  ROOT %r{i} = f32[{n}] all-reduce(%p{i}), replica_groups={{}}, to_apply=%add
}}'''
    traffic = read(branch.format(i=0, n=16) + branch.format(i=1, n=32) + '''
ENTRY %main (s: s32[], x: f32[16], y: f32[32]) -> f32[16] {
  %s = s32[] parameter(0)
  %x = f32[16] parameter(1)
  %y = f32[32] parameter(2)
  ROOT %c = f32[16] conditional(%s, %x, %y), branch_computations={%b0, %b1}
}''')
    assert traffic.bytes == 128.
