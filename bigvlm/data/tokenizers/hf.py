"""Tokenizers in the tokenizers library's format: the tokenizer.json that Hugging Face models come with."""
import functools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import processors

from bigvlm.core.parts import RecipeError
from bigvlm.data.cache import fetch
from bigvlm.data.tokenizers._cleaning import cleaning
from bigvlm.data.tokenizers._extra import with_extra

_ADDS = ('file', 'none', 'bos', 'eos', 'both')
_MASKS = ('[MASK]', '<mask>')


class Hf:
    """Texts to ids by a tokenizer.json, or by vocab.json and merges.txt of a byte-level BPE (RoBERTa, GPT-2).

    `model`: the tokenizer.json (a path, or an https URL with its `sha256`) or a folder with the files. `pad`, `bos`, `eos`: names of
    pieces; '' for the last two are those that the file itself puts around a text. `adds`: what is put around a text: 'file' as the
    file says, 'none', 'bos', 'eos', 'both'. A text that is too long is cut and keeps its end; padding is on the `side` 'right' or 'left'.
    `lower` lowers the case before anything else (SigLIP 2); `clean` mends the text first, as open_clip does for all tokenizers
    ('whitespace', 'lower', 'canonicalize'). `mask_id` is [MASK] or <mask> where there is one, else the first of `extra` ids, which
    follow the vocabulary; sentinels count down from the last. `encoder` is the library's object, `folder` where the files are.
    """

    def __init__(self, model: str, sha256: str = '', pad: str = '', bos: str = '', eos: str = '', adds: str = 'file',
                 side: str = 'right', lower: bool = False, clean: str = '', extra: int = 0):
        if adds not in _ADDS or side not in ('right', 'left'):
            raise RecipeError(f'adds is one of {", ".join(_ADDS)}, side is right or left; found {adds!r}, {side!r}')
        self.encoder, self.folder = _open(model, sha256)
        self.lower, self.clean, self.side, self.adds, self.extra = lower, clean, side, adds, extra
        self._clean = cleaning(clean)
        self._json = json.loads(self.encoder.to_str())
        self._before, self._after = self._around(adds, bos, eos)
        self.bos_id = self._id('bos', bos) if bos else next(iter(self._before), None)
        self.eot_id = self._id('eos', eos) if eos else next(reversed(self._after), None)
        if self.eot_id is None:
            raise RecipeError("eos: nothing ends a text in this tokenizer's file; name a piece, and adds='eos' if texts are to end with it")
        self.pad_id = self._id('pad', pad or self._padding())
        pieces = max(self.encoder.get_vocab(with_added_tokens=True).values()) + 1
        self.size, first_extra = with_extra(pieces, extra)
        masks = [i for i in map(self.encoder.token_to_id, _MASKS) if i is not None]
        self.mask_id = masks[0] if masks else first_extra

    def __call__(self, texts: Sequence[str], length: int) -> np.ndarray:
        """Ids of each text, int32 [len(texts), length]. RecipeError for a length that has no place for what is put around a text."""
        around = len(self._before) + len(self._after)
        if length < around:
            raise RecipeError(f'length: what begins and ends a text alone is {around} tokens, found {length}')
        ids_NL = np.full((len(texts), length), self.pad_id, np.int32)
        for row, text in zip(ids_NL, texts):
            ids = [*self._before, *self._encode(text)[:length - around], *self._after]
            row[slice(len(ids)) if self.side == 'right' else slice(length - len(ids), None)] = ids
        return ids_NL

    def encode(self, text: str) -> list[int]:
        """The ids of a whole text with its beginning and end, however many they are."""
        return [*self._before, *self._encode(text), *self._after]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, up to its end; special pieces and extra ids are left out."""
        ids = [int(i) for i in ids]
        if self.side == 'left':
            ids = ids[next((k for k, i in enumerate(ids) if i != self.pad_id), len(ids)):]
        begun = len(self._before) if ids[:len(self._before)] == self._before else 0
        end = next((k for k, i in enumerate(ids) if i == self.eot_id and k >= begun), len(ids))
        kept = [i for i in ids[begun:end] if i < self.size - self.extra and i != self.pad_id]
        text = self.encoder.decode(kept, skip_special_tokens=True)
        return text.replace(self._ending, ' ').strip() if self._ending else text

    @functools.cached_property
    def special(self) -> np.ndarray:
        """bool [size], true for ids that stand for no text: special pieces, padding, and ids that no piece has."""
        special_V = np.ones(self.size, bool)
        special_V[list(self.encoder.get_vocab(with_added_tokens=True).values())] = False
        special_V[[i for i, piece in self.encoder.get_added_tokens_decoder().items() if piece.special]] = True
        special_V[[self.pad_id, self.eot_id, *self._before, *self._after]] = True
        return special_V

    def word_starts(self, ids_L: np.ndarray) -> np.ndarray:
        """bool [L], true where a word begins, as far as pieces tell it: by ## or </w>, or by the space that comes before."""
        after_special_L = np.concatenate([[True], self.special[ids_L[:-1]]])
        if self._ending:  # the piece before says it
            return after_special_L | np.concatenate([[True], self._marked[ids_L[:-1]]])
        return after_special_L | self._marked[ids_L]

    @functools.cached_property
    def _ending(self) -> str:
        """What pieces at the end of a word end with, or ''."""
        return self._json['model'].get('end_of_word_suffix') or ''

    @functools.cached_property
    def _marked(self) -> np.ndarray:
        """bool [size]: pieces that tell that a word begins here or, where pieces have an ending, after them."""
        inside = self._json['model'].get('continuing_subword_prefix') or ''
        space = 'Ġ' if '"ByteLevel"' in json.dumps(self._json['pre_tokenizer']) else '▁'
        marked_V = self.special.copy()
        for piece, i in self.encoder.get_vocab(with_added_tokens=True).items():
            marked_V[i] |= (piece.endswith(self._ending) if self._ending else not piece.startswith(inside) if inside else
                            piece.startswith(space))
        return marked_V

    def _encode(self, text: str) -> list[int]:
        text = self._clean(text)
        # Letter by letter as the library does it: Python's lower() has another small sigma for the end of a word.
        text = ''.join(map(str.lower, text)) if self.lower else text
        return self.encoder.encode(text, add_special_tokens=False).ids

    def _around(self, adds: str, bos: str, eos: str) -> tuple[list[int], list[int]]:
        """Ids before and after a text."""
        if adds != 'file':
            return ([self._id('bos', bos)] if adds in ('bos', 'both') else [], [self._id('eos', eos)] if adds in ('eos', 'both') else [])
        text, whole = (self.encoder.encode('a', add_special_tokens=added).ids for added in (False, True))
        first = next(k for k in range(len(whole) + 1) if whole[k:k + len(text)] == text)
        return whole[:first], whole[first + len(text):]

    def _id(self, field: str, piece: str) -> int:
        found = self.encoder.token_to_id(piece)
        if found is None:
            raise RecipeError(f'{field}: this tokenizer has no piece {piece!r}')
        return found

    def _padding(self) -> str:
        """The name of the piece that pads where the recipe does not say it."""
        known = self._json.get('padding') or {}
        return known.get('pad_token') or next((name for name in ('[PAD]', '<pad>') if self.encoder.token_to_id(name) is not None), '')


