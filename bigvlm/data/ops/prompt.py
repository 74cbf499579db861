"""Captions for images that have a class instead (UniCL, arXiv 2204.03610; BASIC, arXiv 2111.10050)."""
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample


def prompt(templates: Sequence[str] = ('a photo of a {}.',), names: Sequence[str] = (), label_names: Sequence[str] = (),
           label: str = 'label', out: str = 'caption') -> Callable:
    """Puts a random template, the class's name in the place of its '{}', at `out`.

    `names` of the classes, in the order of their numbers at `label`; not said: the source's. An example whose label is -1
    has no class and stays as it is, with the caption it may have. BadExample where the label is missing or has no name.
    """
    templates = (templates,) if isinstance(templates, str) else tuple(templates)
    names = tuple(names or label_names)
    if not templates or not all(isinstance(template, str) and template.count('{}') == 1 for template in templates):
        raise RecipeError(f"templates: each holds '{{}}' once, where the class's name goes; found {templates}")
    if not names:
        raise RecipeError('names: the source does not name its labels; give the names of the classes')

    def op(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        template = templates[rng.integers(len(templates))]
        if (number := example.get(label)) is None:
            raise BadExample('no label')
        if number == -1:
            return example
        if not 0 <= number < len(names):
            raise BadExample('a label without a name')
        return {**example, out: template.replace('{}', names[number])}
    return op
