"""LiT B/16 (Zhai et al., arXiv 2111.07991): a locked image tower that was trained before, a text tower trained to it.

    python -m bigvlm.train --config 'configs/lit_b16.py:data=DIR/*.tar,image_weights=npz:FILE,text_weights=hf:DIR' --workdir runs/lit_b16

The released B16B_2 (no image head, 60,000 steps) starts from AugReg's ViT-B/16 on ImageNet-21k, which is what ``image_weights`` names,
in the current folder: ``B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz`` of
https://storage.googleapis.com/vit_models/augreg/ (391 MiB; L16L: ``L_16-i21k-300ep-lr_0.001-aug_strong1-wd_0.1-do_0.0-sd_0.0.npz``);
and from BERT-base (``text_weights``). 16 tokens, temperature from 10, rate 1e-3, decay 1e-2 (big_vision's siglip_lit_coco.py), batch
16,384 as remembered. Published ImageNet zero-shot top-1 on CC12M + YFCC100M: B16B 72.1, B16B_2 73.9, L16L 75.7 (not yet run here);
finished models are in .../vit_models/lit/. ``:smoke`` trains against a random, locked tower, unless it is given one of its shape.
"""

from math import log

from bigvlm import recipe
from configs import common

DATA = 'cc12m'
AUGREG = 'B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz'
BERT = 'hf:google-bert/bert-base-uncased'


def get_config(arg=None):
    arg = recipe.parse_arg(arg, smoke=False, size='B', patch=16, image=224, batch=16_384, data=DATA, val='', imagenet='',
                           image_weights=f'npz:{AUGREG}', text_weights=BERT, tokenizer=common.WORDPIECE)
    c = recipe.new()
    c.about = dict(paper='LiT, arXiv 2111.07991', data='CC12M + YFCC100M', devices=64,
                   expected='ImageNet zero-shot top-1 73.9 (B16B_2, big_vision), not yet run')
    c.batch, c.steps = arg.batch, '60000 steps'
    c.tokenizers = dict(text=dict(name='wordpiece', model=arg.tokenizer))
    c.towers = dict(image=dict(name='vit', size=arg.size, patch=arg.patch, image=arg.image, pool='cls', out_dim=0, remat='none'),
                    text=dict(name='bert', size='base', length=16, pool='cls', out_dim=768, remat='named'))
    c.objectives = dict(contrast=dict(name='contrastive', temperature=.1, dtype='bfloat16'))
    c.clamp = (('contrast/t', 0., log(100.)),)
    c.data = common.tar_data(arg, 16, (.9, 1.))
    c.evals = common.evals(arg, 16, '5000 steps')
    c.optim = dict(name='adamw', lr=1e-3, weight_decay=1e-2, clip=1., decay_by='schedule', schedule=dict(name='cosine',
                                                                                                         warmup='10000 steps'),
                   decay=common.DECAY,
                   freeze=('image/.*',))
    c.checkpoint.every = '2000 steps'
    c.start = common.begin_with(arg.image_weights, arg.text_weights)
    if arg.smoke:
        smoke(c, arg)
    return c


def smoke(c, arg):
    """The same method, small, from weights that are given."""
    c.start = common.begin_with(*('' if weights == default else weights for weights, default in (
        (arg.image_weights, f'npz:{AUGREG}'), (arg.text_weights, BERT))))
    c.towers.image.update(common.small_vit(out_dim=0))
    c.towers.text.update(common.small_bert())
    c.objectives.contrast.dtype = None
    common.small(c, arg, DATA, pair='contrast', tokenizer=common.small_wordpiece())
    c.optim.freeze = ('image/.*',)
