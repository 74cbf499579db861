"""FILIP ViT-B/16 (Yao et al., arXiv 2111.07783) on image-text tars: 196 patches meet 77 words.

    python -m bigvlm.train --config 'configs/filip_b16.py:data=DIR/*.tar' --workdir runs/filip_b16
    python -m bigvlm.train --config 'configs/filip_b16.py:patch=32,batch=4096,data=yfcc15m' --workdir runs/filip_b32

The paper trains on FILIP300M (private; surrogate: LAION-400M), CC3M, CC12M and YFCC. No code of the authors is public; towers, dense
layers of 256, temperature, AdamW's fields, warm-up, schedule and the scale's bounds are those of the DeCLIP authors'
re-implementation (Sense-GVT/DeCLIP, filip_experiments), a ViT-B/32 at batch 4,096 for 128,000 steps, which reaches 39.5
zero-shot ImageNet top-1 on YFCC15M (not yet run here). It keeps the 16 likeliest tokens of each example; a quarter of them,
as kept here, is the paper's share. The rate is not scaled to the batch. Left out: the paper's image and text augmentation.

On bigvlm's rendered scenes, for CPUs: ``:smoke``, and ``:smoke,pooled=True``, the CLIP that it is compared with.
"""

from bigvlm import recipe
from configs import common

DATA = 'laion400m'


def get_config(arg=None):
    arg = recipe.parse_arg(arg, smoke=False, patch=16, image=224, batch=32_768, keep=.25, pooled=False, data=DATA, val='',
                           imagenet='', tokenizer='data/bpe_simple_vocab_16e6.txt.gz')
    c = recipe.new()
    c.about = dict(paper='FILIP, arXiv 2111.07783', data='FILIP300M (private); surrogate LAION-400M', devices=256,
                   expected='B/32 on YFCC15M: ImageNet zero-shot top-1 39.5 (DeCLIP re-implementation), not yet run')
    c.batch, c.steps = arg.batch, '128000 steps'
    c.mesh = dict(replica=1, data=-1, fsdp=1, tensor=1)
    clip = dict(activation='quick_gelu', norm_eps=1e-5, init_scheme='clip', out_dim=0, remat='named')
    c.tokenizers = dict(text=dict(name='clip_bpe', model=arg.tokenizer))
    c.towers = dict(
        image=dict(name='vit', size='B', patch=arg.patch, image=arg.image, pool='cls', pre_norm=True, patch_bias=False,
                   mean=(.48145466, .4578275, .40821073), std=(.26862954, .26130258, .27577711), **clip),
        text=dict(name='text', vocab=49_408, length=77, size='', width=512, depth=12, heads=8, causal=True, pool='eot',
                  eot_id=49_407, pad_id=0, **clip))
    c.objectives = dict(match=dict(name='late_interaction', width=256, skip=1, keep=arg.keep, pooled=arg.pooled, temperature=.07,
                                   dtype='bfloat16'))
    c.clamp = (('match/t', 3., 6.),)
    c.data = common.tar_data(arg, 77, (.9, 1.))
    c.evals = common.evals(arg, 77, '2000 steps')
    c.optim = dict(name='adamw', lr=5e-4, b1=.9, b2=.98, eps=1e-8, weight_decay=.5, clip=0.,
                   schedule=dict(name='cosine', warmup='2500 steps'), decay=common.DECAY)
    c.checkpoint.every = '1000 steps'
    if arg.smoke:
        smoke(c, arg)
    return c


def smoke(c, arg):
    """The same method, small: patches of 8 pixels and, on scenes, words whose boxes are known."""
    c.towers.image.update(common.small_vit(patch=8, out_dim=0))
    c.towers.text.update(common.small_text(out_dim=0))
    c.objectives.match.update(width=64, keep=1., target='captions', dtype=None)
    c.clamp = (('match/t', 0., 4.6052),)
    common.small(c, arg, DATA, pair='match')
    if 'zero_shot' in c.data:
        c.data.val.source = dict(c.data.val.source, extra=('boxes', 'spans'))
        c.evals.alignment = dict(name='alignment', data='val', length=common.LENGTH, width=64)
