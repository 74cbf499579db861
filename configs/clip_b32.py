"""CLIP ViT-B/32 (Radford et al., arXiv 2103.00020) on image-text tars.

    python -m bigvlm.train --config 'configs/clip_b32.py:data=DIR/*.tar' --workdir runs/clip_b32

The paper trains on 400M private pairs (surrogate: LAION-400M). Published zero-shot ImageNet top-1 of the released
weights: 63.3 (not yet run here). ``:smoke`` is a few minutes on 2 CPU cores, on rendered scenes or your own tars.
Settings: model and initialisation from openai/CLIP; batch 32,768, 32 epochs, weight decay 0.2, rate 5e-4, 2,000 steps of
warm-up are the paper's table as remembered, not checked against its text.
"""

from math import log

from bigvlm import recipe
from configs import common

DATA = 'laion400m'


def get_config(arg=None):
    arg = recipe.parse_arg(arg, smoke=False, patch=32, image=224, batch=32_768, data=DATA, val='', imagenet='',
                           tokenizer=common.BPE)
    c = recipe.new()
    c.about = dict(paper='CLIP, arXiv 2103.00020', data='WIT-400M (private); surrogate LAION-400M', devices=256,
                   expected='ImageNet zero-shot top-1 63.3 (openai weights, open_clip results table), not yet run')
    c.batch, c.steps = arg.batch, '32 epochs'
    c.mesh = dict(replica=1, data=-1, fsdp=1, tensor=1)
    c.tokenizers = dict(text=dict(name='clip_bpe', model=arg.tokenizer))
    c.towers = dict(image=common.clip_vit(size='B', patch=arg.patch, image=arg.image, out_dim=512), text=common.clip_text(out_dim=512))
    c.objectives = dict(contrast=dict(name='contrastive', temperature=.07, dtype='bfloat16'))
    c.clamp = (('contrast/t', 0., log(100.)),)
    c.data = common.tar_data(arg, 77, (.9, 1.))
    c.evals = common.evals(arg, 77, '2000 steps')
    c.optim = dict(name='adamw', lr=5e-4, b1=.9, b2=.98, eps=1e-6, weight_decay=.2, clip=0.,
                   schedule=dict(name='cosine', warmup='2000 steps'), decay=common.DECAY)
    c.checkpoint.every = '1000 steps'
    if arg.smoke:
        smoke(c, arg)
    return c


def smoke(c, arg):
    """The same method, small: on rendered scenes, or, longer, on your own tars: a few hundred photos are enough to see it learn."""
    if arg.data in (DATA, 'scenes'):
        c.towers.image.update(common.small_vit())
        c.towers.text.update(common.small_text())
        c.objectives.contrast.dtype = None
        common.small(c, arg, DATA, pair='contrast')
        return
    c.batch, c.steps = min(arg.batch, 200), '40 epochs'
    c.tokenizers.text = common.smoke_tokenizer(pad='pad')
    small = dict(size='', width=128, depth=4, heads=4, out_dim=128, remat='attended+hidden', dtype='float32')
    c.towers.image.update(small)
    c.towers.text.update(small, vocab=2000, length=32, eot_id=1, pad_id=0)
    c.objectives.contrast.dtype = None
    c.data = common.tar_data(arg, 32, (.5, 1.))
    c.evals = common.evals(arg, 32, '10 epochs')
    c.optim.update(lr=1e-3, weight_decay=.2, clip=1.)
    c.optim.schedule.warmup = '10%'
    c.checkpoint.every = '10 epochs'
    c.log.every = '10 steps'
