"""Recipes: what a config may say, how it is read from the command line, and the one-line errors when it cannot be.

A recipe is a file with ``get_config(arg='')`` that starts from ``new()`` and returns a ConfigDict. Recipes are flat and
forked rather than inherited; ``DEFAULTS`` is the whole schema outside the parts, whose fields are their own schema.
"""

import ast
import difflib
import logging
import os
import re
import runpy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from absl import app, flags, logging as absl_logging
from ml_collections import ConfigDict

from bigvlm import optim
from bigvlm.core import parts, stages
from bigvlm.core.parts import RecipeError

DEFAULTS: dict[str, Any] = {
    'about': {},                       # paper, data, expected: shown by tools/recipes.py
    'seed': 0,
    'batch': 1024,                     # global batch, in examples
    'steps': '1 epochs',               # the run's length, in any unit
    'micro': 1,                        # micro-batches of a step; the gradient does not depend on it
    'mesh': {'replica': 1, 'data': -1, 'fsdp': 1, 'tensor': 1},
    'layout': (('.*', 'fsdp'),),       # (regex, 'replicate' | 'fsdp' | one mesh axis per dimension)
    'kinds': {'pairs': {'data': 'train', 'weight': 1}},  # batch kinds; weight: batches out of the sum of weights
    'tokenizers': {},
    'towers': {},
    'fusion': {},                      # modules over the tokens of several towers, which objectives name
    'decoders': {},
    'objectives': {},
    'data': {},
    'loader': {'workers': 0, 'processes': 0, 'prefetch': 4,  # threads (0: as many as cores), of each process if any; batches held ready
               'slow_s': 60., 'hang_s': 600.},               # seconds at one example that are named, and that replace a process
    'stages': (),                      # (dict(until=duration, set={key: value}), …, dict(set=…)): keys that change on the way
    'evals': {},
    'eval_first': False,               # evaluate the untrained model too
    'eval_params': '',                 # '' for the parameters, or the name of an EMA
    'start': {},                       # weights that the run begins with: {entry: dict(checkpoint=…, load=…)}, see start.py
    'optim': {'schedule': {'name': 'cosine'}},
    'clamp': (),                       # (regex, low, high), after each update
    'ema': {},                         # {name: decay}
    'augment': {},                     # {batch key of images: steps on the device, in order}
    'checkpoint': {'every': '1000 steps', 'keep': 3, 'keep_every': 0},
    'log': {'every': '50 steps', 'tensorboard': False, 'wandb': ''},
    'profile': (),                     # (first step, last step) to trace
    'resume': {'allow': ()},           # regexes of keys that a resume may change
}
_DATASET = (('max_bad', .01), ('number', 0), ('order', 'shuffle'), ('block', 64), ('pool', 16_384))  # data.Dataset's own defaults
_MIXTURE = (('homogeneous', False),)
_START = (('load', (('.*', r'\g<0>'),)), ('resize', ()), ('optimizer', 'reset'))
_OPEN = ('about', 'kinds', 'tokenizers', 'towers', 'fusion', 'decoders', 'objectives', 'data', 'evals', 'start', 'optim',
         'ema', 'augment')  # keyed by the recipe


def new() -> ConfigDict:
    """A recipe with every default, to be filled in."""
    return ConfigDict(DEFAULTS)


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
    """``'smoke,image=256'`` -> the values of ``defaults``, overridden; a bare name sets a boolean. Types must agree."""
    values = ConfigDict(defaults)
    for item in filter(None, (arg or '').split(',')):
        key, given, text = item.partition('=')
        if key not in values:
            raise RecipeError(f'config argument {key!r}: unknown (valid: {", ".join(defaults)})')
        value = True if not given else text if isinstance(defaults[key], str) else _literal(key, text)
        wanted = type(defaults[key])
        if wanted is float and isinstance(value, int):
            value = float(value)
        if not isinstance(value, wanted) or isinstance(value, bool) != (wanted is bool):
            raise RecipeError(f'config argument {key}={text if given else True}: must be {wanted.__name__}, '
                              f'like the default {defaults[key]!r}')
        values[key] = value
    return values


