"""Prompt templates and class names: written in the recipe, built in by name, or read from a file."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.data.ops.canonicalize import canonical as canonicalize

# Small sets in our own words. For a paper's numbers give the paper's own list as a file.
TEMPLATES = {
    'plain': ('{}',),
    'photo': ('a photo of a {}.',),
    'ensemble': (
        'a photo of a {}.',
        'a photo of the {}.',
        'a picture of a {}.',
        'this is a {}.',
        'a close-up of a {}.',
        'a {} seen from afar.',
        'a small {}.',
        'a large {}.',
        'a dark photo of a {}.',
        'a bright photo of a {}.',
        'a blurry picture of a {}.',
        'a drawing of a {}.',
        'one {} in its surroundings.',
        'several of them: {}.',
    ),
}


def templates(value: str | tuple[str, ...]) -> tuple[str, ...]:
    """A tuple of templates, a name of TEMPLATES, or a file; each template holds '{}' (or '{c}') once."""
    valid = f'a name ({", ".join(TEMPLATES)})'
    found = TEMPLATES[value] if value in TEMPLATES else lines(value, 'templates', valid)
    found = tuple(t.replace('{c}', '{}') for t in found)
    for template in found:
        if template.count('{}') != 1:
            raise RecipeError(f"templates: {template!r} must hold '{{}}' exactly once, where the class name goes")
    return found


def lines(value: str | tuple[str, ...], field: str, valid: str = '') -> tuple[str, ...]:
    """A tuple as it is; or a file: a JSON list, a JSON dict of lists as 'FILE#KEY', or text with one entry per line."""
    if not isinstance(value, str):
        found = tuple(value)
    else:
        path, _, key = value.partition('#')
        if not Path(path).is_file():
            options = ' or '.join(filter(None, [valid, 'a tuple of strings', 'an existing .json or .txt file']))
            raise RecipeError(f'{field}: found {value!r}; valid: {options}')
        found = _read(Path(path), key, field)
    if not found or not all(isinstance(entry, str) and entry for entry in found):
        raise RecipeError(f'{field}: {str(value)[:80]!r} must give at least one string, and only non-empty strings')
    return found


def _read(path: Path, key: str, field: str) -> tuple[str, ...]:
    text = path.read_text(encoding='utf-8')
    if path.suffix != '.json':
        return tuple(line.strip() for line in text.splitlines() if line.strip())
    try:
        content = json.loads(text)
    except ValueError as error:
        raise RecipeError(f'{field}: {path} is not JSON ({error})') from None
    if isinstance(content, dict):
        if key not in content:
            raise RecipeError(f'{field}: {path} holds several lists; name one as {path}#KEY with KEY one of '
                              f'{", ".join(sorted(content)[:40])}')
        content = content[key]
    if not isinstance(content, list):
        raise RecipeError(f'{field}: {path} must hold a list of strings or a dict of such lists')
    return tuple(content)


def tokens(tokenizers, name: str, texts: list[str], length: int, canonical: bool) -> np.ndarray:
    """int32 [N, length] of ``texts`` by the recipe's tokenizer ``name``."""
    tokenize: Callable = tokenizers[name] if name in tokenizers else None
    if tokenize is None:
        there = ', '.join(sorted(tokenizers)) or 'none'
        raise RecipeError(f'tokenizer: no tokenizer {name!r}; the recipe has: {there}')
    return np.asarray(tokenize([canonicalize(t) for t in texts] if canonical else list(texts), length))
