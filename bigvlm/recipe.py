"""Recipes: what a config may say, how it is read from the command line, and the one-line errors when it cannot be.

A recipe is a file with ``get_config(arg='')`` that starts from ``new()`` and returns a ConfigDict. Recipes are flat and
forked rather than inherited; ``DEFAULTS`` is the whole schema outside the parts, whose fields are their own schema.
"""

import ast
import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import app, flags
from ml_collections import ConfigDict, config_flags

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
    'objectives': {},
    'data': {},
    'loader': {'workers': 0, 'prefetch': 4},  # threads (0: as many as cores) and batches held ready
    'evals': {},
    'eval_first': False,               # evaluate the untrained model too
    'eval_params': '',                 # '' for the parameters, or the name of an EMA
    'optim': {},
    'clamp': (),                       # (regex, low, high), after each update
    'ema': {},                         # {name: decay}
    'checkpoint': {'every': '1000 steps', 'keep': 3, 'keep_every': 0},
    'log': {'every': '50 steps', 'tensorboard': False, 'wandb': ''},
    'profile': (),                     # (first step, last step) to trace
    'resume': {'allow': ()},           # regexes of keys that a resume may change
}
_OPEN = ('about', 'kinds', 'tokenizers', 'towers', 'objectives', 'data', 'evals', 'optim', 'ema')  # keyed by the recipe


def new() -> ConfigDict:
    """A recipe with every default, to be filled in."""
    return ConfigDict(DEFAULTS)


def parse_arg(arg: str | None, **defaults: Any) -> ConfigDict:
    """``'smoke,image=256'`` -> the values of ``defaults``, overridden; a bare name sets a boolean. Types must agree."""
    values = ConfigDict(defaults)
    for item in filter(None, (arg or '').split(',')):
        key, _, text = item.partition('=')
        if key not in values:
            raise RecipeError(f'config argument {key!r}: unknown (valid: {", ".join(defaults)})')
        value = True if not text else text if isinstance(defaults[key], str) else _literal(key, text)
        wanted = type(defaults[key])
        if wanted is float and isinstance(value, int):
            value = float(value)
        if not isinstance(value, wanted) or isinstance(value, bool) != (wanted is bool):
            raise RecipeError(f'config argument {key}={text or True}: must be {wanted.__name__}, like the default {defaults[key]!r}')
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
        if not isinstance(config[key], int) or config[key] < 1:
            raise RecipeError(f'{key}: must be a positive integer, not {config[key]!r}')
    if config['batch'] % config['micro']:
        raise RecipeError(f'micro: {config["micro"]} micro-batches do not divide the batch of {config["batch"]}')
    for kind, spec in config['kinds'].items():
        if set(spec) - {'data', 'weight'} or spec['data'] not in config['data']:
            raise RecipeError(f'kinds.{kind}: needs data, one of {", ".join(config["data"]) or "(no data)"}, and an integer weight')
    if config['eval_params'] and config['eval_params'] not in config['ema']:
        raise RecipeError(f'eval_params: no EMA {config["eval_params"]!r} (ema has: {", ".join(config["ema"]) or "none"})')
    if len(config['profile']) not in (0, 2):
        raise RecipeError(f'profile: must be (first step, last step), not {tuple(config["profile"])}')


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


# The command line.

def flag(name: str = 'config'):
    """Declares ``--config FILE[:arg]`` with ``--config.key=value`` overrides."""
    return config_flags.DEFINE_config_file(name, None, 'The recipe: a file of configs/, with arguments after a colon.', lock_config=True)


def run(main, required: Sequence[str] = ('config',)) -> None:
    """``absl.app.run`` whose errors about the recipe are one line on stderr and exit code 2, not a traceback."""
    flags.mark_flags_as_required(list(required))

    def guarded(argv):
        try:
            return main(argv)
        except RecipeError as e:
            sys.exit(_one_line(e))
    app.run(guarded, flags_parser=_parse)


def _parse(argv: Sequence[str]):
    for argument in argv:
        if argument.startswith('--config='):
            _let_import_siblings(argument.removeprefix('--config='))
    if '--config' in argv[:-1]:
        _let_import_siblings(argv[argv.index('--config') + 1])
    try:
        return flags.FLAGS(argv)
    except RecipeError as e:
        sys.exit(_one_line(e))
    except (AttributeError, KeyError, TypeError, ValueError, OSError, flags.Error) as e:
        cause = e.__cause__ or e.__context__
        sys.exit(_one_line(cause if isinstance(cause, RecipeError) else _explain(argv) or e))


def _let_import_siblings(path: str) -> None:
    """A recipe may import its neighbours (``configs.common``) wherever it is run from."""
    folder = os.path.dirname(os.path.dirname(os.path.abspath(path.split(':')[0])))
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _explain(argv: Sequence[str]) -> str | None:
    """Which override names a key that the recipe does not have."""
    try:
        config = flags.FLAGS['config'].value
    except (KeyError, AttributeError):
        return None
    for argument in argv:
        if not argument.startswith('--config.') or config is None:
            continue
        path = argument.removeprefix('--config.').split('=')[0].split('.')
        node = config
        for i, key in enumerate(path):
            if not isinstance(node, ConfigDict):
                return f'{".".join(path)}: {".".join(path[:i])} is a value, not a dict'
            if key not in node:
                return unknown_key('.'.join(path[:i + 1]), list(node.keys()))
            node = node[key]
    return None


def _one_line(error: object) -> str:
    text = str(error) if not isinstance(error, KeyError) else str(error.args[0])
    return 'bigvlm: ' + ' '.join(text.split())
