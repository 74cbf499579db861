import gzip
from pathlib import Path

import numpy as np
import pytest

from bigvlm.core.parts import RecipeError
from bigvlm.data.ops.canonicalize import canonical
from bigvlm.data.pipeline import build_tokenizers
from bigvlm.data.tokenizers import sentencepiece
from bigvlm.data.tokenizers.clip_bpe import ClipBpe
from bigvlm.data.tokenizers.sentencepiece import SentencePiece
from tests.data.fakes import sample, write_tar

GIVEN = Path(__file__).parents[3] / 'shared' / 'data' / 'tokenizers'
given = pytest.mark.skipif(not GIVEN.is_dir(), reason=f'no {GIVEN}')


@pytest.fixture
def small(tmp_path):
    """A SentencePiece model of a few words."""
    path = tmp_path / 'small.model'
    sentencepiece.train(['the red star', 'the blue star', 'the red ring'] * 10, 40, path)
    return str(path)


def test_sentencepiece_pads_and_cuts(small):
    whole = SentencePiece(model=small)(['the red star'], 8)[0]
    end = list(whole).index(1)
    assert whole.dtype == np.int32 and 0 < end <= 7 and not whole[end + 1:].any()
    plain = SentencePiece(model=small, eos='no')(['the red star'], 8)[0]
    assert plain[:end].tolist() == whole[:end].tolist() and not plain[end:].any()
    assert SentencePiece(model=small, eos='sticky')(['the red star'], end)[0].tolist() == [*whole[:end - 1], 1]
    assert SentencePiece(model=small, eos='yes')(['the red star'], end)[0].tolist() == whole[:end].tolist()
    assert SentencePiece(model=small, pad='eos')(['the red star', ''], 8)[:, end:].tolist() == [[1] * (8 - end)] * 2


def test_sentencepiece_decodes_and_cleans(small):
    tokenizer = SentencePiece(model=small, canonicalize=True)
    ids = tokenizer([' The  RED, star!'], 12)
    assert np.array_equal(ids, tokenizer(['the red star'], 12)) and tokenizer.decode(ids[0]) == 'the red star'
    lower = SentencePiece(model=small, lower=True)
    assert np.array_equal(lower(['RED star'], 8), lower(['red star'], 8))
    assert not np.array_equal(SentencePiece(model=small)(['RED star'], 8), lower(['red star'], 8))
    assert (tokenizer.eot_id, tokenizer.pad_id, SentencePiece(model=small, pad='eos').pad_id) == (1, 0, 1)


def test_training_gives_the_same_file_and_whole_words(tmp_path):
    texts = [f'the {color} {shape}' for color in ('red', 'blue') for shape in ('star', 'ring')] * 5
    for name in ('a', 'b'):
        sentencepiece.train(iter(texts), 60, tmp_path / name)
    assert (tmp_path / 'a').read_bytes() == (tmp_path / 'b').read_bytes()
    ids = SentencePiece(model=str(tmp_path / 'a'), eos='no')(['the blue ring'], 8)[0]
    assert np.count_nonzero(ids) == 3
    with pytest.raises(RecipeError, match='no text'):
        sentencepiece.train(iter(['', ' ']), 60, tmp_path / 'c')
    assert not (tmp_path / 'c').exists()


def test_trained_on_a_data_set_and_cached(tmp_path, monkeypatch):
    write_tar(tmp_path / 'a.tar', {str(i): sample(i) for i in range(9)} | {'bad': sample(0, json=b'{"')})
    data = {'train': dict(source=dict(name='webdataset', files=str(tmp_path / 'a.tar')))}
    spec = dict(name='sentencepiece', train_on='train', vocab=300)
    first = build_tokenizers({'text': spec}, data)['text']
    assert first.size == 300  # what the recipe says, though the captions give fewer pieces
    assert first.decode(first(['photo number 3'], 16)[0]) == 'photo number 3'
    monkeypatch.setattr(sentencepiece, 'train', lambda *_: pytest.fail('trained again'))
    assert np.array_equal(build_tokenizers({'text': spec}, data)['text'](['photo 1'], 8), first(['photo 1'], 8))
    with pytest.raises(pytest.fail.Exception, match='again'):
        build_tokenizers({'text': spec | dict(vocab=200)}, data)


