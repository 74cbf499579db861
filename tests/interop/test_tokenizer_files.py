"""Token ids against transformers and open_clip, in both directions, on odd captions."""

import gzip
import json

import numpy as np

import pytest
import sentencepiece as spm
import tokenizers as library
import torch_models

from bigvlm.core import parts
from bigvlm.core.foreign import WeightsError
from bigvlm.interop import tokenizer_files, tokenizers
from tests.interop import odd

pytestmark = pytest.mark.parity
LENGTH = 20
EVERY = [*odd.PLAIN, *odd.BROKEN, odd.UNDERSCORES, odd.SIGMA, odd.RUNS, odd.MARKS]
# SentencePiece's models by the tokenizers library: it normalizes letters with many marks otherwise, and of the ways to cut a run of the
# same sign that have the same score under a unigram model it takes another.
BYTE_PAIRS, UNIGRAM = (odd.MARKS,), (odd.MARKS, odd.RUNS)
WORDS = [*odd.PLAIN[3:5], *(text for text in odd.PLAIN if len(text) < 100), 'a dog and a cat', 'the photo of the dog', *odd.BROKEN]


def build(spec):
    return parts.build('bigvlm.data.tokenizers', spec, 'tokenizer', corpus=None)


@pytest.fixture(scope='module')
def models(tmp_path_factory):
    """{name: file} of small vocabularies of every kind, and OpenAI's merges."""
    folder = tmp_path_factory.mktemp('models')

    def trained(name, **more):
        with open(folder / name, 'wb') as file:
            spm.SentencePieceTrainer.train(sentence_iterator=iter(WORDS * 5), model_writer=file, hard_vocab_limit=False, num_threads=1,
                                           minloglevel=2, **more)
    t5 = dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    trained('unigram.model', model_type='unigram', vocab_size=200, **t5)
    trained('bpe.model', model_type='bpe', vocab_size=220, **t5)
    trained('gemma.model', model_type='bpe', vocab_size=500, byte_fallback=True, normalization_rule_name='identity', pad_id=0, eos_id=1,
            bos_id=2, unk_id=3, add_dummy_prefix=False, remove_extra_whitespaces=False)
    trained('xlmr.model', model_type='unigram', vocab_size=200, unk_id=0, bos_id=1, eos_id=2)
    pieces = library.Tokenizer(library.models.WordPiece(unk_token='[UNK]'))
    pieces.normalizer, pieces.pre_tokenizer = library.normalizers.BertNormalizer(), library.pre_tokenizers.BertPreTokenizer()
    pieces.train_from_iterator(WORDS, library.trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'], show_progress=False))
    ids = pieces.get_vocab()
    (folder / 'vocab.txt').write_text(''.join(f'{piece}\n' for piece in sorted(ids, key=ids.__getitem__)), encoding='utf-8')
    merges = torch_models.load('open_clip').tokenizer.default_bpe()
    with gzip.open(merges, 'rt', encoding='utf-8') as file:
        (folder / 'merges.txt').write_text(''.join(file.readlines()[:3000]), encoding='utf-8')
    return {path.name: str(path) for path in folder.iterdir()} | {'openai': merges}


def of_transformers(folder, texts, **more):
    tokenizer = torch_models.transformers().AutoTokenizer.from_pretrained(folder, **more)
    assert tokenizer.model_max_length == LENGTH
    return np.array(tokenizer(texts, padding='max_length', truncation=True)['input_ids'])


def same(ours, theirs, texts, of=lambda ids: ids):
    wrong = [text for text, mine, other in zip(texts, ours, theirs) if not np.array_equal(of(mine), of(other))]
    assert not wrong


def folder_of(path, model_type, **config):
    path.mkdir(exist_ok=True)
    (path / 'config.json').write_text(json.dumps(dict(model_type=model_type, **config)))
    return path


SPECS = {  # spec, model_type, texts whose ids are others there, as a note or the comment above says
    'clip': (dict(name='clip_bpe', model='merges.txt', clean='nfc', pad='eot'), 'clip', ()),
    'siglip': (dict(name='sentencepiece', model='unigram.model', canonicalize='joined', pad='eos'), 'siglip', ()),
    'siglip_ours': (dict(name='sentencepiece', model='bpe.model', canonicalize=True), 'siglip', (odd.UNDERSCORES,)),
    'siglip_case': (dict(name='sentencepiece', model='unigram.model', pad='eos'), 'siglip', UNIGRAM),
    'siglip_lower': (dict(name='sentencepiece', model='bpe.model', lower=True), 'siglip', BYTE_PAIRS),
    'no_end': (dict(name='sentencepiece', model='bpe.model', eos='no'), 'siglip', BYTE_PAIRS),
    'begun': (dict(name='sentencepiece', model='unigram.model', bos='eos', canonicalize=True), 'siglip', UNIGRAM),
    'siglip2': (dict(name='sentencepiece', model='gemma.model', lower=True), 'siglip2', (odd.SIGMA,)),
    'altclip': (dict(name='sentencepiece', model='xlmr.model', fairseq=True), 'altclip', UNIGRAM),
    'bert': (dict(name='wordpiece', model='vocab.txt'), 'bert', ()),
    'chinese_clip': (dict(name='wordpiece', model='vocab.txt', lower=False), 'chinese_clip', ())}


@pytest.mark.parametrize('name', SPECS)
def test_files_give_transformers_our_ids(name, models, tmp_path):
    spec, model_type, others = SPECS[name]
    texts = [text for text in EVERY if text not in others]
    ours = build(spec | dict(model=models[spec['model']]))
    folder = folder_of(tmp_path / 'out', model_type)
    written = tokenizer_files.write(ours, folder, model_type, LENGTH)
    theirs = of_transformers(folder, texts)
    same(ours(texts, LENGTH), theirs, texts)
    assert len(written.notes) == (name in ('siglip_ours', 'siglip2'))
    if name != 'no_end':  # nothing in its file ends a text, so no tower could be pooled there
        back = build(tokenizers.describe(folder))
        same(back(texts, LENGTH), theirs, texts)
        assert (back.pad_id, back.size) == (ours.pad_id, ours.size)


def test_clip_with_mended_texts(models, tmp_path):
    """Up to the end of text; ids behind it are padding, which differs. Of what ftfy changes, what goes letter by letter."""
    ours = build(dict(name='clip_bpe', model=models['merges.txt']))
    folder = folder_of(tmp_path / 'out', 'clip')
    written = tokenizer_files.write(ours, folder, 'clip', LENGTH)
    texts = [*odd.PLAIN, odd.UNDERSCORES, odd.SIGMA, odd.RUNS, odd.MARKS, 'fish &amp; chips &#39;n&#39; &quot;peas&quot; &amp;lt;']
    theirs = of_transformers(folder, texts)
    same(ours(texts, LENGTH), theirs, texts, lambda ids: ids[:list(ids).index(ours.eot_id) + 1])
    assert len(written.notes) == 2 and 'mojibake' in written.notes[0] and 'padding' in written.notes[1]
    mojibake = odd.BROKEN[:1]
    assert ours.decode(ours(mojibake, LENGTH)[0]) == 'café au lait' != ours.decode(of_transformers(folder, mojibake)[0])
    tokenizer = torch_models.transformers().AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(theirs[3], skip_special_tokens=True) == 'a photo of a cat' == ours.decode(theirs[3])
    assert set(tokenizer('a').keys()) == {'input_ids', 'attention_mask'}
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (ours.bos_id, ours.eot_id)


def byte_level(folder, **more):
    """Files of a small byte-level BPE as RoBERTa's."""
    encoder = library.ByteLevelBPETokenizer(**more)
    encoder.train_from_iterator(WORDS, vocab_size=400, special_tokens=['<s>', '<pad>', '</s>', '<unk>', '<mask>'], show_progress=False)
    encoder.save_model(str(folder))
    return folder


def clip_small(models):
    merges = [line.split() for line in ('c a', 'ca t</w>', 'd o', 'p h', 'ph o', 't o</w>', 'o f</w>')]
    letters = build(dict(name='clip_bpe', model=models['merges.txt'])).pieces[:512]
    ids = {piece: i for i, piece in enumerate([*letters, *map(''.join, merges), '<|startoftext|>', '<|endoftext|>'])}
    return dict(vocab=ids, merges=[tuple(merge) for merge in merges])


@pytest.mark.parametrize('kind', ['clip', 'clip_pad', 'clip_files', 'roberta', 'roberta_space', 'roberta_files', 'siglip2', 'siglip2_left',
                                  'siglip2_plain', 'xlm_roberta', 'bert', 'bert_cased', 'pair', 'any'])
def test_folders_of_transformers_give_us_their_ids(kind, models, tmp_path):
    """Folders as transformers' own save_pretrained leaves them, or with the files of older ones only."""
    transformers, folder = torch_models.transformers(), folder_of(tmp_path / 'in', kind.partition('_')[0])
    more = dict(model_max_length=LENGTH)
    if kind.startswith('clip'):
        small = clip_small(models)
        tokenizer = transformers.CLIPTokenizer(**small, **more, **(dict(pad_token='!') if kind == 'clip_pad' else {}))
    elif kind.startswith('roberta'):
        tokenizer = transformers.RobertaTokenizer.from_pretrained(byte_level(folder), **more, add_prefix_space=kind.endswith('space'))
    elif kind.startswith('siglip2'):
        tokenizer_files.write(build(dict(name='sentencepiece', model=models['gemma.model'], lower=True)), folder, 'siglip2', LENGTH)
        side = dict(padding_side='left' if kind.endswith('left') else 'right')
        ends = dict(add_bos_token=True, add_eos_token=False) if kind.endswith('plain') else {}
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, bos_token='<s>', **side, **ends)
    elif kind == 'xlm_roberta':
        folder_of(folder, 'altclip')
        tokenizer_files.write(build(dict(name='sentencepiece', model=models['xlmr.model'], fairseq=True)), folder, 'altclip', LENGTH)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    elif kind in ('bert', 'bert_cased', 'pair'):
        pieces = {piece: i for i, piece in enumerate(open(models['vocab.txt'], encoding='utf-8').read().splitlines())}
        tokenizer = transformers.BertTokenizer(vocab=pieces, do_lower_case=kind != 'bert_cased', **more)
        if kind == 'pair':
            folder_of(folder, 'vision-text-dual-encoder', text_config=dict(model_type='bert'), vision_config=dict(model_type='vit'))
    else:
        encoder = library.ByteLevelBPETokenizer(lowercase=True)
        encoder.train_from_iterator(WORDS, vocab_size=300, special_tokens=['<pad>', '</s>'], show_progress=False)
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=encoder._tokenizer, pad_token='<pad>', eos_token='</s>',
                                                         add_eos_token=True, **more)
    tokenizer.save_pretrained(folder)
    if kind.endswith('files'):
        (folder / 'tokenizer.json').unlink()
        if kind == 'clip_files':
            (folder / 'vocab.json').write_text(json.dumps(small['vocab']))
            (folder / 'merges.txt').write_text('#version: 0.2\n' + ''.join(f'{a} {b}\n' for a, b in small['merges']))
    theirs = of_transformers(folder, EVERY)
    spec = tokenizers.describe(folder)
    ours = build(spec)
    same(ours(EVERY, LENGTH), theirs, EVERY)
    assert tokenizers.describe(tmp_path) is None
    out = folder_of(tmp_path / 'out', kind.partition('_')[0])
    if kind == 'xlm_roberta':
        folder_of(out, 'altclip')
    tokenizer_files.write(spec, out, json.loads((out / 'config.json').read_text())['model_type'], LENGTH)
    same(of_transformers(out, EVERY), theirs, EVERY)


