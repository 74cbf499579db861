"""A model of ours as files that another library opens as they are."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bigvlm.core import foreign, parts
from bigvlm.core.foreign import WeightsError
from bigvlm.data.cache import fresh
from bigvlm.interop import big_vision, card, hf, image_processor, open_clip, tokenizer_files
from bigvlm.interop._big_vision_files import export as big_vision_arrays
from bigvlm.interop.description import Description
from bigvlm.interop.weights import save_weights

log = logging.getLogger('bigvlm.export')

# Models of transformers that a pair of towers is tried as, in this order.
PAIRS = ('clip', 'siglip', 'chinese_clip', 'altclip', 'vision_text_dual_encoder')


def renamed(config: Mapping[str, Any], objective: str, image: str, text: str,
            whole: bool = False) -> tuple[dict[str, Any], Callable[[str], str]]:
    """(the recipe's groups with towers 'image' and 'text' and objective 'match', this recipe's path of a path of such a one). Of
    other objectives, those that read a decoder stay (CoCa's captions); all of them if ``whole`` (FLAVA's). WeightsError for one tower
    of both."""
    if image == text:
        raise WeightsError(f'towers.{image}: encodes images and texts, for which other libraries have a tower each')
    names = {'image': image, 'text': text, 'match': objective}
    back = {ours: theirs for theirs, ours in names.items()}
    groups = {group: {back.get(name, name): _renamed(spec, back) for name, spec in config.get(group, {}).items()}
              for group in ('fusion', 'decoders')}
    groups['towers'] = {'image': config['towers'][image], 'text': config['towers'][text]}
    read = {name: spec for name, spec in config['objectives'].items()
            if whole or set(map(str, spec.values())) & groups['decoders'].keys()}
    read.pop(objective, None)
    given = config['objectives'][objective]
    read['match'] = {**given, **{f'{side}_tower': names[side] for side in ('image', 'text') if f'{side}_tower' in given}}
    groups['objectives'] = {name: _renamed(spec, back) for name, spec in read.items()}

    def path(there: str) -> str:
        first, slash, rest = there.partition('/')
        return names.get(first, first) + slash + rest
    return groups, path


def _renamed(spec: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """An objective's towers are named like its batch keys, which stay as they are."""
    return {key: names.get(value, value) if key.endswith('_tower') else value for key, value in spec.items()}


def tower_alone(config: Mapping[str, Any], name: str) -> tuple[dict[str, Any], Callable[[str], str]]:
    """As ``renamed``, of one tower and nothing else. Raises WeightsError if there is none of this name."""
    if name not in config['towers']:
        raise WeightsError(f'tower: there is no tower {name!r} (there are: {", ".join(config["towers"])})')
    tower = parts.build('bigvlm.towers', config['towers'][name], f'towers.{name}')
    side = 'image' if tower.example()[1] == 'uint8' else 'text'
    return {'towers': {side: config['towers'][name]}}, lambda there: f'{name}/{there.partition("/")[2]}'


class Arrays(Mapping):
    """{path of a description: array of the model}, which must have it in that shape."""

    def __init__(self, description: Description, params: Mapping[str, Any], path: Callable[[str], str]):
        self.params, self.path, self.table = params, path, description.table
        for there, x in description.abstract.items():
            found = params.get(path(there))
            if found is None or tuple(found.shape) != tuple(x.shape):
                raise WeightsError(f'{path(there)}: found {"nothing" if found is None else list(found.shape)}; the exported model has '
                                   f'{list(x.shape)}')

    def __getitem__(self, there: str) -> Any:
        return self.params[self.path(there)]

    def __iter__(self):
        return iter(self.table)

    def __len__(self) -> int:
        return len(self.table)

    def left_out(self) -> list[str]:
        """The modules of ours that are not in the exported model."""
        taken = {self.path(there) for there in self.table}
        return sorted({path.split('/')[0] for path in self.params if path not in taken})


