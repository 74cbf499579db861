"""DeFILIP ViT-B/32 (Cui et al., arXiv 2203.05796): declip_b32 with FILIP's late interaction as one more loss.

    python -m bigvlm.train --config 'configs/defilip_b32.py:data=DIR/*.tar' --workdir runs/defilip_b32

Published zero-shot ImageNet top-1 on YFCC15M: 45.0 (DeCLIP repository; not run here). The new loss's weight is .2,
as in the authors' config.
"""

from configs import declip_b32


def get_config(arg=None):
    smoke = 'smoke' in (arg or '').split(',')
    c = declip_b32.get_config(arg)
    c.about = dict(paper='DeFILIP, arXiv 2203.05796', data='YFCC15M', devices=32,
                   expected='ImageNet zero-shot top-1 45.0 (DeCLIP repository), not yet run')
    c.objectives.late = dict(name='late_interaction', image=declip_b32.VIEWS[0], text='text', image_tower='image', text_tower='text',
                             width=64 if smoke else 256, skip=1, keep=1. if smoke else .25, weight=.2, dtype=None if smoke else 'bfloat16')
    c.clamp = (*c.clamp, ('late/t', 3., 4.6052))
    if smoke and 'held_out' in c.data:
        c.evals.late_held_out = dict(name='held_out', objective='late', data='held_out')
    return c
