"""What several recipes say alike: image-text data from tars, and the evaluations of a two-tower model."""

import re

# Parameters that are matrices decay; biases, norms, positions, tokens and temperatures do not (openai/CLIP, big_vision).
DECAY = (('.*/kernel', 1.), ('.*/embedding', 1.), ('.*', 0.))

# Tensor parallelism (set mesh.tensor): heads, the MLP's hidden layer and the vocabulary are split; the rest as FSDP.
TENSOR = (('.*/(query|key|value|fc1)/(kernel|bias)', 'column'), ('.*/(out|fc2)/kernel', 'row'), ('.*/embedding', 'row'), ('.*', 'fsdp'))


def pair_ops(image: int, length: int, area: tuple[float, float]) -> tuple[dict, ...]:
    """Decode, one random crop, tokenise."""
    return (dict(name='decode'), dict(name='random_resized_crop', size=image, area=area), dict(name='tokenize', length=length))


def eval_ops(image: int) -> tuple[dict, ...]:
    return (dict(name='decode'), dict(name='resize', size=image))


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
