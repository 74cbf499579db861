"""The data set, source or recipe that a command line of tools/data.py names."""
import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bigvlm.core import parts
from bigvlm.core.parts import RecipeError
from bigvlm.data import pipeline, site
from bigvlm.data.dataset import Dataset
from bigvlm.data.datasets import Datasets
from bigvlm.data.prepare import spec

Options, Overrides = argparse.Namespace, Sequence[tuple[str, str]]


def title_of(spec: str) -> str:
    """'siglip_b16:smoke' of 'configs/siglip_b16.py:smoke,data=…'."""
    path, colon, arguments = spec.partition(':')
    return Path(path).stem + colon + arguments.partition(',')[0]


def recipe_of(options: Options, overrides: Overrides) -> dict[str, Any]:
    """The resolved recipe, of --config or of a run's work directory."""
    from bigvlm import recipe  # brings jax, which commands without a recipe do without
    if options.config:
        return recipe.resolve(recipe.from_command_line(options.config, overrides))
    path = Path(getattr(options, 'workdir', '') or '', 'config.json')
    if not path.is_file():
        raise RecipeError(f'--workdir: {options.workdir} holds no run (no config.json)' if getattr(options, 'workdir', '') else
                          '--config: which recipe? give FILE or FILE:arguments, or the --workdir of a run')
    return recipe.resolve(json.loads(path.read_text(encoding='utf-8')))


def spec_of(options: Options, overrides: Overrides) -> dict[str, Any]:
    """The source that the command line names, what the site file says looked up."""
    if sum(map(bool, (options.source, options.set, options.config))) != 1:
        raise RecipeError('give one of --source NAME,key=value,…; --set NAME --split SPLIT; --config RECIPE --data NAME')
    if options.source:
        return spec.parse(options.source)
    if options.set:
        return site.resolve(options.set, options.split)
    data = recipe_of(options, overrides)['data']
    if options.data not in data or 'source' not in data[options.data]:
        valid = ', '.join(name for name, one in data.items() if 'source' in one)
        raise RecipeError(f'--data: the recipe has no data set {options.data!r} with a source (there are: {valid or "none"})')
    found = dict(data[options.data]['source'])
    if found['name'] == 'named':
        return site.resolve(found.pop('set'), found.pop('split')) | {key: value for key, value in found.items() if key != 'name'}
    return found


def build(wanted: dict[str, Any], options: Options, overrides: Overrides) -> Any:
    """The source; one that packs texts needs the recipe's tokenizers."""
    declared = parts.fields(parts.find('bigvlm.data.sources', wanted.get('name', ''), 'source'))
    given = dict(tokenizers=tokenizers_of(options, overrides)) if options.config and 'tokenizers' in declared else {}
    return parts.build('bigvlm.data.sources', wanted, 'source', **given)


def tokenizers_of(options: Options, overrides: Overrides) -> dict[str, Any]:
    config = recipe_of(options, overrides)
    return pipeline.build_tokenizers(config['tokenizers'], config['data'])


def dataset_of(options: Options, overrides: Overrides) -> Dataset:
    """With the recipe's ops, or without any; it tolerates unusable examples, which are shown as such."""
    wanted = spec_of(options, overrides)
    if not options.config:
        return Dataset(dict(source=wanted, max_bad=1.), 'source')
    config = recipe_of(options, overrides)
    data = config['data'] | {options.data: config['data'][options.data] | {'max_bad': 1.}}
    return Datasets(config | {'data': data}, tokenizers_of(options, overrides))(options.data)
