"""The words of bigvlm_scenes: what objects exist, which combinations training never shows, and how a scene is said.

Every phrase that names objects keeps its character range, so that a caption's words can be tied to boxes and masks.
"""
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

SHAPES = ('circle', 'square', 'triangle', 'star', 'heart', 'cross', 'ring', 'moon', 'arrow')
COLORS = ('red', 'orange', 'yellow', 'green', 'cyan', 'blue', 'purple', 'pink', 'black')
TEXTURES = ('solid', 'striped', 'dotted', 'checkered')
SIZES = ('small', 'medium', 'large')
BACKGROUNDS = ('white', 'gray', 'beige')
NUMBERS = ('no', 'one', 'two', 'three', 'four', 'five')
PLACES = (('in the top left', 'at the top', 'in the top right'),
          ('on the left', 'in the middle', 'on the right'),
          ('in the bottom left', 'at the bottom', 'in the bottom right'))
RELATIONS = ('left of', 'right of', 'above', 'below')

# German: noun (gender, nominative plural, dative plural) and adjective stems that all decline regularly.
_NOUNS_DE = {'circle': ('Kreis', 'm', 'Kreise', 'Kreisen'), 'square': ('Quadrat', 'n', 'Quadrate', 'Quadraten'),
             'triangle': ('Dreieck', 'n', 'Dreiecke', 'Dreiecken'), 'star': ('Stern', 'm', 'Sterne', 'Sternen'),
             'heart': ('Herz', 'n', 'Herzen', 'Herzen'), 'cross': ('Kreuz', 'n', 'Kreuze', 'Kreuzen'),
             'ring': ('Ring', 'm', 'Ringe', 'Ringen'), 'moon': ('Mond', 'm', 'Monde', 'Monden'),
             'arrow': ('Pfeil', 'm', 'Pfeile', 'Pfeilen')}
_STEMS_DE = {'red': 'rot', 'orange': 'orangefarben', 'yellow': 'gelb', 'green': 'grün', 'cyan': 'türkisfarben',
             'blue': 'blau', 'purple': 'violett', 'pink': 'rosafarben', 'black': 'schwarz', 'solid': 'einfarbig',
             'striped': 'gestreift', 'dotted': 'gepunktet', 'checkered': 'kariert', 'small': 'klein',
             'medium': 'mittelgroß', 'large': 'groß'}
_NUMBERS_DE = ('kein', 'ein', 'zwei', 'drei', 'vier', 'fünf')
_PLACES_DE = (('oben links', 'oben', 'oben rechts'), ('links', 'in der Mitte', 'rechts'),
              ('unten links', 'unten', 'unten rechts'))
_RELATIONS_DE = {'left of': 'links von', 'right of': 'rechts von', 'above': 'über', 'below': 'unter'}
_BACKGROUNDS_DE = {'white': 'weißem', 'gray': 'grauem', 'beige': 'beigem'}

COMBINATIONS = tuple(product(SHAPES, COLORS, TEXTURES))


def held_out(shape: str, color: str, texture: str) -> bool:
    """Whether training never shows this shape in this colour and texture: one texture for eight in nine pairs of the others.

    Any two of the three attributes do occur together in training; the three together do not.
    """
    s, c = SHAPES.index(shape), COLORS.index(color)
    return c != s and TEXTURES.index(texture) == (s + c) % len(TEXTURES)


HELD_OUT = tuple(c for c in COMBINATIONS if held_out(*c))
SEEN = tuple(c for c in COMBINATIONS if not held_out(*c))


def name(combination: tuple[str, str, str]) -> str:
    """('star', 'red', 'striped') -> 'red striped star', as in captions and as the name of a class."""
    shape, color, texture = combination
    return f'{color} {texture} {shape}'


@dataclass(frozen=True)
class Kind:
    """What a group of equal objects looks like."""
    shape: str
    color: str
    texture: str
    size: str


@dataclass(frozen=True)
class Group:
    """`members`: numbers of the scene's objects of this kind; `place`: (row, column) in thirds of the image."""
    kind: Kind
    members: tuple[int, ...]
    place: tuple[int, int] | None = None


@dataclass
class Caption:
    """Text under construction; `spans` holds (object, first character, one past the last character)."""
    text: str = ''
    spans: list[tuple[int, int, int]] = field(default_factory=list)

    def say(self, words: str, members: Sequence[int] = ()) -> 'Caption':
        """Append `words`, which name the objects `members`."""
        self.text += ' ' if self.text else ''
        start = len(self.text)
        self.text += words
        self.spans += [(member, start, len(self.text)) for member in members]
        return self


def english(group: Group, fields: Sequence[str]) -> str:
    """'two red striped stars', with the attributes named in `fields`."""
    count = len(group.members)
    words = [getattr(group.kind, f) for f in fields]
    noun = group.kind.shape if count == 1 else group.kind.shape + ('es' if group.kind.shape == 'cross' else 's')
    phrase = ' '.join([*words, noun])
    if count > 1:
        return f'{NUMBERS[count]} {phrase}'
    return f'{"an" if phrase[0] in "aeiou" else "a"} {phrase}'


def german(group: Group, fields: Sequence[str], dative: bool = False) -> str:
    """'zwei rote gestreifte Sterne', declined for the nominative or the dative."""
    count = len(group.members)
    noun, gender, plural, dative_plural = _NOUNS_DE[group.kind.shape]
    if count > 1:
        article, noun = _NUMBERS_DE[count], dative_plural if dative else plural
    else:
        article = 'einem' if dative else 'ein'
    ending = 'en' if dative else 'e' if count > 1 else {'m': 'er', 'n': 'es'}[gender]
    return ' '.join([article, *(_STEMS_DE[getattr(group.kind, f)] + ending for f in fields), noun])


def _listed(groups: Sequence[Group], phrase, joint: str, place, opening: str = '') -> Caption:
    caption = Caption(opening)
    for k, group in enumerate(groups):
        if 0 < k < len(groups) - 1:
            caption.text += ','
        elif k:
            caption.say(joint)
        caption.say(phrase(group), group.members)
        if place and group.place:
            caption.say(place[group.place[0]][group.place[1]])
    return caption


def captions(groups: Sequence[Group], background: str, relation: str = '', language: str = 'en') -> list[Caption]:
    """What can be said of a scene, from brief to detailed; the last two are the detailed ones.

    `relation` ('' for none) holds between the first two groups; `language` is 'en' or 'de'.
    """
    in_german = language == 'de'
    phrase, joint, places = (german, 'und', _PLACES_DE) if in_german else (english, 'and', PLACES)
    ground = f'auf {_BACKGROUNDS_DE[background]} Hintergrund' if in_german else f'on a {background} background'
    full = ('size', 'color', 'texture')
    plain = [_listed(groups, lambda g, f=fields: phrase(g, f), joint, None) for fields in (full[1:2], full[1:])]
    placed = _listed(groups, lambda g: phrase(g, full), joint, places).say(ground)
    if not relation:
        one = len(groups[0].members) == 1
        opening = ('hier ist' if one else 'hier sind') if in_german else ('there is' if one else 'there are')
        return [*plain, placed, _listed(groups, lambda g: phrase(g, full), joint, places, opening)]
    first, second, *rest = groups
    related = Caption().say(phrase(first, full), first.members)
    related.say(_RELATIONS_DE[relation] if in_german else relation)
    related.say(german(second, full, dative=True) if in_german else english(second, full), second.members)
    for group in rest:
        related.say(joint).say(phrase(group, full), group.members)
    return [*plain, placed, related]
