"""Files of big_vision and of AugReg under the names of big_vision's present models, whatever their age, and back.

Older files differ from newer ones in what big_vision's own loaders put right (models/vit.py, fix_old_checkpoints; utils.py,
load_params): parameters below 'params/' or 'opt/target/', with an optimizer's state beside them; blocks stacked as one
('encoderblock', its scan over layers); modules of a block numbered together ('MlpBlock_3'); the attention pool without a module
of its own; positions inside the encoder, and first among them, where there is a class token, the token's. big_vision adds that one to
the token, and its models of today have none. Here it stays an array of its own, named 'cls_position'.

L positions, W width.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bigvlm.core import foreign
from bigvlm.core.foreign import Index, Weights, WeightsError

CLASS_POSITION, POSITION, OLD_POSITION = 'cls_position', 'pos_embedding', 'Transformer/posembed_input/pos_embedding'
PREFIXES = ('params/', 'opt/target/', '')
_RENAMED = (
    (r'((?:img/)?)Transformer/(?:posembed_input/)?pos_embedding', rf'\1{POSITION}'),
    (r'(.*/encoderblock(?:_\d+)?)/LayerNorm_2/(.*)', r'\1/LayerNorm_1/\2'),
    (r'(.*/encoderblock(?:_\d+)?)/MultiHeadDotProductAttention_1/(.*)', r'\1/MultiHeadDotProductAttention_0/\2'),
    (r'(.*/encoderblock(?:_\d+)?)/MlpBlock_3/(.*)', r'\1/MlpBlock_0/\2'),
    (r'((?:img/)?)((?:probe|MlpBlock_0/.*|MultiHeadDotProductAttention_0/.*|LayerNorm_0/.*))', r'\1MAPHead_0/\2'))


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where an array is in a file: its name there; ``layer`` of a stacked one, or the ``row`` of [1, L, W] it begins at."""
    shape: tuple[int, ...]
    name: str
    layer: int | None = None
    row: int = 0


@dataclasses.dataclass(frozen=True)
class View:
    """An open file (core.foreign.Weights) with its arrays under present names. Layers of a stacked array are arrays of their own."""
    weights: Weights
    where: str
    places: Mapping[str, _Place]

    def names(self) -> Sequence[str]:
        return list(self.places)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.places[name].shape

    def read(self, name: str, index: Index = ()) -> np.ndarray:
        place = self.places[name]
        index = (*index, *(slice(None),) * (len(place.shape) - len(index)))
        if place.layer is not None:
            return self.weights.read(place.name, (slice(place.layer, place.layer + 1), *index))[0]
        bounds = [piece.indices(n)[:2] for piece, n in zip(index, place.shape)]
        first = [place.row if axis == 1 else 0 for axis in range(len(bounds))]
        return self.weights.read(place.name, tuple(slice(a + i, b + i) for (a, b), i in zip(bounds, first)))


def view(weights: Weights, part: str = '') -> View:
    """``part``: of a file of two towers, only what is below it: 'img' or 'txt'.

    Raises:
        WeightsError: there is nothing of that name.
    """
    prefix = next(p for p in PREFIXES if any(name.startswith(p) for name in weights.names()) or not p)
    lead = prefix + (f'{part}/' if part else '')
    places: dict[str, _Place] = {}
    for name in weights.names():
        if name.startswith(lead):
            places |= _placed(_present(name.removeprefix(lead)), name, tuple(weights.shape(name)))
    if not places:
        raise WeightsError(f'{weights.where} has nothing below {lead!r}')
    for name in [name for name in places if re.fullmatch(r'(img/)?cls', name)]:
        places |= _class_position(name.removesuffix('cls'), places)
    return View(weights, f'{weights.where}:{part}' if part else weights.where, places)


def _present(name: str) -> str:
    for pattern, new in _RENAMED:
        name = re.sub(f'^{pattern}$', new, name)
    return name


def _placed(name: str, there: str, shape: tuple[int, ...]) -> dict[str, _Place]:
    if '/encoderblock/' not in name:
        return {name: _Place(shape, there)}
    return {name.replace('/encoderblock/', f'/encoderblock_{i}/'): _Place(shape[1:], there, layer=i) for i in range(shape[0])}


def _class_position(tower: str, places: Mapping[str, _Place]) -> dict[str, _Place]:
    """Positions [1, 1+L, W] taken apart where they are those of a class token and a square."""
    place = places.get(tower + POSITION)
    if place is None or len(place.shape) != 3 or math.isqrt(place.shape[1] - 1) ** 2 != place.shape[1] - 1:
        return {}
    _, length, width = place.shape
    return {tower + CLASS_POSITION: _Place((1, 1, width), place.name),
            tower + POSITION: _Place((1, length - 1, width), place.name, row=1)}


def export(table: foreign.Table, params: Mapping[str, Any], prefix: str = 'params/') -> Iterator[tuple[str, np.ndarray]]:
    """(name in a file, array) for np.savez, by a Description's table; one at a time. Blocks are one by one, as big_vision's loaders
    take them for either kind of model. A class token's position goes first among the others, as in older files.

    ``prefix``: 'params/' as in SigLIP's files; '' as in AugReg's and LiT's, which google-research/vision_transformer needs.
    """
    towers = [name.removesuffix(CLASS_POSITION) for entry in table.values() for name in foreign.names_of(entry)
              if name.endswith(CLASS_POSITION)]
    held: dict[str, np.ndarray] = {}
    for name, x in foreign.export(table, params):
        if name in {tower + part for tower in towers for part in (CLASS_POSITION, POSITION)}:
            held[name] = x
        else:
            yield prefix + name, x
    for tower in towers:
        yield prefix + tower + OLD_POSITION, np.concatenate([held[tower + CLASS_POSITION], held[tower + POSITION]], axis=1)
