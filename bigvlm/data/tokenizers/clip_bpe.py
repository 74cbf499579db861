"""OpenAI CLIP's lower-case byte-pair tokenizer (Radford et al., 2021), from its published list of merges."""
import functools
import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import regex

from bigvlm.core.parts import RecipeError
from bigvlm.data.cache import fetch
from bigvlm.data.tokenizers._cleaning import cleaning
from bigvlm.data.tokenizers._extra import with_extra

_WORDS = regex.compile(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
                       regex.IGNORECASE)
_MERGES = 49152 - 256 - 2  # the published file lists more than CLIP uses
_END = '</w>'
_GZIP = b'\x1f\x8b'


class ClipBpe:
    """Texts to ids between start and end of text; `model` is bpe_simple_vocab_16e6.txt.gz, or transformers' merges.txt of the same
    merges, a path or an https URL.

    The vocabulary: 256 bytes, 256 bytes that end a word, the merges, start and end of text: 49,408 for CLIP's file.
    `pad`: 'zero' (OpenAI, open_clip) is also the piece '!'; 'eot' (transformers) fills up with ends of text. `clean`: 'lower' mends
    wrongly decoded letters and HTML entities (OpenAI, open_clip); 'nfc' does not (transformers); both lower the case.
    A text that is too long is cut and keeps its end of text. `extra` ids follow the vocabulary, for masks and sentinels: `mask_id` is
    the first of them, sentinels count down from the last. `merges` [(piece, piece)] and `pieces` are the vocabulary.
    """

    def __init__(self, model: str, sha256: str = '', extra: int = 0, pad: str = 'zero', clean: str = 'lower'):
        if pad not in ('zero', 'eot'):
            raise RecipeError(f'pad: {pad!r} is none of zero, eot')
        self.clean, self._clean = clean, cleaning(clean, ('lower', 'nfc'))
        path = fetch(model, sha256)
        lines = _lines(path)
        merges = [tuple(line.split()) for line in lines[1:_MERGES + 1] if line.strip()]  # the first line is a header
        if not merges or any(len(m) != 2 for m in merges):
            raise RecipeError(f'model: {path} is no list of merges, gzipped or not: a header, then two pieces a line')
        self._letters = _byte_letters()
        bytes_ = [self._letters[b] for b in _byte_order()]
        pieces = [*bytes_, *(b + _END for b in bytes_), *map(''.join, merges), '<|startoftext|>', '<|endoftext|>']
        self.merges, self.pieces = merges, pieces
        self._ids = {piece: i for i, piece in enumerate(pieces)}
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._known: dict[str, list[int]] = {}  # words met before
        self.bos_id, self.eot_id = len(pieces) - 2, len(pieces) - 1
        self.pad_id = self.eot_id if pad == 'eot' else 0
        self.size, self.mask_id = with_extra(len(pieces), extra)
        self.extra = extra

    def __call__(self, texts: Sequence[str], length: int) -> np.ndarray:
        """Ids of each text, int32 [len(texts), length]."""
        ids_NL = np.full((len(texts), length), self.pad_id, np.int32)
        for row, text in zip(ids_NL, texts):
            ids = self.encode(text)[:-1][:length - 1] + [self.eot_id]
            row[:len(ids)] = ids
        return ids_NL

    def encode(self, text: str) -> list[int]:
        """The ids of a whole text with its start and end, however many they are."""
        return [self.bos_id, *self._encode(text), self.eot_id]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, up to the end of text; extra ids are left out."""
        pieces = []
        for i in map(int, ids):
            if i == self.eot_id:
                break
            if i != self.bos_id and i < len(self.pieces):
                pieces.append(self.pieces[i])
        values = {letter: value for value, letter in self._letters.items()}
        words = ''.join(pieces).replace(_END, ' ')
        return b''.join(b' ' if c == ' ' else bytes([values[c]]) for c in words).decode('utf-8', 'replace').strip()

    @functools.cached_property
    def special(self) -> np.ndarray:
        """bool [size], true for ids that stand for no text: start, end, padding and the extra ones."""
        special_V = np.zeros(self.size, bool)
        special_V[[self.pad_id, self.bos_id, self.eot_id]] = True
        special_V[len(self.pieces):] = True
        return special_V

    def word_starts(self, ids_L: np.ndarray) -> np.ndarray:
        """bool [L], true where a word begins; words and punctuation are apart."""
        return np.concatenate([[True], self._ends_word[ids_L[:-1]]])

    @functools.cached_property
    def _ends_word(self) -> np.ndarray:
        """bool [size]: nothing that follows these ids is of the same word."""
        whole = [piece.endswith(_END) or i in (self.bos_id, self.eot_id) for i, piece in enumerate(self.pieces)]
        return np.array(whole + [True] * self.extra)

    def _encode(self, text: str) -> list[int]:
        found = []
        for word in _WORDS.findall(self._clean(text)):
            ids = self._known.get(word)
            if ids is None:
                ids = self._known[word] = [self._ids[piece] for piece in self._merge(word)]
            found += ids
        return found

    def _merge(self, word: str) -> list[str]:
        """The word's bytes, the best-ranked neighbouring pair joined again and again."""
        if word in ('<|startoftext|>', '<|endoftext|>'):
            return [word]
        pieces = [self._letters[b] for b in word.encode()]
        pieces[-1] += _END
        while len(pieces) > 1:
            best = min(zip(pieces, pieces[1:]), key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if best not in self._ranks:
                break
            joined, i = [], 0
            while i < len(pieces):
                both = tuple(pieces[i:i + 2]) == best
                joined.append(''.join(best) if both else pieces[i])
                i += 2 if both else 1
            pieces = joined
        return pieces


def _lines(path: Path) -> list[str]:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if data[:2] == _GZIP else data).decode().split('\n')
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise RecipeError(f'model: {path} is no list of merges ({error})') from None


def _byte_order() -> list[int]:
    """The order of the 256 bytes in the vocabulary: printable Latin-1 first."""
    printable = [*range(ord('!'), ord('~') + 1), *range(ord('¡'), ord('¬') + 1), *range(ord('®'), ord('ÿ') + 1)]
    return printable + [b for b in range(256) if b not in printable]


def _byte_letters() -> dict[int, str]:
    """Every byte as a visible letter: itself where printable, else one from 256 on."""
    order = _byte_order()
    printable = 188
    return {b: chr(b) if k < printable else chr(256 + k - printable) for k, b in enumerate(order)}
