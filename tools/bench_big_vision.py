"""Memory, FLOPs and collectives of siglip_b16 beside big_vision's same model, both compiled ahead of time for the same chips.

    git clone https://github.com/google-research/big_vision DIR
    python tools/bench_big_vision.py --big_vision DIR --topology v5e:16x16 --batch 32768 --json rows.json \
        --rows replicate,none replicate,full fsdp,full,mesh=16x16 \
        --ours remat=full remat=attended+hidden 'remat=full mesh.data=16 mesh.fsdp=16'

A row of big_vision is STRATEGY,REMAT and more: STRATEGY is its ``replicate`` or ``fsdp``; REMAT is ``none`` (its layers one by
one, which it never rematerialises), ``full`` (its scan over layers) or a policy of jax.checkpoint_policies for that scan;
mesh=AxB is the mesh of data and fsdp (by default everything is data, and fsdp goes over it), batch=N another batch,
optimizer=adafactor or adam, text=bfloat16 a text tower in bfloat16 too, which its own module has no option for. A row
of ours is overrides of configs/siglip_b16.py; ``remat`` stands for that of both towers.

What is theirs: the two-tower model, ViT with pooling by attention and text transformer, in bfloat16 where ``dtype_mm`` allows
it; the optimizer chain; the sharding rules; the constraint of activations to the batch axes. The step itself is a closure in
their trainer's main and cannot be imported: loss, gradient, update and the three norms are written again below, by
the same formulas. The modules need tensorflow for files only, so a stand-in takes its place while they are imported.
Needs libtpu (pip install -e '.[plan]') or jax's CUDA wheels, as tools/plan.py does, and no accelerator.
"""

import argparse
import dataclasses
import importlib
import json
import math
import os
import sys
import time
import types
from collections.abc import Mapping
from functools import partial
from typing import Any

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from bigvlm.plan import environment  # noqa: E402

os.environ.update(environment.variables(os.environ))  # before jax is imported

import flax.training.checkpoints  # noqa: E402, F401  before the stand-in for tensorflow: it looks for the real one
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402
from flax import linen as nn  # noqa: E402
from jax.experimental import mesh_utils  # noqa: E402
from jax.interpreters import partial_eval  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from bigvlm import recipe  # noqa: E402
from bigvlm.core import flops  # noqa: E402
from bigvlm.core.parts import RecipeError  # noqa: E402
from bigvlm.plan import hlo, plan as plan_lib, topology as topology_lib  # noqa: E402

MIB, GIB = 2 ** 20, 2 ** 30
RECIPE = os.path.join(ROOT, 'configs', 'siglip_b16.py')
IMAGE, LENGTH = 224, 64   # pixels, tokens
STEPS = 274_658           # 9 billion examples at batch 32,768; shapes do not depend on it

# SigLIP's B/16, in the fields of their models.
MODEL = dict(
    out_dim=(None, 768), temperature_init=10., bias_init=-10.,
    image=dict(variant='B/16', pool_type='map', dtype_mm='bfloat16'),
    text=dict(variant='B', vocab_size=32_000, pool_type='last'))
# And its training, in the keys of theirs.
TRAINING = dict(lr=1e-3, wd=1e-4, grad_clip_norm=1., schedule=dict(
    decay_type='rsqrt', timescale=10_000, warmup_steps=20_000, cooldown_steps=50_000))
OPTIMIZERS = {
    'adafactor': dict(optax_name='big_vision.scale_by_adafactor', optax=dict(beta2_cap=.95)),
    'adam': dict(optax_name='scale_by_adam', optax=dict(b2=.95))}
POLICIES = ('everything_saveable', 'dots_saveable', 'dots_with_no_batch_dims_saveable')


# Which rows.

@dataclasses.dataclass(frozen=True)
class Row:
    """One setting of big_vision; ``mesh``: (data,) or (data, fsdp), () for everything in data."""
    strategy: str
    remat: str
    mesh: tuple[int, ...] = ()
    batch: int = 32_768
    optimizer: str = 'adafactor'
    text: str = 'float32'


