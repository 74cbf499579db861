"""ChineseCLIP ViT-B/16 + RoBERTa-wwm-base (Yang et al., arXiv 2211.01335): a locked image tower first, then both.

    python -m bigvlm.train --config 'configs/chineseclip_b16.py:locked,data=DIR/*.tar,image_weights=hf:openai/clip-vit-base-patch16,\
        text_weights=hf:hfl/chinese-roberta-wwm-ext' --workdir runs/chineseclip_locked
    python -m bigvlm.train --config 'configs/chineseclip_b16.py:data=DIR/*.tar,weights=runs/chineseclip_locked' --workdir runs/chineseclip

The paper trains on 200M public Chinese pairs (LAION-5B's Chinese part, Wukong) from CLIP's image tower and a Chinese RoBERTa:
``image_weights``, ``text_weights``; without them this run begins from nothing. A stage may not change which parameters are frozen: the
first stage is a run of its own, ``:locked``, and the second begins with it (``weights``). Batch, rate and lengths are as remembered
(52 tokens; 32,768). Not run here.
"""

from math import log

from bigvlm import recipe
from configs import common

DATA = 'wukong'


def get_config(arg=None):
    arg = recipe.parse_arg(arg, smoke=False, locked=False, patch=16, image=224, batch=32_768, data=DATA, val='', imagenet='',
                           weights='', image_weights='', text_weights='', tokenizer='data/bert-base-chinese-vocab.txt')
    c = recipe.new()
    c.about = dict(paper='Chinese CLIP, arXiv 2211.01335', data='LAION-5B Chinese, Wukong', devices=128, expected='not yet run')
    c.batch, c.steps = arg.batch, '15 epochs'
    c.tokenizers = dict(text=dict(name='wordpiece', model=arg.tokenizer))
    c.towers = dict(image=common.clip_vit(size='B', patch=arg.patch, image=arg.image, out_dim=512),
                    text=dict(name='bert', vocab=21_128, size='base', length=52, pool='cls', out_dim=512, out_bias=False, remat='named'))
    c.objectives = dict(contrast=dict(name='contrastive', temperature=.07, dtype='bfloat16'))
    c.clamp = (('contrast/t', 0., log(100.)),)
    c.data = common.tar_data(arg, 52, (.9, 1.))
    c.evals = common.evals(arg, 52, '5000 steps')
    c.optim = dict(name='adamw', lr=1e-4, b1=.9, b2=.98, eps=1e-6, weight_decay=1e-3, schedule=dict(name='cosine', warmup='5000 steps'),
                   decay=common.DECAY, freeze=('image/.*',) if arg.locked else ())
    c.checkpoint.every = '1000 steps'
    c.start = dict(run=dict(checkpoint=arg.weights)) if arg.weights else common.begin_with(arg.image_weights, arg.text_weights, out='image')
    if arg.smoke:
        smoke(c, arg)
    return c


def smoke(c, arg):
    """The same method, small; the scenes' German captions stand in for a second language."""
    c.towers.image.update(common.small_vit())
    c.towers.text.update(common.small_bert())
    c.objectives.contrast.dtype = None
    frozen = c.optim.freeze
    ops = common.with_op(common.pair_ops(common.IMAGE, common.LENGTH, (.9, 1.)), dict(name='pick_caption', fields=dict(captions=.5,
                                                                                                                       captions_de=.5)),
                         before='tokenize')
    common.small(c, arg, DATA, ops=ops, pair='contrast', tokenizer=common.small_wordpiece(), extra=('captions_de',))
    c.optim.freeze = frozen
