"""Easy data augmentation of texts (EDA, arXiv 1901.11196), as DeCLIP's second text (arXiv 2110.05208)."""
import json
import string
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample
from bigvlm.data.ops import _text

Synonyms = Mapping[str, Sequence[str]]


def eda(swap: float = 1., delete: float = 1., replace: float = 0., insert: float = 0., share: float = .1,
        synonyms: str = '', key: str = 'caption', out: str = 'caption') -> Callable:
    """Changes a few words of the text at `key`, in one of four ways drawn by weight, and puts the result at `out`.

    With n = max(1, int(share * words)): `swap` exchanges two words, n times; `delete` drops each word with probability
    `share`, but one stays; `replace` puts a synonym in the place of n distinct words; `insert` adds a synonym of one of the
    words somewhere, n times. Words are parted by spaces. The latter two need the file `synonyms`: .json {word: [synonyms]},
    or .tsv with a word and its synonyms in each line, words in lower case; words that it lacks (stop words) are left alone.
    DeCLIP: swap, delete and replace alike. BadExample where there is no text.
    """
    names, weights_4 = _text.weights(dict(swap=swap, delete=delete, replace=replace, insert=insert))
    _text.share('share', share)
    if (replace or insert) and not synonyms:
        raise RecipeError(f'{"replace" if replace else "insert"}: needs `synonyms`, a file of words and their synonyms; without one, '
                          'swap and delete remain')
    known = _read(Path(synonyms).expanduser()) if synonyms else {}

    def op(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        words = (example.get(key) or '').split()
        if not words:
            raise BadExample(f'no {key}')
        way = names[_text.draw(rng, weights_4)]
        changed = _delete(words, share, rng) if way == 'delete' else _WAYS[way](words, max(1, int(share * len(words))), known, rng)
        return {**example, out: ' '.join(changed)}
    return op


def _delete(words: list[str], share: float, rng: np.random.Generator) -> list[str]:
    kept = [word for word, chance in zip(words, rng.random(len(words))) if chance >= share]
    return kept or [words[rng.integers(len(words))]]


def _swap(words: list[str], times: int, known: Synonyms, rng: np.random.Generator) -> list[str]:
    words = list(words)
    for _ in range(times if len(words) > 1 else 0):
        a, b = rng.choice(len(words), 2, replace=False)
        words[a], words[b] = words[b], words[a]
    return words


def _replace(words: list[str], times: int, known: Synonyms, rng: np.random.Generator) -> list[str]:
    """All occurrences of a word are replaced by the same synonym, as in EDA."""
    distinct = sorted({core for word in words if (core := _parted(word)[1].lower()) in known})
    chosen = [distinct[i] for i in rng.permutation(len(distinct))[:times]]
    new = {core: known[core][rng.integers(len(known[core]))] for core in chosen}
    return [before + new[core.lower()] + after if core.lower() in new else before + core + after
            for before, core, after in map(_parted, words)]


def _insert(words: list[str], times: int, known: Synonyms, rng: np.random.Generator) -> list[str]:
    words = list(words)
    cores = [core for word in words if (core := _parted(word)[1].lower()) in known]
    for _ in range(times if cores else 0):
        found = known[cores[rng.integers(len(cores))]]
        words.insert(int(rng.integers(len(words) + 1)), found[rng.integers(len(found))])
    return words


_WAYS = dict(swap=_swap, replace=_replace, insert=_insert)


def _parted(word: str) -> tuple[str, str, str]:
    """Punctuation before a word, the word, punctuation after it."""
    core = word.strip(string.punctuation)
    start = word.find(core) if core else len(word)
    return word[:start], core, word[start + len(core):]


def _read(path: Path) -> dict[str, tuple[str, ...]]:
    try:
        text = path.read_text(encoding='utf-8')
        if path.suffix == '.json':
            found = json.loads(text)
        else:
            found = {cells[0]: cells[1:] for line in text.splitlines() if line.strip() for cells in [line.split('\t')]}
    except (OSError, ValueError) as error:
        raise RecipeError(f'synonyms: cannot read {path} ({error})') from None
    if not isinstance(found, dict) or not all(isinstance(words, list) and all(isinstance(w, str) for w in words)
                                              for words in found.values()):
        raise RecipeError(f'synonyms: {path} must map words to lists of words')
    found = {word.lower(): kept for word, words in found.items() if (kept := tuple(w for w in words if w and w != word))}
    if not found:
        raise RecipeError(f'synonyms: {path} has no word with a synonym')
    return found