@pytest.mark.parametrize('spec, message', [
    (dict(), 'either model .* or train_on'), (dict(model='a', train_on='train'), 'either model'),
    (dict(model='/nowhere.model'), 'no file'), (dict(train_on='train'), 'vocab'),
    (dict(train_on='other', vocab=99), 'other'),
    (dict(model='a', eos='maybe'), 'sticky'), (dict(model='a', shape=1), 'shape: unknown field')])
def test_wrong_specs(spec, message):
    with pytest.raises(RecipeError, match=f'tokenizers.text.*{message}'):
        build_tokenizers({'text': dict(name='sentencepiece', **spec)}, {'train': {}})


def test_a_file_that_is_no_model(tmp_path):
    (tmp_path / 'x.model').write_bytes(b'nonsense')
    with pytest.raises(RecipeError, match='SentencePiece'):
        SentencePiece(model=str(tmp_path / 'x.model'))
    with pytest.raises(RecipeError, match='gzipped'):
        ClipBpe(str(tmp_path / 'x.model'))


@given
def test_t5_known_ids():
    tokenizer = SentencePiece(model=str(GIVEN / 't5_spiece.model'), pad='eos',
                              sha256='d60acb128cf7b7f2536e8f38a5b18a05535c9e14c7a355904270e15b0945ea86')
    ids = tokenizer(['translate English to German: That is good.'], 11)[0]
    assert ids.tolist() == [13959, 1566, 12, 2968, 10, 466, 19, 207, 5, 1, 1]
    assert tokenizer.size == 32000


@given
def test_clip_known_ids():
    tokenizer = ClipBpe(str(GIVEN / 'bpe_simple_vocab_16e6.txt.gz'))
    assert tokenizer.size == 49408 and (tokenizer.bos_id, tokenizer.eot_id) == (49406, 49407)
    assert tokenizer(['a photo of a cat'], 9)[0].tolist() == [49406, 320, 1125, 539, 320, 2368, 49407, 0, 0]
    assert tokenizer(['a photo of a cat'], 4)[0].tolist() == [49406, 320, 1125, 49407]
    messy, clean = '  A Photo\n of &lt;a&gt; Café 12!!', 'a photo of <a> café 12!!'
    assert np.array_equal(tokenizer([messy], 20), tokenizer([clean], 20))
    assert np.array_equal(tokenizer(['<b> &amp;amp; c'], 9), tokenizer(['<b> & c'], 9))
    assert tokenizer.decode(tokenizer(['naïve 東京 😀 café'], 30)[0]) == 'naïve 東京 😀 café'


def test_clip_on_a_tiny_vocabulary(tmp_path):
    path = tmp_path / 'merges.gz'
    with gzip.open(path, 'wt', encoding='utf-8') as file:
        file.write('#version\nc a\nca t</w>\nd o\n')
    tokenizer = ClipBpe(str(path))
    # 256 bytes and 256 that end a word come first, '!' is byte 33 and id 0; then the merges; then start and end.
    assert tokenizer.size == 512 + 3 + 2
    letter = {c: ord(c) - ord('!') for c in 'acdgot'}
    assert tokenizer(['cat dog ca'], 10)[0].tolist() == [
        515, 513, 514, letter['g'] + 256, letter['c'], letter['a'] + 256, 516, 0, 0, 0]
    assert tokenizer.decode([515, 513, 514, letter['g'] + 256, 516, 0]) == 'cat dog'


@pytest.mark.parametrize('kind', ['sentencepiece', 'clip'])
def test_extra_ids_follow_the_vocabulary(kind, small, tmp_path):
    if kind == 'clip':
        (tmp_path / 'merges.gz').write_bytes(gzip.compress(b'#version\nc a\nca t</w>\n'))
    make = {'clip': lambda extra: ClipBpe(str(tmp_path / 'merges.gz'), extra=extra),
            'sentencepiece': lambda extra: SentencePiece(model=small, extra=extra)}[kind]
    plain, more = make(0), make(3)
    assert (more.size, more.mask_id, more.extra) == (plain.size + 3, plain.size, 3) and plain.mask_id is None
    text = 'the red cat star'
    assert np.array_equal(plain([text], 32), more([text], 32))
    assert more.decode([*more.encode('cat')[:-1], more.mask_id, more.size - 1]) == more.decode(more.encode('cat'))
    assert more.special.shape == (more.size,) and more.special[plain.size:].all()
    assert np.array_equal(more.special[:plain.size], plain.special)
    assert {plain.pad_id, plain.eot_id} <= {*np.flatnonzero(plain.special)} and plain.special.sum() < 5
    for wrong in (-1, 1.5):
        with pytest.raises(RecipeError, match='extra'):
            make(wrong)


