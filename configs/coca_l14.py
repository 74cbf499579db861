"""CoCa ViT-L/14 (Yu et al., arXiv 2205.01917): coca_b32, larger, in open_clip's shape.

    python -m bigvlm.train --config 'configs/coca_l14.py:data=DIR/*.tar' --workdir runs/coca_l14

Published zero-shot ImageNet top-1 of open_clip's model on LAION-2B: 75.6 (not yet run here).
"""

from configs import coca_b32, common


def get_config(arg=None):
    c = coca_b32.get_config(common.fork(arg, 'size=L,patch=14,width=768,heads=12,out=768'))
    c.about.expected = 'ImageNet zero-shot top-1 75.6 (open_clip results table, LAION-2B), not yet run'
    if 'smoke' not in (arg or '').split(','):
        c.mesh = dict(replica=1, data=-1, fsdp=8, tensor=1)
    return c