def opened(folder, text_cfg, context=LENGTH):
    (folder / 'open_clip_config.json').write_text(json.dumps(dict(model_cfg=dict(text_cfg=dict(context_length=context, **text_cfg)))))
    return torch_models.load('open_clip').get_tokenizer(f'local-dir:{folder}')


def test_open_clip_has_openais_tokenizer_built_in(models, tmp_path):
    ours = build(dict(name='clip_bpe', model=models['openai']))
    written = tokenizer_files.write(ours, tmp_path, 'open_clip', LENGTH)
    assert written == tokenizer_files.Written()
    same(ours(EVERY, LENGTH), opened(tmp_path, {})(EVERY).numpy(), EVERY)
    back = tokenizers.describe_open_clip(tmp_path, dict(context_length=LENGTH))
    same(build(back)(EVERY, LENGTH), ours(EVERY, LENGTH), EVERY)


OPEN_CLIP = {
    'siglip': dict(name='sentencepiece', model='unigram.model', canonicalize=True, pad='eos', clean='whitespace'),
    'siglip_ours': dict(name='sentencepiece', model='bpe.model', canonicalize=True),
    'lower': dict(name='sentencepiece', model='bpe.model', lower=True, clean='whitespace'),
    'bert': dict(name='wordpiece', model='vocab.txt', clean='whitespace'),
    'bert_lower': dict(name='wordpiece', model='vocab.txt', lower=False, clean='lower'),
    'xlm_roberta': dict(name='sentencepiece', model='xlmr.model', fairseq=True, clean='whitespace'),
    'clip': dict(name='clip_bpe', model='merges.txt', pad='eot')}


