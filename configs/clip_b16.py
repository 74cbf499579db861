"""CLIP ViT-B/16 (Radford et al., arXiv 2103.00020): clip_b32 with patches of 16.

    python -m bigvlm.train --config 'configs/clip_b16.py:data=DIR/*.tar' --workdir runs/clip_b16

Published zero-shot ImageNet top-1 of the released weights: 68.3 (not yet run here).
"""

from configs import clip_b32, common


def get_config(arg=None):
    c = clip_b32.get_config(common.fork(arg, 'patch=16'))
    c.about.expected = 'ImageNet zero-shot top-1 68.3 (openai weights, open_clip results table), not yet run'
    return c
