"""Layouts: what rules give each parameter; what the compiler makes of the change from stored to used.

Mesh (4 data, 2 fsdp) of the eight virtual devices.
"""

import re

import fast
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.sharding import NamedSharding, PartitionSpec as P

from bigvlm.core import layout as layout_lib, mesh as mesh_lib, paths
from bigvlm.core.parts import RecipeError
from bigvlm.nn.transformer import Transformer

MESH = mesh_lib.make_mesh(dict(data=4, fsdp=2))
SHAPES = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in {
    'image/encoder/blocks/mlp/fc1/kernel': (4, 8, 32), 'image/encoder/blocks/mlp/fc1/bias': (4, 32),
    'image/encoder/blocks/odd/kernel': (4, 3, 5), 'image/out/kernel': (8, 6), 'image/out/bias': (6,),
    'image/odd/kernel': (3, 5), 't': ()}.items()}


def specs(*rules, mesh=MESH):
    made = layout_lib.make(rules, SHAPES, mesh)
    return made.specs, made.notes


def test_fsdp_splits_the_largest_dimension_that_fits_but_never_layers_or_vectors():
    found, notes = specs(('.*', 'fsdp'))
    assert found == {
        'image/encoder/blocks/mlp/fc1/kernel': P(None, None, 'fsdp'), 'image/encoder/blocks/mlp/fc1/bias': P(),
        'image/encoder/blocks/odd/kernel': P(), 'image/out/kernel': P('fsdp', None), 'image/out/bias': P(),
        'image/odd/kernel': P(), 't': P()}
    assert len(notes) == 2 and all('no dimension divides by fsdp=2; replicated' in note for note in notes)
    assert {note.split()[0] for note in notes} == {'image/encoder/blocks/odd/kernel', 'image/odd/kernel'}
    # Even where the number of layers is the only or the largest dimension that fits.
    only = {'blocks/x/kernel': jax.ShapeDtypeStruct((64, 3, 4), jnp.float32)}
    assert layout_lib.make((('.*', 'fsdp'),), only, MESH).specs['blocks/x/kernel'] == P(None, None, 'fsdp')
    one = mesh_lib.make_mesh(dict(data=8))
    assert set(specs(('.*', 'fsdp'), mesh=one)[0].values()) == {P()} and specs(('.*', 'fsdp'), mesh=one)[1] == ()


def test_rules_by_axis_and_their_notes():
    mesh = mesh_lib.abstract_mesh(dict(data=-1, fsdp=4, tensor=2), 16)
    rest = ('.*', 'replicate')
    found, notes = specs(('.*/blocks/.*/fc1/kernel', (None, 'fsdp', 'tensor')),
                         ('image/out/kernel', (('fsdp', 'tensor'), None)), rest, mesh=mesh)
    assert found['image/encoder/blocks/mlp/fc1/kernel'] == P(None, 'fsdp', 'tensor')
    assert found['image/out/kernel'] == P(('fsdp', 'tensor'), None) and found['t'] == P() and notes == ()
    found, notes = specs(('image/out/kernel', ('tensor', 'fsdp')), rest, mesh=mesh)
    assert found['image/out/kernel'] == P('tensor', None)
    assert notes == ('image/out/kernel (8, 6): dimension 1 does not divide by fsdp=4; replicated there',)


def test_tensor_parallelism_by_column_and_row():
    """Columns: the last dimension, and the bias with it; rows: the first own one; fsdp takes what is left and fits."""
    mesh = mesh_lib.abstract_mesh(dict(data=-1, fsdp=2, tensor=4), 16)
    found, notes = specs(('.*/fc1/.*', 'column'), ('image/out/.*', 'row'), ('image/odd/kernel', 'column'), ('.*', 'replicate'), mesh=mesh)
    assert found == {
        'image/encoder/blocks/mlp/fc1/kernel': P(None, 'fsdp', 'tensor'), 'image/encoder/blocks/mlp/fc1/bias': P(None, 'tensor'),
        'image/encoder/blocks/odd/kernel': P(), 'image/out/kernel': P('tensor', 'fsdp'), 'image/out/bias': P(),
        'image/odd/kernel': P(), 't': P()}
    assert notes == ('image/odd/kernel (3, 5): dimension 1 does not divide by tensor=4; replicated there',
                     'image/odd/kernel (3, 5): no dimension divides by fsdp=2; replicated')
    one = mesh_lib.abstract_mesh(dict(data=-1, fsdp=2), 16)
    found, _ = specs(('.*/fc1/.*', 'column'), ('.*', 'row'), mesh=one)
    assert found['image/encoder/blocks/mlp/fc1/kernel'] == P(None, None, 'fsdp') and found['t'] == P()


