"""BERT's WordPiece (arXiv 1810.04805): a given vocabulary, or one trained on the recipe's own captions at first use."""
import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from bigvlm.core.parts import RecipeError
from bigvlm.data.cache import cache_dir, fetch, fresh, locked
from bigvlm.data.tokenizers._cleaning import cleaning
from bigvlm.data.tokenizers._extra import with_extra

_SPECIAL = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')
_INSIDE = '##'  # begins a piece that continues a word
_LETTERS = 1000  # how many different letters a trained vocabulary keeps


class WordPiece:
    """Texts to ids between [CLS] and [SEP], then [PAD]; the same ids as BERT's own tokenizer.

    `model`: a vocab.txt, one piece per line, as a path or an https URL (checked against `sha256`). Or `train_on` names a data
    set of the recipe whose captions train one of at most `vocab` pieces, kept in the cache. `lower` lowers the case and
    strips accents (uncased models). A word of more than 100 letters, or that no pieces make up, is [UNK]; the names of the
    five special pieces stand for these where a text has them, as in BERT's. A text that is too long is cut and keeps its [SEP].
    `mask_id` is [MASK]; `extra` ids follow the vocabulary for other objectives: sentinels count down from the last.
    `clean` mends texts first ('whitespace': open_clip). `pieces` are the vocabulary's, `encoder` is the library's object.
    """

    def __init__(self, model: str = '', sha256: str = '', train_on: str = '', vocab: int = 0, lower: bool = True,
                 extra: int = 0, clean: str = '', corpus: Callable[[str], Iterable[str]] | None = None):
        if bool(model) == bool(train_on):
            raise RecipeError('give either model (with sha256) or train_on (with vocab)')
        if bool(train_on) != (vocab > 0):
            raise RecipeError(f'vocab: the number of pieces to train with train_on, found {vocab}')
        path = _trained(corpus(train_on), vocab, lower) if train_on else fetch(model, sha256)
        self.pieces = _read(path)
        ids = {piece: i for i, piece in enumerate(self.pieces)}
        if missing := [piece for piece in _SPECIAL if piece not in ids]:
            raise RecipeError(f'model: {path} has no {", ".join(missing)}')
        self.lower, self.clean, self._clean = lower, clean, cleaning(clean)
        self.encoder = _splitter(models.WordPiece(ids, unk_token='[UNK]', max_input_chars_per_word=100), lower)
        self.encoder.add_special_tokens(list(_SPECIAL))
        self.encoder.decoder = decoders.WordPiece(prefix=_INSIDE)
        self.pad_id, _, self.bos_id, self.eot_id, self.mask_id = (ids[piece] for piece in _SPECIAL)
        # A small corpus may give fewer pieces than asked for; the embedding's size is what the recipe says.
        self.size, _ = with_extra(max(vocab, len(self.pieces)), extra)
        self.extra = extra

    def __call__(self, texts: Sequence[str], length: int) -> np.ndarray:
        """Ids of each text, int32 [len(texts), length], padded or cut. RecipeError for a length below 2."""
        if length < 2:
            raise RecipeError(f'length: [CLS] and [SEP] alone are 2 tokens, found {length}')
        ids_NL = np.full((len(texts), length), self.pad_id, np.int32)
        for row, text in zip(ids_NL, texts):
            ids = [*self.encode(text)[:-1][:length - 1], self.eot_id]
            row[:len(ids)] = ids
        return ids_NL

    def encode(self, text: str) -> list[int]:
        """The ids of a whole text with [CLS] and [SEP], however many they are."""
        return [self.bos_id, *self.encoder.encode(self._clean(text), add_special_tokens=False).ids, self.eot_id]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, up to the first [SEP]; special pieces and extra ids are left out. Spaces are BERT's own."""
        kept = []
        for i in map(int, ids):
            if i == self.eot_id:
                break
            if i < len(self.pieces):
                kept.append(i)
        return self.encoder.decode(kept, skip_special_tokens=True)

    @functools.cached_property
    def special(self) -> np.ndarray:
        """bool [size], true for ids that stand for no text: the five special pieces, and ids beyond the pieces."""
        pieces = [piece in _SPECIAL for piece in self.pieces]
        return np.array(pieces + [True] * (self.size - len(pieces)))

    def word_starts(self, ids_L: np.ndarray) -> np.ndarray:
        """bool [L], true where a word begins; every punctuation mark is a word."""
        return self._starts_word[ids_L]

    @functools.cached_property
    def _starts_word(self) -> np.ndarray:
        """bool [size]."""
        pieces = [not piece.startswith(_INSIDE) for piece in self.pieces]
        return np.array(pieces + [True] * (self.size - len(pieces)))


def train(texts: Iterable[str], vocab: int, path: Path, lower: bool = True) -> None:
    """Train at most `vocab` pieces, the five special ones first, and write them to `path`, one per line.

    The same texts give the same file: the library's trainer numbers the letters inside words in the order of a hash map with
    a random seed and breaks ties by these numbers, so they are given to it in an order of ours. `texts` are gone through
    twice. RecipeError where there is no text, or `vocab` has no room for its letters.
    """
    encoder = _splitter(models.WordPiece(unk_token='[UNK]'), lower)
    words = Counter(word for text in texts
                    for word, _ in encoder.pre_tokenizer.pre_tokenize_str(encoder.normalizer.normalize_str(text)))
    if not words:
        raise RecipeError('no text to train a tokenizer on')
    counts: Counter[str] = Counter()
    for word, times in words.items():
        counts.update({letter: times * n for letter, n in Counter(word).items()})
    letters = sorted(sorted(counts), key=counts.__getitem__, reverse=True)[:_LETTERS]
    # Also where these texts have a letter only as the first: another text's word is not unknown for that.
    inside = sorted(_INSIDE + letter for letter in {letter for word in words if len(word) > 1 for letter in word} & {*letters})
    if vocab < (least := len(_SPECIAL) + len(letters) + len(inside)):
        raise RecipeError(f'vocab: {least} pieces are needed for the special ones and the letters of the texts alone, found {vocab}')
    trainer = trainers.WordPieceTrainer(vocab_size=vocab, min_frequency=1, special_tokens=[*_SPECIAL, *inside], show_progress=False,
                                        initial_alphabet=letters, limit_alphabet=len(letters))
    encoder.train_from_iterator(texts, trainer)
    ids = encoder.get_vocab()
    with fresh(path) as part:
        part.write_text(''.join(f'{piece}\n' for piece in sorted(ids, key=ids.__getitem__)), encoding='utf-8')


def _splitter(model: models.WordPiece, lower: bool) -> tokenizers.Tokenizer:
    """BERT's cleaning (control characters, case, accents) and splitting (spaces, punctuation, Chinese characters)."""
    encoder = tokenizers.Tokenizer(model)
    encoder.normalizer = normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=lower)
    encoder.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return encoder


def _read(path: Path) -> list[str]:
    try:
        return path.read_text(encoding='utf-8').removesuffix('\n').split('\n')
    except UnicodeDecodeError as error:
        raise RecipeError(f'model: {path} is no list of pieces, one per line ({error})') from None


def _trained(corpus, vocab: int, lower: bool) -> Path:
    """The vocabulary of this corpus and these settings, from the cache or trained now."""
    settings = json.dumps(['wordpiece', corpus.fingerprint, vocab, lower, tokenizers.__version__])
    key = hashlib.sha256(settings.encode()).hexdigest()[:16]
    path = cache_dir('tokenizers') / f'{key}.txt'
    with locked(f'tokenizer-{key}'):
        if not path.exists():
            train(corpus, vocab, path, lower)
    return path
