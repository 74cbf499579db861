"""Nouns of captions by rule: words and phrases of a vocabulary, or what a list of parts of speech calls nouns.

What this cannot: it knows no context. A word that may be a noun or a verb is what its first tag says; 'no dog' has a dog;
'hot dog' is a dog unless the vocabulary has the phrase; synonyms stay apart; plurals are English, and odd ones only as listed.
"""
import re
from collections.abc import Sequence
from pathlib import Path

from bigvlm.core.parts import RecipeError

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_ODD = {'men': 'man', 'women': 'woman', 'children': 'child', 'people': 'person', 'feet': 'foot', 'teeth': 'tooth', 'mice': 'mouse',
        'geese': 'goose', 'oxen': 'ox', 'leaves': 'leaf', 'wolves': 'wolf', 'knives': 'knife', 'loaves': 'loaf', 'shelves': 'shelf',
        'halves': 'half', 'wives': 'wife', 'calves': 'calf', 'scarves': 'scarf'}
_NOUNS = frozenset(('n', 'nn', 'nns', 'nnp', 'nnps', 'noun', 'propn'))
_ADJECTIVES = frozenset(('a', 's', 'j', 'jj', 'adj'))


def words(text: str) -> list[str]:
    """Lower-case words, inner hyphens and apostrophes kept."""
    return [word.lower() for word in _WORD.findall(text)]


def singulars(word: str) -> tuple[str, ...]:
    """What an English plural may be the plural of, by rule; () for what is none."""
    if word in _ODD:
        return (_ODD[word],)
    if len(word) < 4 or not word.endswith('s') or word.endswith(('ss', 'us', 'is')):
        return ()
    if word.endswith('ies'):
        return word[:-1], word[:-3] + 'y'
    return (word[:-1], word[:-2]) if word.endswith(('ses', 'xes', 'zes', 'ches', 'shes', 'oes')) else (word[:-1],)


def _lines(path: Path, option: str) -> list[str]:
    try:
        return path.read_text(encoding='utf-8').splitlines()
    except ValueError as error:
        raise RecipeError(f'{option}: {path} is no text in UTF-8 ({error})') from None


class Vocabulary:
    """Words and phrases, one a line; line number n, from 0, is the id of its noun. Of phrases that begin at one word the longest
    is found; the last word of a text may be a plural of the phrase's."""

    def __init__(self, path: Path):
        self.names = tuple(' '.join(words(line)) for line in _lines(path, '--vocabulary') if line.strip())
        if not self.names or '' in self.names or len(set(self.names)) < len(self.names):
            raise RecipeError(f'--vocabulary: {path} holds {len(self.names)} phrases; valid: different ones, one a line, at least one')
        self._ids = {tuple(name.split()): number for number, name in enumerate(self.names)}
        self._longest: dict[str, int] = {}
        for phrase in self._ids:
            first = phrase[0] if len(phrase) > 1 else ''
            self._longest[first] = max(self._longest.get(first, 1), len(phrase))

    def __call__(self, captions: Sequence[str]) -> tuple[str, ...]:
        """Each noun once, in the order in which they come."""
        return tuple(dict.fromkeys(self.names[number] for caption in captions for number in self._in(words(caption))))

    def id(self, name: str) -> int:
        """Of a noun that was found."""
        return self._ids[tuple(name.split())]

    def _in(self, text: list[str]) -> list[int]:
        found, place = [], 0
        while place < len(text):
            for length in range(min(self._longest.get(text[place], 1), len(text) - place), 0, -1):
                *before, last = text[place:place + length]
                known = [number for form in (last, *singulars(last)) if (number := self._ids.get((*before, form))) is not None]
                if known:
                    found.append(known[0])
                    break
            place += length if known else 1
        return found


class Lexicon:
    """Words with tags of parts of speech, 'WORD<TAB>TAG[,TAG…]' a line. A noun is a run of adjectives and nouns that ends with a
    noun, whose last word is made singular if the list has that; adjectives are left out unless `phrases`."""

    def __init__(self, path: Path, phrases: bool = False):
        self._tags: dict[str, str] = {}
        for number, line in enumerate(_lines(path, '--lexicon'), 1):
            word, tab, tags = line.partition('\t')
            if not tab or not tags.strip():
                raise RecipeError(f'--lexicon: {path}, line {number}: found {line!r}; valid: a word, a tab and its tags, commas between')
            tag = tags.split(',')[0].strip().lower()
            self._tags[word.strip().lower()] = 'noun' if tag in _NOUNS else 'adjective' if tag in _ADJECTIVES else ''
        if 'noun' not in self._tags.values():
            raise RecipeError(f'--lexicon: {path} has no nouns; valid: tags of nouns are {", ".join(sorted(_NOUNS))}')
        self._phrases = phrases

    def __call__(self, captions: Sequence[str]) -> tuple[str, ...]:
        """Each noun once, in the order in which they come."""
        return tuple(dict.fromkeys(noun for caption in captions for noun in self._in(words(caption))))

    def _in(self, text: list[str]) -> list[str]:
        found, run = [], []
        for word in [*text, '']:
            tag = self._tags.get(word) or next((tag for form in singulars(word) if (tag := self._tags.get(form, ''))), '')
            if run and (not tag or tag == 'adjective' and run[-1][1] == 'noun'):
                found += self._ended(run)
                run = []
            if tag:
                run.append((word, tag))
        return found

    def _ended(self, run: list[tuple[str, str]]) -> list[str]:
        kept = [word for word, tag in run if self._phrases or tag == 'noun']
        if run[-1][1] != 'noun':
            return []
        single = next((form for form in singulars(kept[-1]) if self._tags.get(form) == 'noun'), kept[-1])
        return [' '.join([*kept[:-1], single])]
