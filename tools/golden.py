"""Rewrites the golden file of every recipe: config, parameter table with layouts, decay and rate, and the step's outputs.

    python tools/golden.py            # then look at `git diff tests/golden`: which recipes did a change touch?
"""

import os
import sys

import jax
import numpy as np

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from bigvlm import model as model_lib, optim, recipe, step as step_lib, workdir  # noqa: E402
from bigvlm.core import durations, layout as layout_lib, mesh as mesh_lib, paths  # noqa: E402
from bigvlm.state import abstract_variables, example_batch, expected_shapes, initializer  # noqa: E402

_EPOCH = 400_000_000  # examples, for recipes that count in epochs: LAION-400M


def recipes() -> dict[str, str]:
    """{name: path} of every recipe."""
    folder = os.path.join(ROOT, 'configs')
    return {file.removesuffix('.py'): os.path.join(folder, file) for file in sorted(os.listdir(folder))
            if file.endswith('.py') and file not in ('__init__.py', 'common.py')}


def golden(path: str) -> str:
    """The golden text of a recipe: its whole step is traced on its production mesh, with no device and no data."""
    config = recipe.resolve(recipe.from_command_line(path))
    model = model_lib.from_config(config)
    shapes = {kind: expected_shapes(model, kind) for kind in config['kinds']}
    params, _ = abstract_variables(model, shapes)
    units = dict(batch=config['batch'], examples_per_epoch=_EPOCH)
    total = durations.steps(config['steps'], what='steps', **units)
    optimizer = optim.build(config['optim'], params=params, total_steps=total, **units)
    mesh = mesh_lib.abstract_mesh(config['mesh'], config['about']['devices'])
    recipe.check_mesh(config, mesh_lib.batch_shards(mesh))
    flat = dict(sorted(paths.flatten(params).items()))
    stored = layout_lib.make(config['layout'], flat, mesh)
    state = jax.eval_shape(initializer(model, optimizer, shapes, config['ema']), np.uint32(0))
    text = [workdir.dump(config), '', f'mesh {dict(mesh.shape)}, {total} steps',
            layout_lib.table(flat, stored, mesh, step_lib.parameter_columns(optimizer))]
    for kind in config['kinds']:
        with jax.sharding.use_abstract_mesh(mesh):
            _, metrics = jax.eval_shape(step_lib.make(model, optimizer, stored, config, kind), state,
                                        example_batch(shapes[kind], config['batch']))
        flops = step_lib.model_flops(config, optimizer, kind, shapes[kind], state)
        text += ['', f'step on {kind}: {flops:.6g} model FLOPs; metrics {", ".join(sorted(metrics))}']
    return '\n'.join(text) + '\n'


def main():
    for name, path in recipes().items():
        with open(os.path.join(ROOT, 'tests', 'golden', f'{name}.txt'), 'w', encoding='utf-8') as file:
            file.write(golden(path))
        print(name)


if __name__ == '__main__':
    main()
