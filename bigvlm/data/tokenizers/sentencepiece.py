"""SentencePiece models: a given one, or one trained on the recipe's own captions at first use."""
import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece as spm

from bigvlm.core.parts import RecipeError
from bigvlm.data.cache import cache_dir, fetch, fresh, locked
from bigvlm.data.ops.canonicalize import canonical
from bigvlm.data.tokenizers._cleaning import cleaning
from bigvlm.data.tokenizers._extra import with_extra

_SPACE = '▁'  # U+2581, SentencePiece's sign for a space before a piece
_FAIRSEQ = 2  # ids that XLM-RoBERTa has and its model has not: <pad> and <mask>
_FAIRSEQ_UNKNOWN = 3
_ENDS = ('yes', 'no', 'sticky')


class SentencePiece:
    """Texts to ids by the model at `model` (path or https URL, checked against `sha256`), or one trained here.

    `train_on` names a data set of the recipe whose captions train a model of at most `vocab` pieces, kept in the cache.
    `bos`, `eos`: 'yes' or 'no'; bos may be 'eos', for models without a piece for it: a text begins with what ends it; eos may be
    'sticky': then it also ends a text that is cut. `pad`: 'pad' or 'eos' fills
    up to the length (SigLIP: eos='sticky', pad='eos'). `lower` lowers the case (SigLIP 2), `canonicalize` removes ASCII
    punctuation too (SigLIP; what it does exactly: ops/canonicalize.py; 'joined' as transformers does it: underscores go instead of
    becoming spaces). `extra` ids follow the vocabulary, for masks and sentinels, as T5's 100 do: `mask_id` is the first of them,
    sentinels count down from the last.
    `fairseq`: the ids of XLM-RoBERTa, which begin with <s>, <pad>, </s> and <unk>, end with <mask> and begin and end texts with <s>
    and a sticky </s>, whatever the other fields say. `clean` mends texts first ('whitespace': open_clip). `proto` is the model file's
    content.
    """

    def __init__(self, model: str = '', sha256: str = '', train_on: str = '', vocab: int = 0, bos: str = 'no',
                 eos: str = 'sticky', pad: str = 'pad', lower: bool = False, canonicalize: bool | str = False,
                 extra: int = 0, fairseq: bool = False, clean: str = '', corpus: Callable[[str], Iterable[str]] | None = None):
        if bool(model) == bool(train_on):
            raise RecipeError('give either model (with sha256) or train_on (with vocab)')
        if bos not in ('yes', 'no', 'eos') or eos not in _ENDS or pad not in ('pad', 'eos'):
            raise RecipeError(f'bos is yes, no or eos, eos one of {", ".join(_ENDS)}, pad is pad or eos; '
                              f'found {bos}, {eos}, {pad}')
        if canonicalize not in (False, True, 'joined'):
            raise RecipeError(f"canonicalize: {canonicalize!r} is none of False, True, 'joined'")
        if train_on and vocab < 8:
            raise RecipeError(f'vocab: the number of pieces to train, found {vocab}')
        self.lower, self.canonicalize, self.fairseq = lower or bool(canonicalize), canonicalize, fairseq
        self.clean, self._mend = clean, cleaning(clean)
        path = _trained(corpus(train_on), vocab, self._clean) if train_on else fetch(model, sha256)
        try:
            self._model = spm.SentencePieceProcessor(model_file=str(path))
        except (OSError, RuntimeError) as error:
            raise RecipeError(f'model: {path} is no SentencePiece model ({error})') from None
        self.proto, self.extra = self._model.serialized_model_proto(), extra
        if fairseq:
            self.eos, self._bos, self.eot_id, self.pad_id = 'sticky', 0, 2, 1
            self.size, _ = with_extra(self._model.vocab_size() + _FAIRSEQ, extra)
            self.bos_id, self.mask_id = 0, self.size - extra - 1
            return
        piece = {'yes': ('bos', self._model.bos_id), 'eos': ('eos', self._model.eos_id)}.get(bos)
        self.eos, self._bos = eos, self._special(piece[0], piece[1]()) if piece else None
        self.bos_id = self._bos
        self.eot_id = self._model.eos_id() if eos == 'no' else self._special('eos', self._model.eos_id())
        self.pad_id = self._special(pad, self._model.pad_id() if pad == 'pad' else self._model.eos_id())
        # A trained model may find fewer pieces than asked for; the embedding's size is what the recipe says.
        self.size, self.mask_id = with_extra(max(vocab, self._model.vocab_size()), extra)

    def __call__(self, texts: Sequence[str], length: int) -> np.ndarray:
        """Ids of each text, int32 [len(texts), length], padded or cut at the end."""
        ids_NL = np.full((len(texts), length), self.pad_id, np.int32)
        for row, text in zip(ids_NL, texts):
            ids = self.encode(text)
            if len(ids) > length and self.eos == 'sticky':
                ids = [*ids[:length - 1], self.eot_id]
            row[:len(ids)] = ids[:length]
        return ids_NL

    def encode(self, text: str) -> list[int]:
        """The ids of a whole text with its beginning and end, if they are marked, however many they are."""
        ids = self._model.encode(self._clean(text))  # a list of texts would start threads, for more than they save
        if self.fairseq:
            ids = [_FAIRSEQ_UNKNOWN if i == self._model.unk_id() else i + 1 for i in ids]
        ids = ids if self._bos is None else [self._bos, *ids]
        return ids if self.eos == 'no' else [*ids, self.eot_id]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, up to the first end of text; padding and extra ids are left out."""
        pieces, kept = self._model.vocab_size(), []
        for place, i in enumerate(map(int, ids)):
            if i == self.eot_id and not (place == 0 and i == self._bos):
                break
            if self.fairseq:
                i = i - 1 if i > _FAIRSEQ_UNKNOWN else pieces
            if i not in (self.pad_id, self._bos) and i < pieces:
                kept.append(i)
        return self._model.decode(kept)

    def piece(self, i: int) -> str:
        """The model's piece of an id; the ids of `fairseq` are others."""
        return self._model.id_to_piece(i)

    @property
    def unknown_id(self) -> int:
        return self._model.unk_id()

    @functools.cached_property
    def special(self) -> np.ndarray:
        """bool [size], true for ids that stand for no text: control pieces, padding, unknown, and ids beyond the pieces."""
        special_V = np.ones(self.size, bool)
        model = self._model
        if self.fairseq:
            special_V[_FAIRSEQ_UNKNOWN + 1:model.vocab_size() + 1] = False
            return special_V
        special_V[:model.vocab_size()] = [model.is_control(i) or model.is_unknown(i) for i in range(model.vocab_size())]
        special_V[[self.pad_id, *filter(lambda i: i is not None and i >= 0, (self._bos, self.eot_id))]] = True
        return special_V

    def word_starts(self, ids_L: np.ndarray) -> np.ndarray:
        """bool [L], true where a word begins: after a space. Punctuation belongs to the word that it stands at."""
        return self._starts_word[ids_L]

    @functools.cached_property
    def _starts_word(self) -> np.ndarray:
        """bool [size]."""
        pieces = [self._model.id_to_piece(i) for i in range(self._model.vocab_size())]
        pieces = ['', *pieces] if self.fairseq else pieces
        return np.array([piece.startswith(_SPACE) for piece in pieces] + [True] * (self.size - len(pieces))) | self.special

    def _clean(self, text: str) -> str:
        text = self._mend(text)
        if self.fairseq:  # white space to transformers, which splits there, and a letter to the model
            text = text.replace('\x85', ' ')
        if self.canonicalize:
            return canonical(text.replace('_', '') if self.canonicalize == 'joined' else text)
        return text.lower() if self.lower else text

    def _special(self, name: str, found: int) -> int:
        if found < 0:
            raise RecipeError(f'{name}: this model has no {name} piece')
        return found


