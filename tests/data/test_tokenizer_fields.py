"""Fields with which our tokenizers do what those of other libraries do; the ids are compared with theirs in tests/interop."""

import gzip

import numpy as np
import pytest
import sentencepiece as spm

from bigvlm.core.parts import RecipeError
from bigvlm.data.tokenizers.clip_bpe import ClipBpe
from bigvlm.data.tokenizers.sentencepiece import SentencePiece
from bigvlm.data.tokenizers.wordpiece import WordPiece

MERGES = '#version: 0.2\nc a\nca t</w>\nd o\n'


def test_clips_merges_from_either_file(tmp_path):
    (tmp_path / 'merges.gz').write_bytes(gzip.compress(MERGES.encode()))
    (tmp_path / 'merges.txt').write_text(MERGES)
    first, second = (ClipBpe(str(tmp_path / name)) for name in ('merges.gz', 'merges.txt'))
    assert first.merges == second.merges == [('c', 'a'), ('ca', 't</w>'), ('d', 'o')] and first.pieces == second.pieces
    (tmp_path / 'cut.gz').write_bytes(gzip.compress(MERGES.encode())[:-9])
    with pytest.raises(RecipeError, match='no list of merges'):
        ClipBpe(str(tmp_path / 'cut.gz'))


def test_clip_as_transformers_does_it(tmp_path):
    (tmp_path / 'merges.txt').write_text(MERGES)
    openai, theirs = (ClipBpe(str(tmp_path / 'merges.txt'), **fields) for fields in ({}, dict(pad='eot', clean='nfc')))
    assert openai(['cat'], 6)[0].tolist() == [515, 513, 516, 0, 0, 0]
    assert theirs(['cat'], 6)[0].tolist() == [515, 513, 516, 516, 516, 516] and theirs.decode(theirs(['cat'], 6)[0]) == 'cat'
    assert openai.encode('&lt;') == openai.encode('<') and theirs.encode('&lt;') != theirs.encode('<')
    assert openai.encode('“a”') == openai.encode('"a"') and theirs.encode('“a”') != theirs.encode('"a"')
    assert theirs.encode('E\u0301') == theirs.encode('é') == openai.encode('é')
    assert theirs.decode(theirs.encode('ΣΑΣ')) == 'σασ' and openai.decode(openai.encode('ΣΑΣ')) == 'σας'
    for fields in (dict(pad='end'), dict(clean='canonicalize')):
        with pytest.raises(RecipeError, match=next(iter(fields))):
            ClipBpe(str(tmp_path / 'merges.txt'), **fields)


@pytest.fixture
def xlm_roberta(tmp_path):
    """A model with the control pieces that XLM-RoBERTa's has."""
    with open(tmp_path / 'x.model', 'wb') as file:
        spm.SentencePieceTrainer.train(sentence_iterator=iter(['the red star', 'the blue star', 'a red ring'] * 10), model_writer=file,
                                       vocab_size=30, hard_vocab_limit=False, unk_id=0, bos_id=1, eos_id=2, minloglevel=2)
    return str(tmp_path / 'x.model')


def test_fairseqs_ids(xlm_roberta):
    plain, ours = SentencePiece(model=xlm_roberta, bos='yes', pad='eos'), SentencePiece(model=xlm_roberta, fairseq=True, extra=2)
    text = 'the red ring'
    assert ours.encode(text) == [0, *(i + 1 for i in plain.encode(text)[1:-1]), 2]
    assert ours.encode('the 東')[-2] == 3 and plain.encode('the 東')[-2] == 0
    assert (ours.bos_id, ours.pad_id, ours.eot_id) == (0, 1, 2)
    assert (ours.mask_id, ours.size) == (plain.size + 1, plain.size + 4)
    ids_L = ours([text], 20)[0]
    assert ours.decode(ids_L) == text and (ids_L[len(ours.encode(text)):] == 1).all()
    assert ours([text], 4)[0].tolist() == [*ours.encode(text)[:3], 2]
    assert np.flatnonzero(ours.special).tolist() == [0, 1, 2, 3, *range(plain.size + 1, plain.size + 4)]
    assert ours.word_starts(np.array(ours.encode(text))).tolist()[1:-1] == plain.word_starts(np.array(plain.encode(text))).tolist()[1:-1]


def test_texts_are_mended_and_underscores_go(xlm_roberta, tmp_path):
    plain = SentencePiece(model=xlm_roberta, bos='yes', pad='eos')
    mended = SentencePiece(model=xlm_roberta, bos='yes', pad='eos', clean='whitespace')
    assert mended.encode(' the&nbsp;red\tring') == plain.encode('the red ring')
    spaced, joined = (SentencePiece(model=xlm_roberta, pad='eos', canonicalize=value) for value in (True, 'joined'))
    assert joined.encode('re_d ST-AR') == spaced.encode('red star') != spaced.encode('re_d ST-AR') == spaced.encode('re d star')
    with pytest.raises(RecipeError, match='canonicalize'):
        SentencePiece(model=xlm_roberta, canonicalize='spaced')
    (tmp_path / 'vocab.txt').write_text('[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n##b\n&\n')
    pieces = WordPiece(str(tmp_path / 'vocab.txt'), clean='whitespace')
    assert pieces.encode('ab&amp;a') == WordPiece(str(tmp_path / 'vocab.txt')).encode('ab & a') == [2, 5, 6, 7, 5, 3]
