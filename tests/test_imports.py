"""Imports go down only, data stays free of jax and models, and the benchmark runs without the data libraries."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# The parts of the package from the ground up: each may import itself and the levels before its own, but for FORBIDDEN.
LEVELS = (
    ('core',), ('nn', 'figures', 'schedules'), ('towers', 'fusion', 'decoders', 'optim'), ('objectives', 'model'),
    ('state', 'recipe', 'data', 'metrics', 'progress', 'workdir', 'checkpoint'),
    ('step', 'evals', 'report', 'feed', 'interop'), ('blueprint', 'functions', 'prepared'), ('start', 'loaded'), ('evaluate',), ('plan', 'train'))
FORBIDDEN = {
    'objectives': ('towers', 'optim', 'figures', 'schedules'), 'model': ('towers', 'optim'),
    'data': ('nn', 'model', 'optim'),
    'evals': ('nn', 'towers', 'fusion', 'decoders', 'objectives', 'model', 'state', 'optim'),
    'report': ('nn', 'model', 'state', 'data'),
    'interop': ('evals', 'report', 'step', 'feed', 'optim'),
    'plan': ('data', 'evals', 'report', 'checkpoint', 'workdir', 'evaluate', 'interop', 'start', 'loaded', 'prepared')}


def modules(folder='bigvlm'):
    """{dotted name: (file, whether a package)} of all modules under a folder."""
    found = {}
    for file in sorted((ROOT / folder).rglob('*.py')):
        dotted = '.'.join(file.relative_to(ROOT).with_suffix('').parts)
        found[dotted.removesuffix('.__init__')] = (file, file.name == '__init__.py')
    return found


MODULES = modules()


def imported(name):
    """The modules that ``name`` imports, in functions too; ``from a import b`` is a.b where that is a module."""
    file, package = MODULES[name]
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = name.split('.') if package else name.split('.')[:-1]
            above = '.'.join(base[:len(base) + 1 - node.level]) if node.level else ''
            module = '.'.join(filter(None, (above, node.module)))
            inner = (f'{module}.{alias.name}' for alias in node.names)
            found |= {item if item in MODULES else module for item in inner}
    return found


IMPORTS = {name: imported(name) for name in MODULES}


def part(module):
    """``core`` of ``bigvlm.core.mesh``; '' for the package itself, which only has the version."""
    return module.split('.')[1] if '.' in module else ''


def closure(name, parents=True):
    """Everything that importing ``name`` imports, by way of bigvlm's own modules; ``parents``: and their packages."""
    seen, todo = set(), [name]
    while todo:
        module = todo.pop()
        if module in seen:
            continue
        seen.add(module)
        if module in IMPORTS:
            todo += [*IMPORTS[module], *(['.'.join(module.split('.')[:-1])] if parents and '.' in module else [])]
    return seen


def test_every_part_has_a_level():
    level_of = {name for level in LEVELS for name in level}
    assert {part(m) for m in MODULES} - {''} <= level_of, 'a new part of the package: say in LEVELS what it may import'


@pytest.mark.parametrize('name', sorted(MODULES))
def test_imports_go_down_only(name):
    level = {part: i for i, parts in enumerate(LEVELS) for part in parts}
    own = part(name)
    for module in IMPORTS[name]:
        if module.split('.')[0] != 'bigvlm' or part(module) in ('', own):
            continue
        assert own and level[part(module)] < level[own], f'{name} imports {module}, which is not below it'
        assert part(module) not in FORBIDDEN.get(own, ()), f'{name} imports {module}'


def test_there_are_no_circles():
    for name in MODULES:
        for module in IMPORTS[name] & MODULES.keys() - {name}:
            assert name not in closure(module, parents=False), f'{name} and {module} import each other'


def outside(name):
    return {module.split('.')[0] for module in closure(name)}


def test_no_other_framework_and_nothing_above_the_package():
    for name, found in IMPORTS.items():
        assert not {m.split('.')[0] for m in found} & {'tensorflow', 'torch', 'configs', 'tools', 'tests'}, name


def test_data_knows_no_jax_and_no_model():
    for name in MODULES:
        if part(name) == 'data' or name in ('bigvlm.figures', 'bigvlm.progress') or part(name) == 'report':
            assert not outside(name) & {'jax', 'flax', 'optax', 'orbax'}, name
            model_code = {'nn', 'towers', 'objectives', 'model', 'state', 'step'}
            assert not {part(m) for m in closure(name) if m in MODULES} & model_code, name


HEAVY = ('tensorflow_datasets', 'tensorflow', 'sentencepiece', 'array_record', 'simplejpeg', 'orbax', 'PIL', 'ftfy',
         'regex', 'tokenizers', 'torch', 'obstore', 'pyarrow', 'google_crc32c')


def test_the_step_needs_no_data_library():
    objectives = [name.removeprefix('bigvlm.') for name in MODULES if part(name) in ('objectives', 'towers', 'fusion', 'decoders')]
    for name in ('step', 'state', 'recipe', 'model', 'optim', *objectives):
        name = f'bigvlm.{name}'
        assert not outside(name) & set(HEAVY), name
        assert not {part(m) for m in closure(name) if m in MODULES} & {'data', 'evals', 'report', 'checkpoint'}, name


BLOCKED = '''
import importlib.abc, runpy, sys
class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {heavy!r}:
            raise ModuleNotFoundError(f'No module named {{name!r}} (blocked by the test)', name=name)
sys.meta_path.insert(0, Block())
try:
    import PIL
except ModuleNotFoundError:
    pass
else:
    sys.exit('the block does not block')
import bigvlm.step, bigvlm.state, bigvlm.recipe
sys.argv = ['bench_step.py', '--config', {config!r}, '--config.batch=8', '--steps', '1']
runpy.run_path({tool!r}, run_name='__main__')
'''


def test_the_benchmark_runs_without_the_data_libraries():
    code = BLOCKED.format(heavy=HEAVY, config=str(ROOT / 'configs' / 'quickstart.py'),
                          tool=str(ROOT / 'tools' / 'bench_step.py'))
    # One device, and LLVM's optimisations off: the program is compiled, not measured.
    environment = dict(os.environ, PYTHONPATH=str(ROOT), JAX_PLATFORMS='cpu',
                       XLA_FLAGS='--xla_backend_optimization_level=0')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], env=environment, capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 0, done.stderr
    for line in ('compile', 'examples/s', 'loss'):
        assert line in done.stdout, done.stdout
