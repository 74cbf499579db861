"""SigLIP's method at the size of ViT-g/14 (arXiv 2106.04560), 1.0 billion parameters, with a large text tower.

    python -m bigvlm.train --config 'configs/siglip_g14.py:data=DIR/*.tar' --workdir runs/siglip_g14

No model of just this shape was published: this is a recipe for pods of thousands of chips, with a batch to match (the
paper goes up to a million, with a locked image tower).
"""

from configs import siglip_b16


def get_config(arg=None):
    c = siglip_b16.get_config(','.join(filter(None, ('size=g,patch=14,text_size=L,batch=131072', arg))))
    c.about.expected = 'no published figure'
    c.about.devices = 4096
    if 'smoke' not in (arg or '').split(','):
        c.mesh = dict(replica=1, data=-1, fsdp=16, tensor=1)
    return c
