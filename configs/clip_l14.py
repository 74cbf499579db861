"""CLIP ViT-L/14 (Radford et al., arXiv 2103.00020): clip_b32, larger.

    python -m bigvlm.train --config 'configs/clip_l14.py:data=DIR/*.tar' --workdir runs/clip_l14

Published zero-shot ImageNet top-1 of the released weights: 75.5 (not yet run here). Rate 4e-4 as remembered, not checked.
"""

from configs import clip_b32, common


def get_config(arg=None):
    c = clip_b32.get_config(common.fork(arg, 'patch=14'))
    c.about.expected = 'ImageNet zero-shot top-1 75.5 (openai weights, open_clip results table), not yet run'
    if 'smoke' not in (arg or '').split(','):
        c.towers.image.update(size='L', out_dim=768)
        c.towers.text.update(common.clip_text(768, out_dim=768))
        c.optim.lr = 4e-4
    return c