def row_of(text: str, batch: int) -> Row:
    """``batch``: of rows that do not name one. Raises RecipeError that says which part of the text is wrong."""
    strategy, remat, *more = text.split(',') if ',' in text else (text, '')
    valid = dict(strategy=('replicate', 'fsdp'), remat=('none', 'full', *POLICIES), optimizer=tuple(OPTIMIZERS),
                 text=('float32', 'bfloat16'))
    found: dict[str, Any] = dict(strategy=strategy, remat=remat, batch=batch)
    for item in more:
        key, _, value = item.partition('=')
        if key not in ('mesh', 'batch', 'optimizer', 'text'):
            raise RecipeError(f'--rows {text}: unknown key {key!r} (valid: mesh, batch, optimizer, text)')
        found[key] = value
    for key, values in valid.items():
        if key in found and found[key] not in values:
            raise RecipeError(f'--rows {text}: unknown {key} {found[key]!r} (valid: {", ".join(values)})')
    try:
        found |= {key: read(found[key]) for key, read in (('mesh', sides_of), ('batch', int)) if key in found}
    except ValueError:
        raise RecipeError(f'--rows {text}: mesh must be like 16x16 and batch a number') from None
    return Row(**found)


def sides_of(text: str) -> tuple[int, ...]:
    sides = tuple(map(int, text.split('x')))
    if len(sides) > 2:
        raise ValueError(text)
    return sides


def setting_of(text: str, batch: int):
    """Overrides of our recipe, separated by spaces -> the resolved recipe."""
    overrides = [('batch', str(batch))]
    for item in text.split():
        key, equals, value = item.partition('=')
        if not equals:
            raise RecipeError(f'--ours {text}: {item!r} is not KEY=VALUE')
        overrides += [(f'towers.{tower}.remat', value) for tower in ('image', 'text')] if key == 'remat' else [(key, value)]
    return recipe.resolve(recipe.from_command_line(RECIPE, overrides))


# big_vision's modules and its step.

def load(folder: str) -> types.SimpleNamespace:
    """Their modules from a checkout. Raises RecipeError if the folder is none."""
    needed = os.path.join('big_vision', 'models', 'proj', 'image_text', 'two_towers.py')
    if not os.path.isfile(os.path.join(folder, needed)):
        raise RecipeError(f'--big_vision: {folder!r} is no checkout of github.com/google-research/big_vision: it has no {needed}')
    gfile = types.ModuleType('tensorflow.io.gfile')
    io = types.ModuleType('tensorflow.io')
    tensorflow = types.ModuleType('tensorflow')
    tensorflow.io, io.gfile = io, gfile   # nothing in them is called: no file is read or written
    stands = {module.__name__: module for module in (tensorflow, io, gfile)}
    before = {name: sys.modules.get(name) for name in stands}
    sys.modules.update(stands)
    sys.path.insert(0, os.path.abspath(folder))
    try:
        names = dict(towers='models.proj.image_text.two_towers', text='models.proj.image_text.text_transformer', vit='models.vit',
                     optax='optax', sharding='sharding')
        return types.SimpleNamespace(**{short: importlib.import_module(f'big_vision.{name}') for short, name in names.items()})
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def lower(theirs, row: Row, topology):
    """Their step for a row -> (lowered, FLOPs of one device, mesh)."""
    n = len(topology.devices)
    sides = row.mesh or (n,)
    if math.prod(sides) != n:
        raise RecipeError(f'--rows: a mesh of {"x".join(map(str, sides))} does not fill {n} devices')
    axes = ('data', 'fsdp')[:len(sides)]
    mesh = Mesh(mesh_utils.create_device_mesh(sides, topology.devices), axes)

    batches = NamedSharding(mesh, P(axes))
    images = jax.ShapeDtypeStruct((row.batch, IMAGE, IMAGE, 3), jnp.float32, sharding=batches)
    labels = jax.ShapeDtypeStruct((row.batch, LENGTH), jnp.int32, sharding=batches)
    model = model_of(theirs, row)
    params = jax.eval_shape(model.init, jax.random.key(0), images, labels)['params']
    optimizer, _ = theirs.optax.make(ConfigDict(TRAINING | OPTIMIZERS[row.optimizer]), params,
                                     sched_kw=dict(total_steps=STEPS, batch_size=row.batch, data_size=10 ** 9))
    state = {'params': params, 'opt': jax.eval_shape(optimizer.init, params)}
    strategy = f'fsdp(axis="{axes[-1]}")' if row.strategy == 'fsdp' else row.strategy
    stored = theirs.sharding.infer_sharding(state, strategy=[('.*', strategy)], mesh=mesh)
    placed = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, stored)

    step = jax.jit(step_of(model, optimizer), donate_argnums=0, out_shardings=(stored, NamedSharding(mesh, P())))
    with mesh, nn.logical_axis_rules([('act_batch', axes)]):   # as their trainer enters them
        products = used_flops(step, placed, images, labels)
        return step.trace(placed, images, labels).lower(lowering_platforms=(topology.platform,)), products / n, mesh