def test_zero1_splits_moments_and_averages_only():
    mesh = mesh_lib.abstract_mesh(dict(replica=2, data=2, fsdp=2), 8)
    made = layout_lib.make((('.*', 'zero1'),), SHAPES, mesh)
    assert set(made.specs.values()) == {P()}
    assert made.moment('image/encoder/blocks/mlp/fc1/kernel') == P(None, None, ('data', 'fsdp'))
    assert made.moment('image/out/kernel') == P(('data', 'fsdp'), None) and made.moment('image/out/bias') == P()
    assert made.notes[0].endswith('no dimension divides by data×fsdp=4; replicated')


@pytest.mark.parametrize('rules, message', [
    ((('.*/kernel', (None, 'model', None)), ('.*', 'fsdp')),
     "layout: image.*: unknown mesh axis 'model' .valid: replica, data, fsdp, tensor"),
    ((('image/out/kernel', ('fsdp',)), ('.*', 'fsdp')),
     r'layout: image/out/kernel has shape \(8, 6\); .*one axis per dimension'),
    ((('image/out/kernel', ('fsdp', 'fsdp')), ('.*', 'fsdp')), "layout: image/out/kernel: .*'fsdp' twice"),
    ((('.*/blocks/mlp/fc1/kernel', ('fsdp', None, None)), ('.*', 'fsdp')),
     'layout: image/.*/fc1/kernel: .*layers.*not split'),
    ((('.*', 'fdsp'),), '"replicate", "fsdp", "zero1", "column", "row" or one axis per dimension'),
    ((('.*', ('fsdp', None)),), 'one axis per dimension'),
    ((('text/.*', 'fsdp'), ('.*', 'fsdp')), "layout: the rule 'text/.*' matches no parameter"),
    ((('image/.*', 'fsdp'),), "layout: no rule covers the parameter 't'")])
def test_impossible_rules(rules, message):
    with pytest.raises(RecipeError, match=message) as error:
        specs(*rules)
    assert '\n' not in str(error.value)


def test_used_values_are_the_cast_parameters_and_gradients_come_back_stored():
    """As one module's variables, matrices cast and gathered, vectors as they are; without a layout only the cast."""
    flat = {path: np.random.default_rng(0).normal(size=leaf.shape).astype(np.float32) for path, leaf in SHAPES.items()
            if path.startswith('image/out')}
    made = layout_lib.make((('.*', 'fsdp'),), SHAPES, MESH)
    stored = {path: jax.device_put(x, NamedSharding(MESH, made.specs[path])) for path, x in flat.items()}
    params = {'kernel': stored['image/out/kernel'], 'bias': stored['image/out/bias']}

    def loss(params):
        used = layout_lib.to_used('image/out', jnp.bfloat16)({'params': params})['params']
        return sum((x.astype(jnp.float32) ** 3).sum() for x in used.values()), used
    with jax.set_mesh(MESH), layout_lib.activate(made):
        (_, used), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert used['kernel'].dtype == jnp.bfloat16 and used['bias'].dtype == jnp.float32
    rounded = flat['image/out/kernel'].astype(jnp.bfloat16)
    np.testing.assert_array_equal(used['kernel'], rounded)
    np.testing.assert_array_equal(used['bias'], flat['image/out/bias'])
    assert used['kernel'].sharding.is_fully_replicated and not params['kernel'].sharding.is_fully_replicated
    assert gradient['kernel'].dtype == jnp.float32
    assert gradient['kernel'].sharding.is_equivalent_to(NamedSharding(MESH, P('fsdp', None)), 2)
    slope = (3 * rounded.astype(np.float32) ** 2).astype(jnp.bfloat16).astype(np.float32)
    np.testing.assert_allclose(gradient['kernel'], slope, rtol=1e-6)
    alone = layout_lib.to_used('image/out', jnp.bfloat16)({'params': params})['params']
    assert alone['kernel'].dtype == jnp.bfloat16
    assert alone['kernel'].sharding.is_equivalent_to(params['kernel'].sharding, 2)


