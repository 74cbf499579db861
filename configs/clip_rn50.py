"""CLIP ResNet-50 (Radford et al., arXiv 2103.00020) on image-text tars.

    python -m bigvlm.train --config 'configs/clip_rn50.py:data=DIR/*.tar' --workdir runs/clip_rn50

The paper trains on 400M private pairs (surrogate: LAION-400M). Published zero-shot ImageNet top-1 of the released weights: 59.8;
on YFCC15M 32.7 (open_clip), 37.2 (DeCLIP's code); none run here. AdamW's fields for ResNets are those of the released code's
forks; batch, epochs, rate, decay and warm-up are the paper's table as remembered, not checked. Batch statistics are those of
512 examples, one device's share of the paper's batch. ``:smoke`` is minutes on 2 CPU cores, on rendered scenes or your tars.
"""

from math import log

from bigvlm import recipe
from configs import common


def get_config(arg=None):
    arg = recipe.parse_arg(arg, smoke=False, size='RN50', image=224, width=512, out=1024, batch=32_768, data='laion400m', val='',
                           imagenet='', tokenizer=common.BPE)
    c = recipe.new()
    c.about = dict(paper='CLIP, arXiv 2103.00020', data='WIT-400M (private); surrogate LAION-400M', devices=256,
                   expected='ImageNet zero-shot top-1 59.8 (openai weights, open_clip results table), not yet run')
    c.batch, c.steps = arg.batch, '32 epochs'
    c.tokenizers = dict(text=dict(name='clip_bpe', model=arg.tokenizer))
    c.towers = dict(image=dict(name='modified_resnet', size=arg.size, image=arg.image, out_dim=arg.out, bn_group=512),
                    text=common.clip_text(arg.width, out_dim=arg.out))
    c.objectives = dict(contrast=dict(name='contrastive', temperature=.07, dtype='bfloat16'))
    c.clamp = (('contrast/t', 0., log(100.)),)
    c.data = common.tar_data(arg, 77, (.9, 1.))
    c.evals = common.evals(arg, 77, '2000 steps')
    c.optim = dict(name='adamw', lr=5e-4, b1=.9, b2=.999, eps=1e-8, weight_decay=.2,
                   schedule=dict(name='cosine', warmup='2000 steps'), decay=common.DECAY)
    c.checkpoint.every = '1000 steps'
    if arg.smoke:
        smoke(c, arg)
    return c


def smoke(c, arg):
    """The same method, small."""
    c.towers.image.update(common.small_resnet())
    c.towers.text.update(common.small_text())
    c.objectives.contrast.dtype = None
    common.small(c, arg, 'laion400m', pair='contrast')
