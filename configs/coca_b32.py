"""CoCa ViT-B/32 (Yu et al., arXiv 2205.01917): contrast and captioning in one forward pass, in open_clip's shape.

    python -m bigvlm.train --config 'configs/coca_b32.py:data=DIR/*.tar' --workdir runs/coca_b32

The paper trains on ALIGN's and JFT-3B's private data (surrogate: LAION-2B). Published zero-shot ImageNet top-1 of open_clip's
model on LAION-2B: 63.3 (not yet run here). Losses: 1 · contrastive + 2 · captioning, as the paper; rate, decay, warm-up
and examples are choices of this recipe (the paper: Adafactor, 8e-4, decay .01, 2 %, linear). ``:smoke`` is a few minutes on
2 CPU cores: it also writes captions, which the report shows.
"""

from math import log

from bigvlm import recipe
from configs import common


def get_config(arg=None):
    arg = recipe.parse_arg(arg, smoke=False, size='B', patch=32, image=224, width=512, heads=8, out=512, batch=32_768, data='laion2b_en',
                           val='', imagenet='', tokenizer='data/bpe_simple_vocab_16e6.txt.gz')
    c = recipe.new()
    c.about = dict(paper='CoCa, arXiv 2205.01917', data='ALIGN and JFT-3B (private); surrogate LAION-2B', devices=256,
                   expected='ImageNet zero-shot top-1 63.3 (open_clip results table, LAION-2B), not yet run')
    c.batch, c.steps = arg.batch, '13e9 examples'
    c.tokenizers = dict(text=dict(name='clip_bpe', model=arg.tokenizer))
    text = dict(size='', width=arg.width, depth=12, heads=arg.heads, activation='gelu', norm_eps=1e-5, remat='named')
    c.towers = dict(
        image=dict(name='vit', size=arg.size, patch=arg.patch, image=arg.image, pool='queries', queries=255, query_heads=8,
                   query_width=arg.out, class_token=True, last_norm='none', pre_norm=True, patch_bias=False,
                   mean=(.48145466, .4578275, .40821073), std=(.26862954, .26130258, .27577711), activation='gelu', norm_eps=1e-5,
                   init_scheme='clip', out_dim=arg.out, out_bias=False, remat='named'),
        text=dict(name='text', vocab=49_408, length=76, causal=True, class_token=True, pool='last', pad_id=0, eot_id=49_407,
                  mask_padding=True, late_mask=True, init_scheme='clip', out_dim=arg.out, out_bias=False, **text))
    c.decoders = dict(captioner=dict(name='text', vocab=49_408, cross_mlp=True, init_scheme='clip', **text))
    c.objectives = dict(
        contrast=dict(name='contrastive', temperature=.07, dtype='bfloat16', weight=1.),
        caption=dict(name='caption', decoder='captioner', eot_id=49_407, weight=2.))
    c.clamp = (('contrast/t', 0., log(100.)),)
    c.data = common.tar_data(arg, 76, (.9, 1.))
    c.evals = common.evals(arg, 76, '2000 steps')
    for spec in c.evals.values():
        spec.objective = 'contrast'
    if arg.val:
        c.evals.captions = dict(name='captions', objective='caption', length=76, every='10000 steps')
    c.optim = dict(name='adamw', lr=1e-3, b1=.9, b2=.98, eps=1e-6, weight_decay=.2,
                   schedule=dict(name='cosine', warmup='2000 steps'), decay=common.DECAY)
    c.checkpoint.every = '1000 steps'
    if arg.smoke:
        smoke(c, arg)
    return c


def smoke(c, arg):
    """The same method, small."""
    c.towers.image.update(common.small_vit(queries=15, query_heads=2, query_width=128))
    c.towers.text.update(common.small_text())
    c.decoders.captioner.update(common.SMALL, depth=2, vocab=common.VOCAB)
    c.objectives.contrast.dtype = None
    c.objectives.caption.eot_id = 1
    tokenizer = common.small_tokenizer(bos='eos')
    common.small(c, arg, 'laion2b_en', pair='contrast', held_out=('caption',), tokenizer=tokenizer)
    c.evals.captions = dict(name='captions', objective='caption', length=common.LENGTH)
