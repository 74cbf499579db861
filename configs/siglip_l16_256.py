"""SigLIP ViT-L/16 at 256 pixels (Zhai et al., arXiv 2303.15343): siglip_b16 with both towers large.

    python -m bigvlm.train --config 'configs/siglip_l16_256.py:data=DIR/*.tar' --workdir runs/siglip_l16_256

Published zero-shot ImageNet top-1: 80.5 (not yet run here). Parameters and optimizer state are split 16 ways (HSDP).
"""

from configs import common, siglip_b16


def get_config(arg=None):
    c = siglip_b16.get_config(common.fork(arg, 'size=L,image=256'))
    c.about.expected = 'ImageNet zero-shot top-1 80.5 (open_clip results table), not yet run'
    if 'smoke' not in (arg or '').split(','):
        c.mesh = dict(replica=1, data=-1, fsdp=16, tensor=1)
        c.towers.image.remat = c.towers.text.remat = 'attended'
    return c
