"""Tokenizers of the tokenizers library's format; the ids themselves are compared with transformers in tests/interop."""

import json
import pickle

import numpy as np
import pytest
import tokenizers as library

from bigvlm.core.parts import RecipeError
from bigvlm.data.pipeline import build_tokenizers
from bigvlm.data.tokenizers.hf import Hf
from bigvlm.data.tokenizers.wordpiece import WordPiece

TEXTS = ['a photo of a cat', 'a dog, photographed', 'of cats and dogs']
SPECIAL = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']


@pytest.fixture
def bert(tmp_path):
    """(tokenizer.json, vocab.txt) of the same WordPiece."""
    encoder = library.BertWordPieceTokenizer()
    encoder.train_from_iterator(TEXTS * 3, vocab_size=60, min_frequency=1, special_tokens=SPECIAL, show_progress=False)
    ids = encoder.get_vocab()
    (tmp_path / 'vocab.txt').write_text(''.join(f'{piece}\n' for piece in sorted(ids, key=ids.__getitem__)))
    encoder = library.BertWordPieceTokenizer(ids)  # with [CLS] and [SEP] around texts
    encoder.enable_truncation(3)
    encoder.save(str(tmp_path / 'tokenizer.json'))
    return str(tmp_path / 'tokenizer.json'), str(tmp_path / 'vocab.txt')


@pytest.fixture
def byte_level(tmp_path):
    encoder = library.ByteLevelBPETokenizer()
    encoder.train_from_iterator(TEXTS * 3, vocab_size=300, special_tokens=['<s>', '<pad>', '</s>', '<unk>', '<mask>'], show_progress=False)
    encoder.save_model(str(tmp_path))
    return str(tmp_path)


def test_is_berts_tokenizer(bert):
    ours, known = Hf(bert[0]), WordPiece(bert[1])
    for length in (12, 5, 2):
        assert np.array_equal(ours(TEXTS, length), known(TEXTS, length))
    assert ours(TEXTS, 12).dtype == np.int32
    for name in ('pad_id', 'bos_id', 'eot_id', 'mask_id', 'size', 'extra'):
        assert getattr(ours, name) == getattr(known, name), name
    ids_L = ours(TEXTS[1:], 16)[0]
    assert np.array_equal(ours.special, known.special) and np.array_equal(ours.word_starts(ids_L), known.word_starts(ids_L))
    assert ours.decode(ids_L) == known.decode(ids_L) == 'a dog, photographed'
    assert np.array_equal(pickle.loads(pickle.dumps(ours))(TEXTS, 7), ours(TEXTS, 7))
    with pytest.raises(RecipeError, match='2 tokens, found 1'):
        ours(TEXTS, 1)


def test_byte_level_pieces_from_two_files(byte_level):
    ours = Hf(byte_level)
    ids_L = ours(['a photo of 一 cat'], 20)[0]
    assert (ids_L[0], ours.eot_id, ours.pad_id, ids_L[-1], ours.mask_id) == (0, 2, 1, 1, 4)
    assert ours.decode(ids_L) == 'a photo of 一 cat'
    end = list(ids_L).index(2)
    starts = ours.word_starts(ids_L)[:end + 1]
    assert starts.sum() == 1 + 5 + 1 and starts[[0, 1, end]].all()  # start, five words, end
    assert np.array_equal(ours(['a photo of a cat'], 4)[0], [*ours.encode('a photo of a cat')[:3], 2])


def test_padding_on_the_left_other_ends_and_extra_ids(byte_level):
    plain, left = Hf(byte_level), Hf(byte_level, side='left', extra=3)
    ids_L = left(TEXTS[:1], 30)[0]
    count = np.count_nonzero(ids_L != 1)
    assert np.array_equal(ids_L[-count:], plain.encode(TEXTS[0])) and (ids_L[:-count] == 1).all()
    assert left.decode(ids_L) == TEXTS[0] and left.size == plain.size + 3 and left.special[plain.size:].all()
    inner = plain.encode(TEXTS[0])[1:-1]
    assert Hf(byte_level, adds='none', eos='</s>').encode(TEXTS[0]) == inner
    assert Hf(byte_level, adds='eos', eos='<unk>').encode(TEXTS[0]) == [*inner, 3]
    both = Hf(byte_level, adds='both', bos='<mask>', eos='</s>', pad='</s>')
    assert both.encode('a') == [4, *plain.encode('a')[1:-1], 2] and both.pad_id == 2
    assert both.decode(both(['a cat'], 9)[0]) == 'a cat'


def test_cleaning_before_the_pieces(byte_level):
    plain = Hf(byte_level)
    assert Hf(byte_level, lower=True).encode('A Cat') == plain.encode('a cat') != plain.encode('A Cat')
    assert Hf(byte_level, clean='whitespace').encode(' cats  &amp;amp;\tdogs ') == plain.encode('cats & dogs')
    assert Hf(byte_level, clean='canonicalize').encode('A_cat, &quot;dog&quot;!') == plain.encode('a cat dog')


def test_wrong_specs(bert, byte_level, tmp_path):
    def build(**spec):
        build_tokenizers({'text': dict(name='hf', **spec)}, {'train': {}})
    (tmp_path / 'bad').mkdir()
    (tmp_path / 'bad' / 'tokenizer.json').write_text('{}')
    no_end = json.loads(open(bert[0]).read()) | dict(post_processor=None)
    (tmp_path / 'plain.json').write_text(json.dumps(no_end))
    for path, message in ((tmp_path / 'bad', 'no tokenizer.json \\('), ('/nowhere.json', 'no file'),
                          (tmp_path / 'plain.json', 'nothing ends a text')):
        with pytest.raises(RecipeError, match=f'tokenizers.text.*{message}'):
            build(model=str(path))
    for fields, message in ((dict(pad='<gone>'), "pad: .* no piece '<gone>'"), (dict(side='top'), 'side'), (dict(adds='all'), 'adds'),
                            (dict(clean='nfc'), 'clean'), (dict(adds='bos', eos='[SEP]'), 'bos'), (dict(sha256='0' * 64), 'sha256'),
                            (dict(extra=-1), 'extra')):
        with pytest.raises(RecipeError, match=f'tokenizers.text.*{message}'):
            build(model=bert[0], **fields)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(RecipeError, match='nor vocab.json'):
        build(model=str(tmp_path / 'empty'))