def train(texts: Iterable[str], vocab: int, path: Path) -> None:
    """Train a byte-pair model of at most `vocab` pieces (pad 0, eos 1, unknown 2, no bos) and write it to `path`.

    Byte-pair rather than unigram, which cuts the words of a small corpus to pieces: it gains little from whole ones.
    The same texts give the same file: one thread, no sampling. Raises RecipeError where there is no text.
    """
    texts = iter(texts)
    first = next((text for text in texts if text.strip()), None)
    if first is None:
        raise RecipeError('no text to train a tokenizer on')
    with fresh(path) as part, open(part, 'wb') as file:
        spm.SentencePieceTrainer.train(
            sentence_iterator=itertools.chain([first], texts), model_writer=file, model_type='bpe', vocab_size=vocab,
            hard_vocab_limit=False, num_threads=1, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
            character_coverage=.9999, minloglevel=2)


def _trained(corpus, vocab: int, clean: Callable[[str], str]) -> Path:
    """The model of this corpus and these settings, from the cache or trained now."""
    settings = json.dumps(['bpe', corpus.fingerprint, vocab, clean('A_b, C. &lt;'), spm.__version__])
    key = hashlib.sha256(settings.encode()).hexdigest()[:16]
    path = cache_dir('tokenizers') / f'{key}.model'
    with locked(f'tokenizer-{key}'):
        if not path.exists():
            train(map(clean, corpus), vocab, path)
    return path
