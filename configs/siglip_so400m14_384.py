"""SigLIP So400m/14 at 384 pixels (Zhai et al., arXiv 2303.15343; shape: arXiv 2305.13035): 27 x 27 = 729 patches.

    python -m bigvlm.train --config 'configs/siglip_so400m14_384.py:data=DIR/*.tar' --workdir runs/siglip_so400m14_384

Published zero-shot ImageNet top-1: 83.1 (not yet run here). The released model was trained at 224 pixels first; here all
examples are seen at 384. The 6 pixels that 27 patches leave are not seen, as in the released model.
"""

from configs import siglip_b16


def get_config(arg=None):
    c = siglip_b16.get_config(','.join(filter(None, ('size=So400m,patch=14,image=384', arg))))
    c.about.expected = 'ImageNet zero-shot top-1 83.1 (open_clip results table), not yet run'
    c.about.devices = 1024
    if 'smoke' not in (arg or '').split(','):
        c.mesh = dict(replica=1, data=-1, fsdp=16, tensor=1)
    return c
