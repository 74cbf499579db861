"""The documentation: the example of docs/extend.md runs outside the repository, and what the pages name exists."""

import csv
import importlib.util
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bigvlm import recipe
from bigvlm.core import parts

ROOT = Path(__file__).resolve().parent.parent
EXTEND = ROOT / 'docs' / 'extend.md'
HEADED_BLOCK = re.compile(r'^### `([\w/]+\.py)`\n+```python\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def extract(folder: Path) -> list[str]:
    """Writes the page's files below ``folder``; their names."""
    blocks = HEADED_BLOCK.findall(EXTEND.read_text(encoding='utf-8'))
    for name, code in blocks:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(code, encoding='utf-8')
    return [name for name, _ in blocks]


def test_the_example_of_extend_runs_outside_the_repository(tmp_path):
    project, workdir = tmp_path / 'my_project', tmp_path / 'run'
    project.mkdir()
    assert extract(project) == ['mine/squares.py', 'mine/mosaic.py', 'mine/hinge.py', 'mine/gap.py', 'configs/mine.py']
    env = os.environ | {'PYTHONPATH': os.pathsep.join((str(project), str(ROOT))), 'JAX_PLATFORMS': 'cpu',
                        'XLA_FLAGS': '--xla_force_host_platform_device_count=2',
                        'BIGVLM_CACHE': str(tmp_path / 'cache')}
    command = [sys.executable, '-m', 'bigvlm.train', '--config', f'{project}/configs/mine.py:steps=4',
               '--workdir', str(workdir)]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr

    lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    last = {key: value for line in lines for key, value in line.items()}
    assert last['step'] == 4
    assert 0 <= last['rank/violations'] <= 1 and -1 <= last['rank/cosine'] <= 1
    assert last['loss'] == last['rank/loss'] > 0
    assert abs(last['gap/own'] - last['gap/other'] - last['gap/gap']) < 1e-6 and last['gap/gap'] != 0
    assert last['zero_shot/n'] == 64
    assert (workdir / 'report.html').is_file()


# What the pages name exists.

PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding='utf-8')
         for path in (ROOT / 'README.md', ROOT / 'CHANGELOG.md', *sorted((ROOT / 'docs').glob('*.md')))}
PACKAGES = {'towers': 'bigvlm.towers', 'fusion': 'bigvlm.fusion', 'decoders': 'bigvlm.decoders', 'objectives': 'bigvlm.objectives',
            'evaluators': 'bigvlm.evals',
            'sources': 'bigvlm.data.sources', 'ops': 'bigvlm.data.ops', 'tokenizers': 'bigvlm.data.tokenizers',
            'augment': 'bigvlm.nn.augment'}


def anchors(page: str) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    prose = re.sub(r'^```.*?^```$', '', page, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r'^#+ (.*)$', prose, re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', PAGES)
def test_links_resolve(page):
    for target in re.findall(r'\]\(([^)\s]+)\)', PAGES[page]):
        if '://' in target:
            continue
        name, _, anchor = target.partition('#')
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), f'{page}: {target}'
        if anchor:
            assert anchor in anchors(path.read_text(encoding='utf-8')), f'{page}: {target}'


@pytest.mark.parametrize('page', PAGES)
def test_named_files_and_modules_exist(page):
    own = {'configs/mine.py'} if page == 'docs/extend.md' else set()
    for name in set(re.findall(r'(?<![\w/])(?:bigvlm|configs|tools|tests|docs)/[\w/.]*\w', PAGES[page])) - own:
        assert (ROOT / name).exists(), f'{page}: {name}'
    for name in set(re.findall(r'-m (bigvlm[\w.]*)', PAGES[page])):
        assert importlib.util.find_spec(name), f'{page}: {name}'


def commands() -> list[tuple[str, str]]:
    """(page, command) of every command in the pages' shell blocks, lines joined."""
    found = []
    for page, text in PAGES.items():
        for block in re.findall(r'^```bash\n(.*?)^```$', text, re.MULTILINE | re.DOTALL):
            lines = block.replace('\\\n', ' ').splitlines()
            found += [(page, line) for line in lines
                      if '--config' in line and 'FILE[' not in line and not re.search(r'mine\.py|my_recipe\.py|--config RECIPE', line)]
    return found


def section(page: str, heading: str) -> str:
    return PAGES[page].split(f'\n## {heading}\n')[1].split('\n## ')[0]