def to_hf(folder: Path, groups: Mapping[str, Any], params: Mapping[str, Any], path: Callable[[str], str], *, model_type: str = '',
          image_ops: Sequence[Mapping[str, Any]], tokenizer: Any, length: int, about: card.About, dtype: Any = np.float32) -> list[str]:
    """A folder for ``AutoModel.from_pretrained``: weights, config.json, image processor, tokenizer, model card.

    Args:
        groups, path: of ``renamed``. params: {our path: array}. model_type: of transformers; the first of PAIRS that holds it by
            default. image_ops: after 'decode'. tokenizer: ours, or None: no files of one are written. length: tokens of a text.

    Returns:
        Sentences on what differs there, and on what is not in it.

    Raises:
        WeightsError: no model of transformers holds this one; for each that was tried, the field.
    """
    model_type, config = _first_that_holds(groups, (model_type,) if model_type else PAIRS)
    pictures = 'image' in groups['towers']
    processor = hf.image_processor(groups, model_type, image_ops) if pictures else {}
    arrays = Arrays(hf.describe_config(config, processor), params, path)
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / 'config.json', config | {'dtype': np.dtype(dtype).name})
    notes = [*image_processor.write(folder, groups, model_type, image_ops)] if pictures else []
    if tokenizer is not None:
        notes += tokenizer_files.write(tokenizer, folder, model_type, length).notes
    save_weights(folder, foreign.export(arrays.table, arrays), dtype=dtype)
    notes += _left_out(arrays)
    (folder / 'README.md').write_text(card.text(about, 'transformers', notes), encoding='utf-8')
    return notes


def _first_that_holds(groups: Mapping[str, Any], model_types: Sequence[str]) -> tuple[str, dict[str, Any]]:
    reasons = []
    for model_type in model_types:
        try:
            return model_type, hf.theirs(groups, model_type)
        except WeightsError as error:
            reasons.append(f'{model_type}: {error}')
    raise WeightsError('transformers has no model for this one:\n' + '\n'.join(reasons))


def to_open_clip(folder: Path, groups: Mapping[str, Any], params: Mapping[str, Any], path: Callable[[str], str], *,
                 image_ops: Sequence[Mapping[str, Any]], tokenizer: Any, length: int, about: card.About,
                 dtype: Any = np.float32) -> list[str]:
    """A folder for ``open_clip.create_model_from_pretrained('local-dir:FOLDER')``; arguments and results as of ``to_hf``."""
    config = open_clip.theirs(groups, image_ops=image_ops)
    arrays = Arrays(open_clip.describe(config), params, path)
    folder.mkdir(parents=True, exist_ok=True)
    notes = [*image_processor.differences(image_ops, 'nearest', 'open_clip')]
    if tokenizer is not None:
        written = tokenizer_files.write(tokenizer, folder, 'open_clip', length)
        config['model_cfg']['text_cfg'] |= written.text_cfg
        notes += written.notes
    _write_json(folder / open_clip.CONFIG, config)
    save_weights(folder, foreign.export(arrays.table, arrays), 'open_clip_model.safetensors', dtype=dtype)
    notes += _left_out(arrays)
    (folder / 'README.md').write_text(card.text(about, 'open_clip', notes), encoding='utf-8')
    return notes


def to_npz(file: Path, groups: Mapping[str, Any], params: Mapping[str, Any], path: Callable[[str], str]) -> list[str]:
    """A file as big_vision reads it; arguments and results as of ``to_hf``."""
    arrays = Arrays(big_vision.describe(big_vision.theirs(groups)), params, path)
    file.parent.mkdir(parents=True, exist_ok=True)
    with fresh(file) as part, open(part, 'wb') as opened:
        np.savez(opened, **dict(big_vision_arrays(arrays.table, arrays)))
        part.chmod(0o644)  # temporary files are their owner's alone
    return _left_out(arrays)


def _left_out(arrays: Arrays) -> list[str]:
    found = arrays.left_out()
    return [f'not in these files, since they are parts of training or of no model there: {", ".join(found)}'] if found else []


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
