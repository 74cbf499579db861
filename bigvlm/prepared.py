"""What a checkpoint says of its use: whose embeddings, by which towers, and how images and texts are prepared for them."""

from collections.abc import Mapping
from typing import Any

from bigvlm import model as model_lib
from bigvlm.core import parts
from bigvlm.core.parts import RecipeError
from bigvlm.interop.source import Source


def module_of(source: Source, **overrides: Any) -> model_lib.Model:
    """The model of a checkpoint, as ``model.from_config``; RecipeError for a tower alone."""
    if not source.config.get('objectives'):
        raise RecipeError(f'{source.where} is a tower without a partner: it has no common space of images and texts; valid: a model of '
                          'two towers, or config.start for this one')
    return model_lib.from_config(source.config, **overrides)


def tower_of(config: Mapping[str, Any], side: str, objective: str = '') -> str:
    """The tower that encodes the images ('image') or texts ('text') of an objective; of the first, if none is named."""
    specs = config['objectives']
    objective = objective or next(iter(specs))
    part = parts.build('bigvlm.objectives', specs[objective], f'objectives.{objective}')
    found = [tower for field, tower in model_lib.towers_of(part).values() if field == f'{side}_tower']
    if not found:
        raise RecipeError(f'objectives.{objective}: encodes no {side}')
    return found[0]


def image_ops(source: Source, objective: str = '') -> tuple[Mapping[str, Any], ...]:
    """The data ops, after 'decode', that prepare an image. Of a run: what zero-shot classification or retrieval does with images
    (other evaluations may cut and mask them as training does); where that leaves them as large as they are, or there is none, scaled
    to the tower's side."""
    if source.description is not None:
        return tuple(source.description.image_ops)
    config = source.config
    read = [spec['data'] for spec in config.get('evals', {}).values()
            if spec['name'] in ('zero_shot', 'retrieval') and spec['data'] in config.get('data', {})]
    ops = next((config['data'][name].get('ops', ()) for name in read), ())
    kept = tuple(spec for spec in ops if spec['name'] not in ('decode', 'tokenize', 'tokenize_all', 'keep'))
    tower = tower_of(config, 'image', objective)
    side = config['towers'][tower].get('image')
    if not side:
        raise RecipeError(f"towers.{tower}: does not say the side of its images; valid: a field 'image', or a resize op in an evaluation's "
                          'data')
    return kept if any('size' in spec for spec in kept) else (*kept, dict(name='resize', size=side))


def text_length(source: Source, objective: str = '') -> int:
    """Tokens of a text."""
    if source.description is not None and source.description.length:
        return source.description.length
    tower = tower_of(source.config, 'text', objective)
    if 'length' not in source.config['towers'][tower]:
        raise RecipeError(f'towers.{tower}: takes no token ids; valid: images alone, to be encoded or compared with each other')
    return source.config['towers'][tower]['length']


def tokenizer_of(config: Mapping[str, Any]) -> str:
    """The name of the tokenizer of the texts that are read: the evaluations' own, or 'text', their default."""
    return next((spec['tokenizer'] for spec in config.get('evals', {}).values() if spec.get('tokenizer')), 'text')


def first_with_embeddings(module: model_lib.Model) -> str:
    """The first objective that embeds images and texts. Raises RecipeError if there is none."""
    able = [name for name, make in module.objectives.items() if hasattr(make(), 'embed')]
    if not able:
        raise RecipeError(f'objectives: none of {", ".join(module.objectives)} embeds images and texts')
    return able[0]