@pytest.mark.parametrize('page, command', commands())
def test_commands_name_recipes_and_keys(page, command):
    """The recipe takes these arguments, and has these keys, with values of these types."""
    arguments = shlex.split(command, comments=True)
    spec = arguments[arguments.index('--config') + 1]
    overrides = [a.removeprefix('--config.').split('=', 1) for a in arguments if a.startswith('--config.')]
    recipe.resolve(recipe.from_command_line(str(ROOT / spec), overrides))
    assert not any(a.startswith('tools/') for a in arguments) or tool_flags(arguments)[0] <= tool_flags(arguments)[1]


def tool_flags(arguments: list[str]) -> tuple[set[str], set[str]]:
    """(flags of a command of a tool, flags that the tool declares, or what it shares with others)."""
    tool = next(a for a in arguments if a.startswith('tools/'))
    text = ''.join(path.read_text(encoding='utf-8')
                   for path in (ROOT / tool, ROOT / 'tools/sweep.py', *sorted((ROOT / 'tools').glob('_*.py'))))
    declared = re.findall(r"'(--[\w-]+)'", text) + [f'--{name}' for name in re.findall(r"DEFINE_\w+\(\s*'(\w+)'", text)]
    return {a.partition('=')[0] for a in arguments if a.startswith('--') and not a.startswith('--config')}, set(declared)


TOOL_COMMANDS = [(page, line.strip()) for page, text in PAGES.items()
                 for line in re.findall(r'^ *(python tools/.*)$', text.replace('\\\n', ' '), re.MULTILINE)]


@pytest.mark.parametrize('page, command', TOOL_COMMANDS)
def test_commands_of_tools_have_their_flags(page, command):
    used, declared = tool_flags(shlex.split(command, comments=True))
    assert used <= declared


def test_overrides_in_the_text_name_keys():
    weights = ('start.run.checkpoint', 'x')  # an entry that the command line may add
    known = recipe.flat(recipe.resolve(recipe.from_command_line(str(ROOT / 'configs/quickstart.py'), [weights])))
    override = re.compile(r'--config\.([a-z_]\w*(?:\.\w+)*)')
    found = [(page, key) for page, text in PAGES.items() for key in override.findall(text)]
    assert found
    for page, key in found:
        assert key == 'key' or key in known, f'{page}: --config.{key}'


def test_every_key_of_a_recipe_and_every_part_is_documented():
    page = PAGES['docs/recipes.md']
    assert set(recipe.DEFAULTS) == set(re.findall(r'^\| `(\w+)` \|', section('docs/recipes.md', 'Keys'), re.MULTILINE))
    for kind, package in PACKAGES.items():
        row = re.search(rf'^\| {kind} \| `{package.replace(".", "/")}` \| (.*) \|$', page, re.MULTILINE)[1]
        there = set(parts.names(package)) - {'embedder'}  # what evaluators are given
        assert set(re.findall(r'`(\w+)`', row)) == there, kind


def test_every_op_is_documented_with_its_fields():
    rows = re.findall(r'^\| `(\w+)` \| (.*?) \|', section('docs/data.md', 'Ops').split('\n### ')[0], re.MULTILINE)
    assert sorted(name for name, _ in rows) == parts.names('bigvlm.data.ops')
    for name, cell in rows:
        said = dict(re.match(r'(\w+)=?(.*)', item).groups() for item in re.findall(r'`([^`]+)`', cell))
        declared = parts.fields(parts.find('bigvlm.data.ops', name, 'docs'))
        fields = {key: p.default for key, p in declared.items() if key not in parts.GIVEN}
        assert said.keys() == fields.keys(), name
        for key, text in said.items():
            assert fields[key] is inspect.Parameter.empty if not text else eval(text) == fields[key], f'{name}.{key}'


def test_every_recipe_is_in_the_readme():
    there = {f'configs/{path.name}' for path in (ROOT / 'configs').glob('*.py')}
    there -= {'configs/__init__.py', 'configs/common.py'}
    assert there == set(re.findall(r'^\| `(configs/\w+\.py)` \|', PAGES['README.md'], re.MULTILINE))
    rows = re.findall(r'^\| `(\w+)`[ (]', PAGES['docs/methods.md'], re.MULTILINE)
    assert sorted(f'configs/{name}.py' for name in rows) == sorted(there)


def test_targets_say_what_they_are():
    with open(ROOT / 'docs' / 'targets.csv', newline='', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    assert rows and all(row['method'] and row['metric'] and float(row['value']) and row['source'] for row in rows)
    assert {row['status'] for row in rows} <= {'not run', 'surrogate', 'reproduced'}
    for name in {row['method'] for row in rows if '_' in row['method']}:
        assert (ROOT / 'configs' / f'{name}.py').exists(), name
    same = [(row['method'], row['encoder'], row['data'], row['examples'], row['metric'], row['source']) for row in rows]
    assert len(set(same)) == len(same)