def model_of(theirs, row: Row):
    if row.text != 'float32':  # their text tower makes its encoder without dtype_mm
        encoder = theirs.vit.Encoder
        theirs.text.vit = types.SimpleNamespace(**vars(theirs.vit) | dict(Encoder=lambda **fields: encoder(dtype_mm=row.text, **fields)))
    else:
        theirs.text.vit = theirs.vit
    depth = {} if row.remat == 'none' else dict(scan=True, remat_policy='nothing_saveable' if row.remat == 'full' else row.remat)
    return theirs.towers.Model(**MODEL | {tower: MODEL[tower] | depth for tower in ('image', 'text')})


def step_of(model, optimizer):
    """``step(state, images, labels) -> (state, metrics)``. B is the global batch."""
    def loss_of(params, images, labels):
        zimg_BD, ztxt_BD, out = model.apply({'params': params}, images, labels, train=True)
        logits_BB = zimg_BD @ ztxt_BD.T * out['t'] + out['b']
        sign_BB = 2 * jnp.eye(len(logits_BB)) - 1   # +1 for pairs, -1 for all others
        return -jax.nn.log_sigmoid(sign_BB * logits_BB).sum(axis=-1).mean()

    def step(state, images, labels):
        loss, grads = jax.value_and_grad(loss_of)(state['params'], images, labels)
        updates, opt = optimizer.update(grads, state['opt'], state['params'])
        params = optax.apply_updates(state['params'], updates)
        norms = {name: optax.global_norm(tree) for name, tree in (('grads', grads), ('params', params), ('updates', updates))}
        return {'params': params, 'opt': opt}, {'loss': loss, **norms}
    return step


def used_flops(function, *args) -> int:
    """FLOPs over all devices without what is computed and not used, as their scores of the vocabulary: compilers drop it."""
    closed = jax.make_jaxpr(function)(*args)
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars), instantiate=True)
    return flops.count(lambda *leaves: jax.core.eval_jaxpr(jaxpr, closed.consts, *leaves), *jax.tree.leaves(args))


# Figures of one row, per device: as JSON keeps them.

def measure_theirs(theirs, row: Row, topology) -> dict[str, Any]:
    began = time.perf_counter()
    lowered, products, mesh = lower(theirs, row, topology)
    found = dict(flops=products)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as e:
        refused = plan_lib.read_refusal(str(e))
        if refused is None:
            raise
        return found | dict(refused=refused[0], limit=refused[1], seconds=time.perf_counter() - began)
    memory = compiled.memory_analysis()
    found |= dict(arguments=memory.argument_size_in_bytes, temporaries=memory.temp_size_in_bytes, seconds=time.perf_counter() - began)
    return found | traffic_of(hlo.collectives(compiled.as_text(), dict(mesh.shape)))


def measure_ours(config: Mapping[str, Any], topology) -> dict[str, Any]:
    found = plan_lib.plan(config, topology)
    facts = dict(flops=found.compiled_flops, seconds=found.compile_seconds)
    if found.traffic is None:
        return facts | dict(refused=found.memory.refused, limit=found.memory.limit)
    return facts | dict(arguments=found.memory.arguments, temporaries=found.memory.temporaries) | traffic_of(found.traffic)