def test_encode_gives_the_whole_text(small):
    for eos in ('sticky', 'yes', 'no'):
        tokenizer = SentencePiece(model=small, eos=eos)
        ids = tokenizer.encode('the red star ' * 50)
        assert len(ids) > 100 and ids == tokenizer(['the red star ' * 50], len(ids))[0].tolist()
        assert ids.count(tokenizer.eot_id) == (eos != 'no') and (ids[-1] == tokenizer.eot_id) == (eos != 'no')


def test_words_begin_where_they_should(small, tmp_path):
    tokenizer = SentencePiece(model=small)
    ids = np.array(tokenizer.encode('the that star'))  # 'that' was not trained: it is several pieces
    starts = [*np.flatnonzero(tokenizer.word_starts(ids))]
    assert [tokenizer.decode(ids[a:b]) for a, b in zip(starts, starts[1:])] == ['the', 'that', 'star'] and len(starts) == 4 < len(ids)
    (tmp_path / 'merges.gz').write_bytes(gzip.compress(b'#version\nc a\nca t</w>\n'))
    tokenizer = ClipBpe(str(tmp_path / 'merges.gz'), extra=1)
    ids = np.array([*tokenizer.encode('cat cats'), 0])
    assert tokenizer.word_starts(ids).tolist() == [True, True, True, False, False, True, True]  # ca t s
    masked = np.where(np.arange(len(ids)) == 1, tokenizer.mask_id, ids)
    assert tokenizer.word_starts(masked).tolist() == [True, True, True, False, False, True, True]


@given
def test_t5_words():
    tokenizer = SentencePiece(model=str(GIVEN / 't5_spiece.model'), extra=100)
    assert (tokenizer.size, tokenizer.mask_id) == (32100, 32000)
    ids = tokenizer(['unbelievable photographers, twice'], 16)[0]
    starts = tokenizer.word_starts(ids)
    first, second, third, end = np.flatnonzero(starts[:list(ids).index(1) + 1])
    words = [tokenizer.decode(ids[a:b]) for a, b in ((first, second), (second, third), (third, end))]
    assert words == ['unbelievable', 'photographers,', 'twice'] and ids[end] == 1 and third - second > 1


@given
def test_clip_words():
    tokenizer = ClipBpe(str(GIVEN / 'bpe_simple_vocab_16e6.txt.gz'), extra=1)
    assert (tokenizer.size, tokenizer.mask_id) == (49409, 49408)
    ids = tokenizer(['zxqy photo, ok'], 12)[0]
    end = list(ids).index(tokenizer.eot_id)
    starts = [*np.flatnonzero(tokenizer.word_starts(ids)[:end + 1])]
    assert [tokenizer.decode(ids[a:b]) for a, b in zip(starts, starts[1:])] == ['', 'zxqy', 'photo', ',', 'ok']
    assert starts[2] - starts[1] > 1
    assert tokenizer.encode('a cat')[0] == tokenizer.bos_id and tokenizer.encode('a cat')[-1] == tokenizer.eot_id


def test_canonical_text_is_the_ops(small):
    tokenizer = SentencePiece(model=small, canonicalize=True)
    assert np.array_equal(tokenizer(["The_RED, star's"], 16), SentencePiece(model=small)([canonical("The_RED, star's")], 16))
    assert not np.array_equal(tokenizer(['the_red'], 16), tokenizer(['thered'], 16))


def test_what_ends_a_text_may_begin_it(small):
    """For models without a piece for the beginning: decoding does not stop at the first token."""
    tokenizer = SentencePiece(model=small, bos='eos')
    ids = tokenizer(['the red star', ''], 16)
    assert tokenizer.bos_id == tokenizer.eot_id and (ids[:, 0] == tokenizer.bos_id).all()
    assert tokenizer.decode(ids[0]) == 'the red star' and tokenizer.decode(ids[1]) == ''
    assert (ids[0] == tokenizer.eot_id).sum() >= 2
    with pytest.raises(RecipeError, match='bos is yes, no or eos'):
        SentencePiece(model=small, bos='maybe')
