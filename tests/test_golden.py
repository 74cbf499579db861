"""Every recipe is what its golden file says, and its step traces on its production mesh."""

import importlib.util
import os
import pathlib

import pytest

from bigvlm import recipe

ROOT = pathlib.Path(__file__).parent.parent


def tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GOLDEN = tool('golden')


@pytest.mark.parametrize('name', GOLDEN.recipes())
def test_recipe_is_as_its_golden_file_says(name):
    path = ROOT / 'tests' / 'golden' / f'{name}.txt'
    assert path.exists(), 'run python tools/golden.py'
    assert GOLDEN.golden(f'configs/{name}.py' if os.getcwd() == str(ROOT) else str(ROOT / 'configs' / f'{name}.py')) == path.read_text(), \
        'the recipe has changed; if that is meant, run python tools/golden.py and commit the difference'


@pytest.mark.parametrize('name', GOLDEN.recipes())
def test_recipe_has_a_smoke_version_and_says_what_it_is(name):
    path = str(ROOT / 'configs' / f'{name}.py')
    full, smoke = (recipe.resolve(recipe.from_command_line(p)) for p in (path, f'{path}:smoke'))
    assert smoke['batch'] <= 256 and {'paper', 'data', 'expected', 'devices'} <= set(full['about'])
    with open(path, encoding='utf-8') as file:
        assert '--config' in file.read().split('"""')[1], 'a recipe begins with its command'


def test_published_sizes():
    """Parameter counts of the released models, as other libraries count them."""
    for name, count in (('clip_b32', 151_277_313), ('siglip_l16_256', 652_150_786)):
        assert f'{count:,} parameters' in (ROOT / 'tests' / 'golden' / f'{name}.txt').read_text()


def test_recipes_tool_lists_every_recipe(capsys):
    tool('recipes').main()
    printed = capsys.readouterr().out
    for name in GOLDEN.recipes():
        assert f'{name}\n  paper' in printed
