"""CLIP ViT-L/14 at 336 pixels (Radford et al., arXiv 2103.00020): clip_l14, and one more epoch at the higher resolution.

    python -m bigvlm.train --config 'configs/clip_l14_336.py:data=DIR/*.tar' --workdir runs/clip_l14_336

Published zero-shot ImageNet top-1 of the released weights: 76.6 (not yet run here). Positions are learned for 336 pixels and
resampled to 224 in the first stage. That the last epoch is one at 336 is as remembered, not checked against the paper.
"""

from configs import clip_l14


def get_config(arg=None):
    c = clip_l14.get_config(arg)
    c.about.expected = 'ImageNet zero-shot top-1 76.6 (openai weights, open_clip results table), not yet run'
    if 'smoke' not in (arg or '').split(','):
        c.steps = '33 epochs'
        c.towers.image.image = 336
        c.stages = (dict(until='32 epochs', set={'data.train.ops.1.size': 224}), dict(set={'data.train.ops.1.size': 336}))
        if 'val' in c.data:
            c.data.val.ops = (dict(name='decode'), dict(name='resize', size=336))
        if 'imagenet' in c.data:
            c.data.imagenet.ops = (dict(name='decode'), dict(name='resize', size=336))
    return c