@pytest.mark.parametrize('name', OPEN_CLIP)
def test_files_give_open_clip_our_ids(name, models, tmp_path):
    """With clean='whitespace' on all texts; without, on those that open_clip's mending leaves alone (a note says so)."""
    spec = OPEN_CLIP[name]
    ours = build(spec | dict(model=models[spec['model']]))
    written = tokenizer_files.write(ours, tmp_path, 'open_clip', LENGTH)
    mends = ours.clean not in ('', 'nfc')
    assert any('open_clip mends' in note for note in written.notes) != mends
    texts = [text for text in EVERY if text not in UNIGRAM] if mends else odd.PLAIN[3:10]
    tokenizer = opened(tmp_path, written.text_cfg)
    theirs = tokenizer(texts).numpy()
    same(ours(texts, LENGTH), theirs, texts)
    back = build(tokenizers.describe_open_clip(tmp_path, written.text_cfg))
    same(back(texts, LENGTH), theirs, texts)


def test_what_cannot_be_written_or_read_is_said(models, tmp_path):
    def write(model_type, **spec):
        tokenizer_files.write(build(spec), tmp_path / 'out', model_type, LENGTH)
    with pytest.raises(WeightsError, match="eos='sticky'"):
        write('siglip', name='sentencepiece', model=models['bpe.model'], eos='yes')
    with pytest.raises(WeightsError, match="Gemma's kind"):
        write('siglip2', name='sentencepiece', model=models['bpe.model'], lower=True)
    with pytest.raises(WeightsError, match="Gemma's kind"):
        write('siglip2', name='sentencepiece', model=models['gemma.model'])
    with pytest.raises(WeightsError, match='unigram'):
        write('altclip', name='sentencepiece', model=models['bpe.model'], fairseq=True)
    with pytest.raises(WeightsError, match='str cannot be written; valid: clip_bpe'):
        tokenizer_files.write('words', tmp_path, 'clip', LENGTH)
    assert not (tmp_path / 'out').exists()

    def described(model_type, files=(), **config):
        folder = folder_of(tmp_path / model_type, model_type)
        (folder / 'tokenizer_config.json').write_text(json.dumps(config))
        for name, content in files:
            (folder / name).write_text(content)
        return tokenizers.describe(folder)
    for model_type, file, config, message in (
            ('siglip', ('tokenizer.json', '{}'), {}, 'spiece.model'), ('clip', ('merges.txt', '#\na b\n'), {}, 'vocab.json does not'),
            ('roberta', ('merges.txt', ''), {}, 'vocab.json'), ('bert', ('vocab.txt', ''), dict(truncation_side='left'), 'truncation'),
            ('xlm-roberta', ('vocab.txt', ''), {}, 'bpe.model'), ('align', ('vocab.txt', ''), dict(strip_accents=False), 'tokenizer.json'),
            ('siglip', ('spiece.model', ''), dict(do_lower_case=False), 'do_lower_case')):
        with pytest.raises(WeightsError, match=message):
            described(model_type, [file], **config)
    for text_cfg, message in (
            (dict(tokenizer_kwargs=dict(clean='canonicalize')), 'clean'), (dict(tokenizer_kwargs=dict(reduction_mask='x')), 'reduction'),
            (dict(hf_tokenizer_name='x', tokenizer_mode='clips'), 'tokenizer_mode'), (dict(hf_tokenizer_name='x/y'), "'x/y' are not there"),
            (dict(tokenizer_kwargs=dict(bpe_path='gone.gz')), 'gone.gz')):
        with pytest.raises(WeightsError, match=message):
            tokenizers.describe_open_clip(tmp_path, text_cfg)
