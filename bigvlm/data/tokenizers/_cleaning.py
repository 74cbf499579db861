"""What other libraries do to a text before they cut it into pieces."""
import html
import unicodedata
from collections.abc import Callable

import ftfy
import regex

from bigvlm.core.parts import RecipeError
from bigvlm.data.ops.canonicalize import canonical

_SPACES = regex.compile(r'\s+')


def _as_is(text: str) -> str:
    return text


def _mended(text: str) -> str:
    """Wrongly decoded letters put right, curly quotes straight, HTML entities as what they stand for (OpenAI's CLIP, open_clip)."""
    return html.unescape(html.unescape(ftfy.fix_text(text)))


def _spaced(text: str) -> str:
    return ' '.join(_mended(text).split())


def _lower(text: str) -> str:
    return _spaced(text).lower()


def _canonical(text: str) -> str:
    return canonical(_mended(text))


def _composed(text: str) -> str:
    # Letter by letter, as Rust does it: Python's lower() has another small sigma for the end of a word.
    return ''.join(map(str.lower, _SPACES.sub(' ', unicodedata.normalize('NFC', text))))


# The names are those of open_clip's `clean`; '' is nothing, 'nfc' what transformers' tokenizer of CLIP does.
CLEANINGS: dict[str, Callable[[str], str]] = {
    '': _as_is,
    'whitespace': _spaced,
    'lower': _lower,
    'canonicalize': _canonical,
    'nfc': _composed}


def cleaning(name: str, valid: tuple[str, ...] = ('', 'whitespace', 'lower', 'canonicalize')) -> Callable[[str], str]:
    """The cleaning of this name, one of `valid`; RecipeError otherwise."""
    if name not in valid:
        raise RecipeError(f'clean: {name!r} is none of {", ".join(map(repr, valid))}')
    return CLEANINGS[name]
