"""Rewrites the golden file of every recipe: config, parameter table with layouts, decay and rate, and the step's outputs.

    python tools/golden.py            # then look at `git diff tests/golden`: which recipes did a change touch?
"""

import os
import sys

import jax

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from bigvlm import blueprint, recipe, step as step_lib, workdir  # noqa: E402
from bigvlm.core import mesh as mesh_lib  # noqa: E402

_EPOCH = 400_000_000  # examples, for recipes that count in epochs: LAION-400M


def recipes() -> dict[str, str]:
    """{name: path} of every recipe."""
    folder = os.path.join(ROOT, 'configs')
    return {file.removesuffix('.py'): os.path.join(folder, file) for file in sorted(os.listdir(folder))
            if file.endswith('.py') and file not in ('__init__.py', 'common.py')}


def golden(path: str) -> str:
    """The golden text of a recipe: its whole step is traced on its production mesh, with no device and no data."""
    config = recipe.resolve(recipe.from_command_line(path))
    plan = blueprint.make(config, examples_per_epoch=_EPOCH)
    mesh = mesh_lib.abstract_mesh(config['mesh'], config['about']['devices'])
    placed = plan.on(mesh)
    text = [workdir.dump(config), '', f'mesh {dict(mesh.shape)}, {plan.total_steps} steps', placed.table()]
    for kind in config['kinds']:
        with jax.sharding.use_abstract_mesh(mesh):
            _, metrics = jax.eval_shape(step_lib.make(plan.model, plan.optimizer, placed.stored, config, kind), plan.abstract,
                                        placed.batch(kind))
        text += ['', f'step on {kind}: {plan.model_flops(kind):.6g} model FLOPs; metrics {", ".join(sorted(metrics))}']
    return '\n'.join(text) + '\n'


def main():
    for name, path in recipes().items():
        with open(os.path.join(ROOT, 'tests', 'golden', f'{name}.txt'), 'w', encoding='utf-8') as file:
            file.write(golden(path))
        print(name)


if __name__ == '__main__':
    main()
