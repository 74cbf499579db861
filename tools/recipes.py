"""Lists the recipes: paper, building blocks, data, what to expect.

    python tools/recipes.py
"""

import glob
import os
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from bigvlm import recipe  # noqa: E402


def blocks(config) -> str:
    """The names of a recipe's parts, by kind."""
    return '; '.join(f'{group}: ' + ', '.join(f'{key}={spec["name"]}' for key, spec in config[group].items())
                     for group in ('towers', 'objectives', 'evals') if config[group])


def main():
    for path in sorted(glob.glob(os.path.join(ROOT, 'configs', '*.py'))):
        name = os.path.basename(path)
        if name in ('__init__.py', 'common.py'):
            continue
        config = recipe.resolve(recipe.load(path))
        about = config['about']
        print(f'{name.removesuffix(".py")}\n  paper    {about["paper"]}\n  blocks   {blocks(config)}\n  data     {about["data"]}\n'
              f'  batch    {config["batch"]:,} for {config["steps"]}, {config["optim"]["name"]}, mesh {config["mesh"]}\n'
              f'  expected {about["expected"]}')


if __name__ == '__main__':
    main()