def test_tensor_stays_split_when_used():
    mesh = mesh_lib.make_mesh(dict(data=2, fsdp=2, tensor=2))
    made = layout_lib.make((('.*', ('fsdp', 'tensor')),), {'out/kernel': jnp.zeros((8, 6))}, mesh)
    params = {'kernel': jax.device_put(jnp.ones((8, 6)), NamedSharding(mesh, made.specs['out/kernel']))}
    with jax.set_mesh(mesh), layout_lib.activate(made):
        used = jax.jit(lambda p: layout_lib.to_used('out', jnp.float32)({'params': p})['params']['kernel'])(params)
    assert used.sharding.is_equivalent_to(NamedSharding(mesh, P(None, 'tensor')), 2)


# A scanned transformer, compiled.

LAYERS, WIDTH = 3, 16
MODULE = Transformer(LAYERS, 2, remat='full')
X_BLW = np.random.default_rng(0).normal(size=(8, 5, WIDTH)).astype(np.float32)


def weighted(params, x_BLW):
    return (MODULE.apply({'params': params}, x_BLW)[0] * jnp.arange(WIDTH)).sum()


@pytest.fixture(scope='module')
def compiled():
    """(the layout, the compiled forward and backward pass, its gradient, that of one device)."""
    params = reference.randomise(jax.eval_shape(MODULE.init, jax.random.key(0), X_BLW)['params'])
    made = layout_lib.make((('.*', 'fsdp'),), paths.flatten(params), MESH)
    stored = paths.unflatten(made.shardings(MESH, paths.flatten(params)))
    with jax.set_mesh(MESH), layout_lib.activate(made):
        layouts = (stored, mesh_lib.batch_sharding(MESH))
        program = fast.jit(jax.grad(weighted), in_shardings=layouts).lower(params, X_BLW).compile()
        gradient = program(*jax.device_put((params, X_BLW), layouts))
    return made, program, gradient, fast.jit(jax.grad(weighted))(params, X_BLW)


def test_gradients_come_out_as_stored_and_equal_those_of_one_device(compiled):
    made, program, gradient, alone = compiled
    split = 0
    for path, found in paths.flatten(gradient).items():
        spec = made.specs[path]
        sharding = paths.flatten(program.output_shardings)[path]
        if any(spec):
            split += 1
            assert sharding.is_equivalent_to(NamedSharding(MESH, spec), found.ndim), path
        if 'key/bias' not in path:
            assert reference.relative(found, paths.flatten(alone)[path]) < 1e-5, path
    assert split == 6, 'four projections of attention, two of the MLP'


def test_each_layer_gathers_its_own_weights_inside_the_loop(compiled):
    """No gather of a stack of layers anywhere, and in the bodies of both loops (the backward pass gathers again)."""
    _, program, _, _ = compiled
    gathers = all_gathers(program.as_text())
    assert gathers and not [shape for _, shape in gathers if len(shape) > 2 and shape[0] == LAYERS]
    matrices = [(inside, shape) for inside, shape in gathers
                if WIDTH in shape[-2:] and set(shape) <= {1, WIDTH, 4 * WIDTH}]
    assert len(matrices) >= 12 and all(inside for inside, _ in matrices), gathers
    assert not [shape for inside, shape in gathers if not inside], 'gathers outside the loops'


def all_gathers(hlo):
    """(whether it is in the body of a while loop, shape of its output) of every all-gather of a compiled program."""
    bodies = set(re.findall(r'body=%?([\w.\-]+)', hlo))
    found, computation = [], None
    for line in hlo.splitlines():
        if header := re.match(r'(?:ENTRY )?%?([\w.\-]+) .*\{$', line):
            computation = header[1]
        if re.search(r' all-gather(-start)?\(', line):
            # An asynchronous or a combined gather has a tuple of shapes.
            for shape in re.findall(r'\w+\[([\d,]*)\]', line.split(' = ', 1)[1].split('all-gather', 1)[0]):
                found.append((computation in bodies, tuple(map(int, shape.split(',')))))
    return found