def traffic_of(traffic: hlo.Traffic) -> dict[str, Any]:
    kinds: dict[str, float] = {}
    for c in traffic.collectives:
        kinds[c.kind] = kinds.get(c.kind, 0.) + c.times * c.bytes
    return dict(collectives=kinds, unknown=list(traffic.unknown))


# The table.

COLUMNS = ('', 'batch', 'arguments', 'temporaries', 'TFLOP', 'GFLOP/example', 'collectives MiB', 'of which', 'compiled in')
SHORT = {'all-gather': 'AG', 'all-reduce': 'AR', 'reduce-scatter': 'RS', 'collective-permute': 'CP', 'all-to-all': 'A2A'}


def cells(name: str, batch: int, devices: int, found: Mapping[str, Any]) -> tuple[str, ...]:
    products = (f'{found["flops"] / 1e12:.2f}', f'{found["flops"] * devices / batch / 1e9:.1f}')
    seconds = f'{found["seconds"]:.0f} s'
    if 'refused' in found:
        needed = f'{found["refused"] / GIB:.1f} of {found["limit"] / GIB:.2f} GiB'
        return (name, f'{batch:,}', 'out of memory:', needed, *products, '', '', seconds)
    kinds = sorted(found['collectives'].items(), key=lambda item: -item[1])
    each = ', '.join(f'{SHORT.get(kind, kind)} {n / MIB:,.0f}' for kind, n in kinds if n >= MIB / 2)
    least = '≥ ' if found['unknown'] else ''   # a loop's length that the text does not tell
    return (name, f'{batch:,}', f'{found["arguments"] / GIB:.2f} GiB', f'{found["temporaries"] / GIB:.2f} GiB', *products,
            f'{least}{sum(found["collectives"].values()) / MIB:,.0f}', each, seconds)


def options_of(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--big_vision', metavar='DIR', help='checkout of github.com/google-research/big_vision; needed for --rows')
    parser.add_argument('--topology', default='v5e:16x16')
    parser.add_argument('--batch', type=int, default=32_768)
    parser.add_argument('--rows', nargs='*', default=[], metavar='STRATEGY,REMAT', help='of big_vision')
    parser.add_argument('--ours', nargs='*', default=[], metavar="'KEY=VALUE …'", help='of ours')
    parser.add_argument('--json', metavar='FILE', help='keeps the figures; rows that it has are not compiled again')
    return parser.parse_args(argv)


def run(options) -> None:
    rows = {text: row_of(text, options.batch) for text in options.rows}
    settings = {text: setting_of(text, options.batch) for text in options.ours}
    if rows and not options.big_vision:
        raise RecipeError('--big_vision: rows of big_vision need a checkout of github.com/google-research/big_vision')
    theirs = load(options.big_vision) if rows else None
    topology = topology_lib.get(options.topology)
    known: dict[str, Any] = {}
    if options.json and os.path.exists(options.json):
        with open(options.json, encoding='utf-8') as file:
            known = json.load(file)
    jobs = [(f'big_vision {text}', row.batch, partial(measure_theirs, theirs, row, topology)) for text, row in rows.items()]
    jobs += [(f'bigvlm {text}', config['batch'], partial(measure_ours, config, topology)) for text, config in settings.items()]
    print(f'{options.topology}, per device; jax {jax.__version__}\n| ' + ' | '.join(COLUMNS) + ' |\n|' + '---|' * len(COLUMNS), flush=True)
    for name, batch, measure in jobs:
        key = f'{options.topology} {batch} {name}'
        if key not in known:
            known[key] = measure()
            if options.json:
                with open(options.json, 'w', encoding='utf-8') as file:
                    json.dump(known, file, indent=1)
        print('| ' + ' | '.join(cells(name, batch, len(topology.devices), known[key])) + ' |', flush=True)


def main(argv=None):
    try:
        run(options_of(argv))
    except RecipeError as e:
        print(f'bigvlm: {e}', file=sys.stderr)
        sys.exit(2)


if __name__ == '__main__':
    main()
