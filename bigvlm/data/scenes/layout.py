"""Draws scenes at random: which objects, how many, where, and which relation holds between them."""
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bigvlm.data.scenes import grammar
from bigvlm.data.scenes.grammar import Group, Kind

# Diameters as a fraction of the image. The gaps between the ranges keep the three words unambiguous.
DIAMETERS = {'small': (.27, .33), 'medium': (.44, .54), 'large': (.66, .8)}
_LAYOUTS = (('single', .5), ('pair', .25), ('count', .1), ('mixed', .15))
_TRIES = 40


@dataclass(frozen=True)
class Object:
    """One drawn thing; `x`, `y` (its centre) and `diameter` are fractions of the image, `angle` is in radians."""
    kind: Kind
    x: float
    y: float
    diameter: float
    angle: float


@dataclass(frozen=True)
class Scene:
    objects: tuple[Object, ...]
    groups: tuple[Group, ...]
    background: str
    relation: str = ''

    def captions(self, language: str = 'en') -> list[grammar.Caption]:
        return grammar.captions(self.groups, self.background, self.relation, language)


def single(rng: np.random.Generator, combination: tuple[str, str, str], size: str = '') -> Scene:
    """A scene of one object of the given (shape, color, texture), of a size drawn here if none is given."""
    size = size or grammar.SIZES[rng.choice(3, p=(.2, .3, .5))]
    return _arrange(rng, [(Kind(*combination, size), 1)])


def scene(rng: np.random.Generator, combinations: Sequence[tuple[str, str, str]] = grammar.SEEN) -> Scene:
    """A scene of one to five objects whose looks are among `combinations`."""
    names, shares = zip(*_LAYOUTS)
    layout = names[rng.choice(len(names), p=shares)]
    if layout == 'single':
        return single(rng, combinations[rng.integers(len(combinations))])
    if layout == 'count':
        return _arrange(rng, [(_kinds(rng, combinations, 1, medium=.15)[0], int(rng.integers(2, 6)))])
    if layout == 'pair':
        return _arrange(rng, [(kind, 1) for kind in _kinds(rng, combinations, 2, medium=.5)])
    counts = [(1, 1, 1), (1, 1, 1, 1), (1, 2), (2, 1), (1, 3), (2, 2)][rng.integers(6)]
    return _arrange(rng, list(zip(_kinds(rng, combinations, len(counts), medium=.15), counts)))


def _kinds(rng, combinations, count: int, medium: float) -> list[Kind]:
    """Kinds that differ in shape or colour, so that even the briefest caption tells them apart."""
    kinds = {}
    while len(kinds) < count:
        shape, color, texture = combinations[rng.integers(len(combinations))]
        kinds.setdefault((shape, color), Kind(shape, color, texture, 'medium' if rng.random() < medium else 'small'))
    return list(kinds.values())


def _arrange(rng, wanted: Sequence[tuple[Kind, int]]) -> Scene:
    """Place objects apart from each other; when they do not fit, all become small."""
    kinds = [kind for kind, count in wanted for _ in range(count)]
    two_apart = len(wanted) > 1 and wanted[0][1] == wanted[1][1] == 1
    for attempt in range(2 * _TRIES):
        if attempt == _TRIES:
            kinds = [Kind(k.shape, k.color, k.texture, 'small') for k in kinds]
        objects = _place(rng, kinds, alone=len(wanted) == 1 or len(kinds) == len(wanted))
        relation = _relation(objects) if objects and two_apart else ''
        if objects and (relation or not two_apart):
            break
    else:
        raise AssertionError(f'no room for {wanted}')  # five small objects always fit
    groups, first = [], 0
    for _, count in wanted:
        members = tuple(range(first, first + count))
        groups.append(Group(kinds[first], members, _third(objects[first]) if count == 1 else None))
        first += count
    return Scene(tuple(objects), tuple(groups), grammar.BACKGROUNDS[rng.integers(len(grammar.BACKGROUNDS))], relation)


def _place(rng, kinds: Sequence[Kind], alone: bool) -> list[Object] | None:
    """Objects that do not touch; where their place is told (`alone`), it is clear of the borders between thirds."""
    placed: list[Object] = []
    for kind in kinds:
        diameter = float(rng.uniform(*DIAMETERS[kind.size]))
        margin = diameter / 2 + .02
        for x, y in rng.uniform(margin, 1 - margin, size=(_TRIES, 2)).tolist():
            clear = all(math.hypot(o.x - x, o.y - y) > (o.diameter + diameter) / 2 + .02 for o in placed)
            if clear and not (alone and min(abs(v - t) for v in (x, y) for t in (1 / 3, 2 / 3)) < .025):
                break
        else:
            return None
        placed.append(Object(kind, x, y, diameter, float(rng.uniform(-.15, .15))))
    return placed


def _third(thing: Object) -> tuple[int, int]:
    return int(thing.y * 3), int(thing.x * 3)


def _relation(objects: Sequence[Object]) -> str:
    """How the first object lies to the second, if one direction clearly dominates."""
    dx, dy = objects[0].x - objects[1].x, objects[0].y - objects[1].y
    if max(abs(dx), abs(dy)) < .2 or min(abs(dx), abs(dy)) > .6 * max(abs(dx), abs(dy)):
        return ''
    if abs(dx) > abs(dy):
        return 'left of' if dx < 0 else 'right of'
    return 'above' if dy < 0 else 'below'