def _open(model: str, sha256: str) -> tuple[tokenizers.Tokenizer, Path]:
    """(the encoder, its folder)."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        path = fetch(model, sha256)
    elif (path := folder / 'tokenizer.json').is_file():
        fetch(str(path), sha256)  # checks the hash
    elif (folder / 'vocab.json').is_file() and (folder / 'merges.txt').is_file():
        return _byte_level(folder), folder
    else:
        raise RecipeError(f'model: {folder} has no tokenizer.json, nor vocab.json and merges.txt')
    try:
        encoder = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower class
        raise RecipeError(f'model: {path} is no tokenizer.json ({error})') from None
    encoder.no_truncation()
    encoder.no_padding()
    return encoder, path.parent


def _byte_level(folder: Path) -> tokenizers.Tokenizer:
    """As transformers' RobertaTokenizer makes it from the two files."""
    try:
        encoder = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(str(folder / 'vocab.json'), str(folder / 'merges.txt')))
    except Exception as error:  # the library raises no narrower class
        raise RecipeError(f'model: vocab.json and merges.txt of {folder} are no byte-level BPE ({error})') from None
    encoder.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.decoder = tokenizers.decoders.ByteLevel()
    begin, end = (encoder.token_to_id(piece) for piece in ('<s>', '</s>'))
    if begin is None or end is None:
        raise RecipeError(f'model: {folder / "vocab.json"} has no <s> and </s>')
    encoder.add_special_tokens([p for p in ('<s>', '<pad>', '</s>', '<unk>') if encoder.token_to_id(p) is not None])
    if encoder.token_to_id('<mask>') is not None:
        encoder.add_special_tokens([tokenizers.AddedToken('<mask>', lstrip=True)])
    encoder.post_processor = processors.RobertaProcessing(('</s>', end), ('<s>', begin), True, False)
    return encoder
