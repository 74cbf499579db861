"""ZeroVL ViT-B/16 + BERT-base (Cui et al., arXiv 2112.09331): batches of one source each, coin-flip mixup, large batches on few GPUs.

    python -m bigvlm.train --config 'configs/zerovl_b16.py:data=DIR/*.tar' --workdir runs/zerovl_b16

Published with 14.2M pairs: RSUM 425.0 on COCO, 536.2 on Flickr30k, zero-shot (baseline 363.5 and 476.8); not run here. Faithful:
batches from one data set at a time, mixup of images or of text embeddings by a coin, Beta(.1, .1), temperature .02 fixed,
batch 16,384 from micro-batches of 1,024, AutoAugment, AdamW, rate 1e-4, decay 1e-3, 20 epochs, 25 tokens. Which sets make up
the 14.2M is as remembered (SBU, VG, CC3M, CC12M). Both towers begin from published weights there: ``image_weights``, ``text_weights``
(``timm:FILE``, ``npz:FILE``, ``hf:DIR``); without them from nothing.
"""

from bigvlm import recipe
from configs import common

DATA = 'cc12m'


def get_config(arg=None):
    arg = recipe.parse_arg(arg, smoke=False, patch=16, image=224, batch=16_384, data=DATA, more=('cc3m', 'sbu', 'vg'), val='', imagenet='',
                           image_weights='', text_weights='', tokenizer=common.WORDPIECE)
    c = recipe.new()
    c.about = dict(paper='ZeroVL, arXiv 2112.09331', data='SBU, VG, CC3M, CC12M', devices=8,
                   expected='COCO zero-shot RSUM 425.0 (paper), not yet run')
    c.batch, c.steps, c.micro = arg.batch, '20 epochs', 16
    c.tokenizers = dict(text=dict(name='wordpiece', model=arg.tokenizer))
    c.towers = dict(image=dict(name='vit', size='B', patch=arg.patch, image=arg.image, pool='cls', out_dim=512, remat='named'),
                    text=dict(name='bert', size='base', length=25, pool='cls', out_dim=512, remat='named'))
    c.objectives = dict(contrast=dict(name='mixup_contrast', temperature=.02, learned=False, alpha=.1, images=.5, dtype='bfloat16'))
    c.data = common.tar_data(arg, 25, (.6, 1.))
    c.data.train.ops = ops(arg.image, 25)
    for name in arg.more:
        c.data[name] = dict(source=common.source(name, 'train'), ops=ops(arg.image, 25))
    c.data.all = dict(mix={name: 1. for name in ('train', *arg.more)}, homogeneous=True)
    c.kinds.pairs.data = 'all'
    c.evals = common.evals(arg, 25, '2 epochs')
    c.optim = dict(name='adamw', lr=1e-4, b1=.9, b2=.98, eps=1e-6, weight_decay=1e-3,
                   schedule=dict(name='cosine', warmup='2.5%', end=1e-5), decay=common.DECAY)
    c.checkpoint.every = '1 epochs'
    c.start = common.begin_with(arg.image_weights, arg.text_weights)
    if arg.smoke:
        smoke(c, arg)
    return c


def ops(image: int, length: int) -> tuple[dict, ...]:
    return (dict(name='decode'), dict(name='random_resized_crop', size=image, area=(.6, 1.)), dict(name='auto_augment'),
            dict(name='tokenize', length=length))


def smoke(c, arg):
    """The same method, small, from one source; AutoAugment changes colours, which the scenes' captions name."""
    c.towers.image.update(common.small_vit())
    c.towers.text.update(common.small_bert())
    c.objectives.contrast.update(dtype=None, temperature=.07)
    c.kinds.pairs.data = 'train'
    common.small(c, arg, DATA, pair='contrast', tokenizer=common.small_wordpiece())
