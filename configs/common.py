"""What several recipes say alike: image-text data from tars, and the evaluations of a two-tower model."""

import re

# Parameters that are matrices decay; biases, norms, positions, tokens and temperatures do not (openai/CLIP, big_vision).
DECAY = (('.*/kernel', 1.), ('.*/embedding', 1.), ('.*', 0.))
NO_TABLE = (('.*/kernel', 1.), ('.*', 0.))  # for models without a vocabulary

# Tensor parallelism (set mesh.tensor): heads, the MLP's hidden layer and the vocabulary are split; the rest as FSDP.
TENSOR = (('.*/(query|key|value|fc1)/(kernel|bias)', 'column'), ('.*/(out|fc2)/kernel', 'row'), ('.*/embedding', 'row'), ('.*', 'fsdp'))

# What SimCLR (arXiv 2002.05709) does to the colours of a view, as SLIP and DeCLIP do.
SIMCLR = (dict(name='jitter', brightness=.4, contrast=.4, saturation=.4, hue=.1, probability=.8), dict(name='gray', probability=.2),
          dict(name='blur', probability=.5))

BPE = 'data/bpe_simple_vocab_16e6.txt.gz'  # openai/CLIP's vocabulary
WORDPIECE = 'data/bert-base-uncased-vocab.txt'
CLIP = dict(activation='quick_gelu', norm_eps=1e-5, init_scheme='clip', out_bias=False, remat='named')
CLIP_MEAN, CLIP_STD = (.48145466, .4578275, .40821073), (.26862954, .26130258, .27577711)
IMAGENET_MEAN, IMAGENET_STD = (.485, .456, .406), (.229, .224, .225)


def clip_vit(**more) -> dict:
    """CLIP's ViT: class token, a norm before the blocks, QuickGELU."""
    return dict(name='vit', pool='cls', pre_norm=True, patch_bias=False, mean=CLIP_MEAN, std=CLIP_STD, **CLIP) | more


def clip_text(width: int = 512, **more) -> dict:
    """CLIP's text tower: causal, pooled at the end of text, heads of 64."""
    return dict(name='text', vocab=49_408, length=77, size='', width=width, depth=12, heads=width // 64, causal=True, pool='eot',
                eot_id=49_407, pad_id=0, **CLIP) | more


def begin_with(image: str = '', text: str = '', out: str = '') -> dict:
    """``c.start`` of towers 'image' and 'text' that begin with published weights (docs/interop.md), where given. ``out``: the tower
    ('image', 'text') whose last projection is theirs, too; others' are drawn, and a neck before them."""
    def entry(tower, checkpoint):
        paths = f'{tower}/.*' if tower == out else f'{tower}/(?!out/|neck).*'
        return dict(checkpoint=checkpoint, load=((paths, r'\g<0>'),), resize=(f'{tower}/position',))
    return {tower: entry(tower, checkpoint) for tower, checkpoint in (('image', image), ('text', text)) if checkpoint}


def pair_ops(image: int, length: int, area: tuple[float, float]) -> tuple[dict, ...]:
    """Decode, one random crop, tokenise."""
    return (dict(name='decode'), dict(name='random_resized_crop', size=image, area=area), dict(name='tokenize', length=length))


def eval_ops(image: int) -> tuple[dict, ...]:
    return (dict(name='decode'), dict(name='resize', size=image))


def fork(arg, *defaults: str) -> str:
    """The argument of another recipe: a fork's own defaults, which ``arg`` overrides; a smoke run keeps that recipe's data and batch."""
    given = [item for item in (arg or '').split(',') if item]
    if 'smoke' in given:
        defaults = tuple(item for item in defaults if not item.startswith(('data=', 'batch=')))
    return ','.join([*defaults, *given])


def source(where: str, split: str) -> dict:
    """Tars by their path, URL or glob; a bare name such as ``cc12m`` is a set that the site file knows (docs/datasets.md)."""
    if re.fullmatch(r'[\w-]+', where):
        return dict(name='named', set=where, split=split)
    return dict(name='webdataset', files=where)


def tar_data(arg, length: int, area: tuple[float, float]) -> dict:
    """``arg.data``, and ``arg.val`` if given: img2dataset tars (KEY.jpg, KEY.txt, KEY.json), or sets by their names."""
    data = dict(train=dict(source=source(arg.data, 'train'), ops=pair_ops(arg.image, length, area)))
    if arg.val:
        data['val'] = dict(source=source(arg.val, 'val'), ops=eval_ops(arg.image))
    if arg.imagenet:
        data['imagenet'] = dict(source=dict(name='tfds', dataset=arg.imagenet, split='validation', captions='', label='label'),
                                ops=eval_ops(arg.image))
    return data


def evals(arg, length: int, every: str, canonicalize: bool = False) -> dict:
    """Retrieval on ``arg.val`` and zero-shot classification on ``arg.imagenet``, where given."""
    found = {}
    if arg.val:
        found['retrieval'] = dict(name='retrieval', data='val', length=length, canonicalize=canonicalize, every=every)
    if arg.imagenet:
        found['imagenet'] = dict(name='zero_shot', data='imagenet', length=length, canonicalize=canonicalize, every=every)
    return found


def smoke_tokenizer(pad: str, vocab: int = 2000) -> dict:
    """A SentencePiece model trained on the run's own captions at first use, so that a smoke run downloads nothing."""
    return dict(name='sentencepiece', train_on='train', vocab=vocab, eos='sticky', pad=pad)


