"""preprocessor_config.json: how transformers prepares images for a model of ours."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bigvlm.interop import hf

FILE = 'preprocessor_config.json'


def write(folder: str | Path, groups: Mapping[str, Any], model_type: str, image_ops: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Writes the file for a model by its recipe's ``groups``, whose images are prepared by ``image_ops`` (after 'decode') and by the
    image tower's mean and std. Returns what differs from ours there, in sentences; nothing if pixels are the same to 1/255.

    Raises:
        WeightsError: transformers' image processors cannot do that.
    """
    found = hf.image_processor(groups, model_type, image_ops)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(json.dumps(found, indent=2) + '\n', encoding='utf-8')
    return differences(image_ops, 'floor', 'transformers')


def differences(image_ops: Sequence[Mapping[str, Any]], rounding: str, library: str) -> tuple[str, ...]:
    """What another library, which cuts the middle of images with this ``rounding`` (data/ops/resize.py), does otherwise."""
    notes = []
    for op in image_ops:
        crop, ours = op.get('crop', 'center'), op.get('rounding', 'exact')
        if op['name'] == 'resize' and crop == 'center' and ours != rounding:
            notes.append(f'images that are not square: ours cuts their middle with rounding={ours!r}, {library} with {rounding!r}, up to a '
                         'pixel of the scaled image apart')
        if op['name'] == 'resize' and not op.get('antialias', True):
            notes.append(f'images that shrink: ours takes two by two pixels (antialias=False), {library} all of them')
    return tuple(notes)
