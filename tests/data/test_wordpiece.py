"""WordPiece: splitting, pieces, odd texts, training, and the same ids as transformers' BertTokenizer."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch_models
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from bigvlm.core.parts import RecipeError
from bigvlm.data.ops.mask_tokens import mask_tokens
from bigvlm.data.pipeline import build_tokenizers
from bigvlm.data.tokenizers import wordpiece
from bigvlm.data.tokenizers.wordpiece import WordPiece
from tests.data.fakes import sample, write_tar

GIVEN = Path(__file__).parents[3] / 'shared' / 'data' / 'tokenizers' / 'bert_base_uncased_vocab.txt'
given = pytest.mark.skipif(not GIVEN.is_file(), reason=f'no {GIVEN}')
PIECES = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'cafe', 'un', '##aff', '##able', ',', '!', '中', '文', 'a', '##a', 'Café', '##ff')
PAD, UNK, CLS, SEP, MASK = range(5)
ODD = ('', ' ', '\t\n', 'Café, unaffable!', 'a' * 100, 'a' * 101, 'x' * 200, '中文a', 'ab😀 👩‍👩‍👧', 'e\u0301 \u0130stanbul ß',
       'a\x00b\ufffd\u200bc', '[MASK] and [mask]', '[SEP][PAD]', "don't-stop_me.now", 'مرحبا हिन्दी 한국어', '\u00a0nbsp\u2028line ', 'unaffable ' * 80)


@pytest.fixture
def vocab(tmp_path):
    (tmp_path / 'vocab.txt').write_text(''.join(f'{piece}\n' for piece in PIECES), encoding='utf-8')
    return str(tmp_path / 'vocab.txt')


def pieces(tokenizer, text):
    return [PIECES[i] for i in tokenizer.encode(text)[1:-1]]


def test_cleans_splits_and_takes_the_longest_pieces(vocab):
    tokenizer = WordPiece(model=vocab)
    assert pieces(tokenizer, ' Café,UNAFFABLE!\n') == ['cafe', ',', 'un', '##aff', '##able', '!']
    assert pieces(tokenizer, '中文a') == ['中', '文', 'a'] and pieces(tokenizer, 'aaa') == ['a', '##a', '##a']
    assert pieces(tokenizer, 'unaffa caf 😀') == ['un', '##aff', '##a', '[UNK]', '[UNK]']  # a word is one [UNK]
    assert pieces(tokenizer, 'a\u200b\x00a e\u0301') == ['a', '##a', '[UNK]']
    assert len(pieces(tokenizer, 'a' * 100)) == 100 and pieces(tokenizer, 'a' * 101) == ['[UNK]']
    assert pieces(WordPiece(model=vocab, lower=False), 'Café cafe CAFE') == ['Café', 'cafe', '[UNK]']
    assert tokenizer.encode('[MASK] a [mask]') == [CLS, MASK, 13, UNK, UNK, UNK, SEP]


def test_pads_and_cuts(vocab):
    tokenizer = WordPiece(model=vocab)
    ids = tokenizer(['unaffable', '', 'a a a a a a'], 5)
    assert ids.dtype == np.int32
    assert ids.tolist() == [[CLS, 6, 7, 8, SEP], [CLS, SEP, PAD, PAD, PAD], [CLS, 13, 13, 13, SEP]]
    assert tokenizer(['unaffable'], 4)[0].tolist() == [CLS, 6, 7, SEP] and tokenizer([], 4).shape == (0, 4)
    assert tokenizer.decode(tokenizer(['Café, unaffable a!'], 12)[0]) == 'cafe, unaffable a!'
    assert tokenizer.decode([CLS, 6, MASK, 7, SEP, 13]) == 'unaff'
    with pytest.raises(RecipeError, match='length: .* found 1'):
        tokenizer(['a'], 1)


def test_words_specials_and_extra_ids(vocab):
    tokenizer = WordPiece(model=vocab, extra=3)
    assert (tokenizer.size, tokenizer.extra, tokenizer.mask_id, tokenizer.eot_id, tokenizer.pad_id) == (20, 3, MASK, SEP, PAD)
    assert np.flatnonzero(tokenizer.special).tolist() == [0, 1, 2, 3, 4, 17, 18, 19]
    ids = np.array([*tokenizer.encode('unaffable, aa'), 18])
    assert tokenizer.word_starts(ids).tolist() == [True, True, False, False, True, True, False, True, True]
    assert tokenizer.decode([13, 17, 19]) == 'a' and WordPiece(model=vocab).size == 17
    op, rng = mask_tokens({'text': tokenizer}, rate=1., mask=1., random=0.), np.random.default_rng(0)
    masked = op({'text': tokenizer(['unaffable'], 6)[0]}, rng)
    assert masked['masked_text'].tolist() == [CLS, MASK, MASK, MASK, SEP, PAD]


def test_trains_whole_words_and_the_same_file_in_every_process(tmp_path):
    texts = [f'The {color} {shape}, crêpe.' for color in ('red', 'blue') for shape in ('star', 'ring')] * 5
    code = f'from bigvlm.data.tokenizers import wordpiece; from pathlib import Path; wordpiece.train({texts!r}, 60, Path("NAME"))'
    for name in 'ab':  # each with other seeds of the trainer's hash maps
        subprocess.run([sys.executable, '-c', code.replace('NAME', str(tmp_path / name))], check=True, cwd=Path(__file__).parents[2])
    assert (tmp_path / 'a').read_bytes() == (tmp_path / 'b').read_bytes()
    tokenizer = WordPiece(model=str(tmp_path / 'a'))
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eot_id, tokenizer.mask_id) == (0, 2, 3, 4) and tokenizer.size <= 60
    assert len(tokenizer.encode('the blue crepe.')) == 6 and tokenizer.decode(tokenizer.encode('sings')) == 'sings'
    with pytest.raises(RecipeError, match='no text'):
        wordpiece.train(['', ' '], 60, tmp_path / 'c')
    with pytest.raises(RecipeError, match='vocab: 3. pieces are needed .*, found 9'):
        wordpiece.train(texts, 9, tmp_path / 'c')
    assert not (tmp_path / 'c').exists()


def test_trained_on_a_data_set_and_cached(tmp_path, monkeypatch):
    write_tar(tmp_path / 'a.tar', {str(i): sample(i) for i in range(9)})
    data = {'train': dict(source=dict(name='webdataset', files=str(tmp_path / 'a.tar')))}
    spec = dict(name='wordpiece', train_on='train', vocab=300, extra=2)
    first = build_tokenizers({'text': spec}, data)['text']
    assert first.size == 302  # what the recipe says, though the captions give fewer pieces
    assert first.special[100:].all() and first.word_starts(np.array([301])).all()
    assert first.decode(first(['Photo number 3'], 16)[0]) == 'photo number 3'
    monkeypatch.setattr(wordpiece, 'train', lambda *_: pytest.fail('trained again'))
    assert np.array_equal(build_tokenizers({'text': spec}, data)['text'](['photo 1'], 8), first(['photo 1'], 8))
    with pytest.raises(pytest.fail.Exception, match='again'):
        build_tokenizers({'text': spec | dict(lower=False)}, data)


@pytest.mark.parametrize('spec, message', [
    (dict(), 'either model .* or train_on'), (dict(model='a', train_on='train'), 'either model'), (dict(model='/nowhere.txt'), 'no file'),
    (dict(train_on='train'), 'vocab: .* found 0'), (dict(model='a', vocab=9), 'vocab: .* found 9'),
    (dict(model='a', eos='no'), 'eos: unknown')])
def test_wrong_specs(spec, message):
    with pytest.raises(RecipeError, match=f'tokenizers.text.*{message}'):
        build_tokenizers({'text': dict(name='wordpiece', **spec)}, {'train': {}})


def test_a_file_that_is_no_vocabulary(tmp_path):
    (tmp_path / 'a').write_bytes(b'\xff\xfe\x00')
    (tmp_path / 'b').write_text('[PAD]\n[UNK]\ncat\n')
    for name, message in (('a', 'no list of pieces'), ('b', r'has no \[CLS\], \[SEP\], \[MASK\]')):
        with pytest.raises(RecipeError, match=f'^model: .*{message}'):
            WordPiece(model=str(tmp_path / name))


@given
def test_known_ids():
    tokenizer = WordPiece(model=str(GIVEN), sha256='07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3')
    assert tokenizer(['Hello, world!'], 8)[0].tolist() == [101, 7592, 1010, 2088, 999, 102, 0, 0]
    assert (tokenizer.size, tokenizer.mask_id, tokenizer.pad_id) == (30_522, 103, 0)


@given
@pytest.mark.parity
@pytest.mark.parametrize('lower', [True, False])
def test_equals_transformers(lower, tmp_path):
    transformers = torch_models.transformers()
    (tmp_path / 'vocab.txt').write_bytes(GIVEN.read_bytes())
    theirs = transformers.BertTokenizerFast.from_pretrained(tmp_path, do_lower_case=lower)
    ours = WordPiece(model=str(GIVEN), lower=lower)

    def same(text):
        assert ours.encode(text) == theirs(text)['input_ids'], ascii(text)
        cut = theirs(text, max_length=12, truncation=True, padding='max_length')['input_ids']
        assert ours([text], 12)[0].tolist() == cut
        assert ours.decode(cut) == theirs.decode(cut, skip_special_tokens=True)
    for text in ODD:
        same(text)
    settings(max_examples=150, deadline=None)(drawn(st.text(max_size=40))(same))()
