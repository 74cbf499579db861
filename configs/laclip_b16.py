"""LaCLIP ViT-B/16 (Fan et al., arXiv 2305.20088): CLIP on captions that a language model has rewritten, one drawn each time.

    python tools/annotate.py --help                # how rewrites come beside the captions of your tars
    python -m bigvlm.train --config 'configs/laclip_b16.py:data=DIR/*.tar,rewrites=REWRITES' --workdir runs/laclip_b16

Published zero-shot ImageNet top-1 with and without rewrites (LaCLIP repository): CC3M 21.5 (15.8), CC12M 48.4 (40.2), RedCaps 46.2
(42.9), LAION-400M 69.3 (67.0); none run here. The original caption in half of the draws, else one of its rewrites. Batch,
rate and epochs are clip_b32's. The scenes have several captions each: ``:smoke`` draws among them.
"""

from bigvlm import recipe
from configs import clip_b32, common


def get_config(arg=None):
    given = [item for item in (arg or '').split(',') if item]
    own = recipe.parse_arg(','.join(item for item in given if item.startswith('rewrites')), rewrites='')
    c = clip_b32.get_config(common.fork(','.join(item for item in given if not item.startswith('rewrites')), 'patch=16', 'data=cc12m'))
    c.about = dict(paper='LaCLIP, arXiv 2305.20088', data='CC12M and its rewrites', devices=256,
                   expected='ImageNet zero-shot top-1 48.4 on CC12M (LaCLIP repository), not yet run')
    if own.rewrites:
        source = c.data.train.source
        c.data.train.source = dict(name='annotated', source=source, fields=('rewrites',), file=own.rewrites)
    fields = dict(captions=.5, rewrites=.5) if own.rewrites else dict(captions=1.)
    c.data.train.ops = common.with_op(c.data.train.ops, dict(name='pick_caption', fields=fields), before='tokenize')
    return c