def _literal(key: str, text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        raise RecipeError(f'config argument {key}={text}: not a number, True, False or tuple') from None


def check(config: Mapping[str, Any]) -> None:
    """Raises RecipeError for unknown keys and impossible values outside the parts. Touches no device."""
    _check_keys(config, DEFAULTS, '')
    for key in ('batch', 'micro'):
        if not isinstance(config[key], int) or isinstance(config[key], bool) or config[key] < 1:
            raise RecipeError(f'{key}: must be a positive integer, not {config[key]!r}')
    if config['batch'] % config['micro']:
        raise RecipeError(f'micro: {config["micro"]} micro-batches do not divide the batch of {config["batch"]}')
    if not isinstance(config['seed'], int) or not 0 <= config['seed'] < 2 ** 32:
        raise RecipeError(f'seed: must be an integer from 0 to 2**32 - 1, not {config["seed"]!r}')
    for kind, spec in config['kinds'].items():
        if set(spec) != {'data', 'weight'} or spec['data'] not in config['data']:
            raise RecipeError(f'kinds.{kind}: needs data, one of {", ".join(config["data"]) or "(no data)"}, and a whole-number '
                              f'weight; found {dict(spec)}')
    for name, spec in config['objectives'].items():
        if spec.get('teacher') and spec['teacher'] not in config['ema']:
            raise RecipeError(f'objectives.{name}.teacher: no EMA {spec["teacher"]!r} (ema has: {", ".join(config["ema"]) or "none"})')
    for name in config['evals'].keys() & config['objectives'].keys():
        raise RecipeError(f'evals.{name}: an objective has this name, whose metrics in training are {name}/…, too; valid: another name')
    stages.configs(config)
    if config['eval_params'] and config['eval_params'] not in config['ema']:
        raise RecipeError(f'eval_params: no EMA {config["eval_params"]!r} (ema has: {", ".join(config["ema"]) or "none"})')
    for key, steps in config['augment'].items():
        if not isinstance(steps, tuple) or not steps or not all(isinstance(step, Mapping) for step in steps):
            raise RecipeError(f"augment.{key}: must be a tuple of steps such as (dict(name='gray', probability=.2),), not {steps!r}")
    if len(config['profile']) not in (0, 2):
        raise RecipeError(f'profile: must be (first step, last step), not {tuple(config["profile"])}')


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as plain nested dicts and tuples (also one read back from JSON), checked."""
    plain = config.to_dict() if isinstance(config, ConfigDict) else dict(config)
    resolved = parts.freeze(plain)
    check(resolved)
    return resolved


def check_mesh(config: Mapping[str, Any], shards: int) -> None:
    """Raises RecipeError if the batch cannot be split over ``shards`` batch shards and the micro-batches."""
    if config['batch'] % (shards * config['micro']):
        raise RecipeError(f'batch: {config["batch"]} examples are not divisible by {shards} batch shards × {config["micro"]} '
                          f'micro-batches; a multiple of {shards * config["micro"]} would be')


def _check_keys(config: Mapping[str, Any], schema: Mapping[str, Any], where: str) -> None:
    for key, value in config.items():
        if key not in schema:
            raise RecipeError(unknown_key(f'{where}{key}', schema))
        if isinstance(schema[key], Mapping) and f'{where}{key}' not in _OPEN:
            if not isinstance(value, Mapping):
                raise RecipeError(f'{where}{key}: must be a dict with {", ".join(schema[key])}, not {value!r}')
            _check_keys(value, schema[key], f'{where}{key}.')


def unknown_key(path: str, valid: Mapping[str, Any] | Sequence[str]) -> str:
    close = difflib.get_close_matches(path.rsplit('.', 1)[-1], list(valid), n=1)
    hint = f'; did you mean {close[0]!r}?' if close else ''
    return f'{path}: unknown key{hint} (valid: {", ".join(valid)})'


def complete(config: ConfigDict) -> ConfigDict:
    """Writes every part's default fields into the recipe, so that it says all there is and any field can be overridden.

    A part whose library is not installed keeps the fields as they are written: benchmarks run without the data libraries.
    """
    with config.unlocked():
        for package, where, spec in part_specs(config):
            try:
                part = parts.find(package, spec.get('name', ''), where)
            except ImportError:
                continue
            for key, parameter in parts.fields(part).items():
                if key not in spec and key not in parts.GIVEN and parameter.default is not parameter.empty:
                    spec[key] = parts.freeze(parameter.default)
        for spec in config.data.values():
            for key, value in _MIXTURE if 'mix' in spec else _DATASET:
                spec[key] = spec.get(key, value)
        for spec in config.evals.values():
            for key, value in (('every', 'end'), ('objective', next(iter(config.objectives), '')), ('batch', 64)):
                spec[key] = spec.get(key, value)
        for spec in config.start.values():
            for key, value in _START:
                spec[key] = spec.get(key, value)
        optim.complete(config.optim)
    return config


def part_specs(config: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(package, where in the recipe, spec) of every part that has a key of its own."""
    for group, package in (('towers', 'bigvlm.towers'), ('fusion', 'bigvlm.fusion'), ('decoders', 'bigvlm.decoders'),
                           ('objectives', 'bigvlm.objectives'), ('evals', 'bigvlm.evals'),
                           ('tokenizers', 'bigvlm.data.tokenizers')):
        for name, spec in config[group].items():
            yield package, f'{group}.{name}', spec
    for name, spec in config['data'].items():
        if 'source' in spec:
            yield 'bigvlm.data.sources', f'data.{name}.source', spec['source']


# The command line.

def load(spec: str) -> ConfigDict:
    """The recipe of ``FILE[:arg]`` without the command line."""
    path, _, arg = spec.partition(':')
    # A recipe may import its neighbours (``configs.common``) wherever it is run from.
    folder = os.path.dirname(os.path.dirname(os.path.abspath(path)))
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found = runpy.run_path(path)
    except OSError as e:
        raise RecipeError(f'--config: cannot read {path!r}: {e.strerror}') from None
    if 'get_config' not in found:
        raise RecipeError(f'--config: {path} defines no get_config')
    return found['get_config'](arg)


def differences(argv: Sequence[str], config: Mapping[str, Any]) -> str:
    """What the command line changed: ``key: the recipe's -> this run's``, a line each."""
    before, after = flat(resolve(from_command_line(_take_config(argv)[0]))), flat(config)
    return '\n'.join(f'{key}: {before.get(key)!r} -> {after.get(key)!r}' for key in sorted(before.keys() | after.keys())
                     if before.get(key) != after.get(key))


def name(argv: Sequence[str]) -> str:
    """The recipe's own name: ``siglip_b16:smoke``."""
    path, _, arg = (_take_config(argv)[0] or '').partition(':')
    return os.path.splitext(os.path.basename(path))[0] + (f':{arg}' if arg else '')


def flat(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
    """``{'a.b.c': value}``."""
    found = {}
    for key, value in config.items():
        found |= flat(value, f'{prefix}{key}.') if isinstance(value, Mapping) and value else {f'{prefix}{key}': value}
    return found


def run(main: Callable[[ConfigDict | None], Any], config_required: bool = True) -> None:
    """``absl.app.run`` of ``main(config)``: reads ``--config FILE[:arguments]`` and ``--config.key=value`` overrides.

    Errors about the recipe are one line on stderr and exit code 2, not a traceback. ``main`` gets None when there is no
    ``--config`` and none is required.
    """
    config = None

    def parse(argv):
        nonlocal config
        try:
            spec, overrides, rest = _take_config(argv)
            if spec is not None:
                config = from_command_line(spec, overrides)
            elif overrides or config_required and not {'--help', '--helpfull', '-h'} & set(argv):
                raise RecipeError('--config: which recipe? give FILE or FILE:arguments, e.g. configs/quickstart.py')
            return flags.FLAGS(rest)
        except (RecipeError, flags.Error) as e:
            _exit(e)

    def guarded(argv):
        _console()
        try:
            return main(config)
        except RecipeError as e:
            _exit(e)
    app.run(guarded, flags_parser=parse)


def _console() -> None:
    """Our own log from INFO, a short line each; other libraries' from WARNING."""
    theirs = absl_logging.get_absl_handler()
    theirs.setLevel(logging.WARNING)
    theirs.addFilter(lambda record: not record.name.startswith('bigvlm'))
    ours = logging.StreamHandler(sys.stdout)
    ours.setFormatter(logging.Formatter('%(asctime)s %(message)s', '%H:%M:%S'))
    logging.getLogger('bigvlm').addHandler(ours)
    logging.getLogger('bigvlm').setLevel(logging.INFO)


def from_command_line(spec: str, overrides: Sequence[tuple[str, str]] = ()) -> ConfigDict:
    """The recipe, complete, with overrides ``(key, text)``, locked."""
    config = load(spec)
    for key, text in overrides:  # the only parts that the command line may add: any recipe can begin with other weights
        if (entry := re.fullmatch(r'start\.(\w+)\.checkpoint', key)) and entry[1] not in config.start:
            config.start[entry[1]] = {'checkpoint': text}
    for key, text in overrides:  # first those that decide which fields there are
        if key.split('.')[-1] == 'name' and _has(config, key):
            _override(config, key, text)
    complete(config)
    for key, text in overrides:
        _override(config, key, text)
    config.lock()
    return config


def _exit(error: Exception) -> None:
    print(f'bigvlm: {error}', file=sys.stderr, flush=True)
    sys.exit(2)


def _take_config(argv: Sequence[str]) -> tuple[str | None, list[tuple[str, str]], list[str]]:
    """(the value of ``--config``, the overrides, the other arguments)."""
    spec, overrides, rest = None, [], []
    arguments = iter(argv)
    for argument in arguments:
        key, equals, value = argument.partition('=')
        if key != '--config' and not key.startswith('--config.'):
            rest.append(argument)
            continue
        value = value if equals else next(arguments, '')
        if not value or value.startswith('--'):
            raise RecipeError(f'{key}: a value is missing')
        if key == '--config':
            spec = value
        else:
            overrides.append((key.removeprefix('--config.'), value))
    return spec, overrides, rest


def _has(config: ConfigDict, path: str) -> bool:
    node: Any = config
    for key in path.split('.'):
        if not isinstance(node, ConfigDict) or key not in node:
            return False
        node = node[key]
    return True


def _override(config: ConfigDict, path: str, text: str) -> None:
    """Sets one key from text, keeping the type of the value that it replaces."""
    keys = path.split('.')
    node: Any = config
    for i, key in enumerate(keys):
        if not isinstance(node, ConfigDict):
            raise RecipeError(f'{path}: {".".join(keys[:i])} is a value, not a dict')
        if key not in node:
            raise RecipeError(unknown_key('.'.join(keys[:i + 1]), list(node.keys())))
        parent, node = node, node[key]
    with parent.ignore_type():
        parent[keys[-1]] = _typed(path, text, node)


def _typed(path: str, text: str, like: Any) -> Any:
    if isinstance(like, ConfigDict):
        raise RecipeError(f'--config.{path}: is a dict; override its keys ({", ".join(like.keys())})')
    if isinstance(like, str):  # fields of one name or several (files, templates) take a tuple too
        return ast.literal_eval(text) if re.fullmatch(r"\(.*,.*\)", text.strip()) else text
    if isinstance(like, bool):
        if text.lower() in ('true', 'false'):
            return text.lower() == 'true'
        raise RecipeError(f'--config.{path}={text}: must be true or false')
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if like is None:
            return text
        raise RecipeError(f'--config.{path}={text}: must be {type(like).__name__}, like {like!r}') from None
    if isinstance(like, float) and isinstance(value, int):
        value = float(value)
    if isinstance(like, int) and isinstance(value, float) and value.is_integer():
        value = int(value)  # 1e6
    if isinstance(like, tuple) and isinstance(value, list):
        value = tuple(value)
    if like is not None and (not isinstance(value, type(like)) or isinstance(value, bool)):
        raise RecipeError(f'--config.{path}={text}: must be {type(like).__name__}, like {like!r}')
    return value