# The small form of every recipe, on rendered scenes: what ``:smoke`` trains, in minutes on 2 CPU cores, where no data are given.

# Prompts in the captions' own words; which words stand around a class is as much of a choice here as on ImageNet.
PROMPTS = ('a {}', 'a large {}', 'there is a large {}', 'a large {} in the middle')
SCENES = dict(name='tfds', dataset='bigvlm_scenes')
SMALL = dict(size='', width=128, depth=3, heads=2, dtype='float32', remat='attended+hidden')
IMAGE, LENGTH, VOCAB = 64, 24, 256  # pixels, tokens, pieces


def small_vit(**more) -> dict:
    """Fields that make any ViT small: 16 patches of 64 pixels."""
    return SMALL | dict(image=IMAGE, patch=16, mlp_dim=0, trim=False, out_dim=128) | more


def small_text(**more) -> dict:
    """Fields that make any text tower small; ids as of ``small_tokenizer``, whose texts end with 1 and are padded with 0."""
    return SMALL | dict(depth=2, vocab=VOCAB, length=LENGTH, mlp_dim=0, out_dim=128, eot_id=1, pad_id=0) | more


def small_bert(**more) -> dict:
    """Fields that make a BERT-style tower small; ids as of ``small_wordpiece``."""
    return SMALL | dict(depth=2, vocab=VOCAB, length=LENGTH, mlp_dim=0, out_dim=128, pad_id=0) | more


def small_wordpiece(**more) -> dict:
    """WordPiece with [CLS], [SEP] and [MASK], trained on the scenes' captions."""
    return dict(name='wordpiece', train_on='train', vocab=VOCAB) | more


def small_tokenizer(**more) -> dict:
    """A SentencePiece model trained on the scenes' captions; ``extra=1`` gives it a mask."""
    return dict(name='sentencepiece', train_on='train', vocab=VOCAB, eos='sticky', pad='pad') | more


def scenes(ops, val_ops=(), **source) -> dict:
    """Data sets of rendered scenes: 'train', after ``ops``; 'val' (captions) and 'zero_shot' (labels) for evaluations of images;
    'held_out', val after ``val_ops`` or ``ops``, for losses that are measured on what was not trained on."""
    def of(split, ops, **more):
        return dict(source=SCENES | dict(split=split) | source | more, ops=tuple(ops))
    decode = (dict(name='decode'),)
    return dict(train=of('train', ops), held_out=of('val', val_ops or ops), val=of('val', decode),
                zero_shot=of('zero_shot', decode, label='label'))


def small_resnet(**more) -> dict:
    """Fields that make CLIP's ResNet small."""
    return dict(size='RN50', width=16, depths=(1, 1, 1, 1), image=IMAGE, out_dim=128, bn_group=0, dtype='float32') | more


def small_swin(**more) -> dict:
    """Fields that make any Swin small: 64 tokens of four pixels a side, in windows of four, then 16."""
    return dict(size='', width=32, depths=(2, 2), heads=(2, 4), window=4, patch=8, image=IMAGE, drop_path=0., out_dim=128,
                dtype='float32') | more


def with_op(ops, op: dict, before: str) -> tuple[dict, ...]:
    """``ops`` with one more, before the first of that name."""
    place = [spec['name'] for spec in ops].index(before)
    return (*ops[:place], op, *ops[place:])


def small(c, arg, default: str, *, ops=(), batch=64, steps=600, lr=1e-3, pair='', held_out=(), tokenizer=None, val_ops=(),
          **source) -> None:
    """Turns a recipe whose towers were made small into a short run: data, tokenizer, optimizer, evaluations.

    On scenes, or on ``arg.data`` if that is another than the recipe's ``default`` (and 'scenes'): then on its tars, evaluated on
    those of ``arg.val``. ``ops``: of the training data, if not one crop and the caption's tokens. ``pair``: the objective that
    zero-shot classification and retrieval see ('' for none). ``held_out``: objectives whose own loss and metrics are measured on
    new scenes.
    """
    c.batch, c.micro, c.steps, c.stages = batch, 1, f'{steps} steps', ()
    c.mesh = dict(replica=1, data=-1, fsdp=1, tensor=1)
    c.tokenizers = dict(text=tokenizer or small_tokenizer())
    on_scenes, ops = arg.data in (default, 'scenes'), ops or pair_ops(IMAGE, LENGTH, (.9, 1.))
    c.data = scenes(ops, val_ops, **source) if on_scenes else tar_data(arg, LENGTH, (.9, 1.))
    c.data.train.ops = ops
    found = {} if on_scenes or not pair else {name: spec | dict(objective=pair) for name, spec in evals(arg, LENGTH, 'end').items()}
    if not on_scenes and arg.val:
        c.data.held_out = dict(source=c.data.val.source, ops=val_ops or ops)
    if pair and on_scenes:
        found['zero_shot'] = dict(name='zero_shot', objective=pair, length=LENGTH, templates=PROMPTS)
        found['retrieval'] = dict(name='retrieval', objective=pair, data='val', length=LENGTH)
    for objective in held_out if 'held_out' in c.data else ():
        found[f'{objective}_held_out'] = dict(name='held_out', objective=objective, data='held_out')
    c.evals = found
    c.optim = dict(name='adamw', lr=lr, b1=.9, b2=.95, weight_decay=1e-4, clip=1., decay_by='schedule',
                   schedule=dict(name='cosine', warmup='10%'), decay=DECAY if 'text' in c.towers else NO_TABLE)
    c.checkpoint = dict(every='50%', keep=2, keep_every=0)
    c.log.every = '20 steps'

