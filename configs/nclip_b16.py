"""nCLIP ViT-B/16 (Zhou et al., arXiv 2210.09304): no contrast at all, images and texts predict each other's prototypes.

    python -m bigvlm.train --config 'configs/nclip_b16.py:data=DIR/*.tar' --workdir runs/nclip_b16

xclip_b16 without its contrastive loss; what is known of its settings is said there. Not run here.
"""

from configs import common, xclip_b16


def get_config(arg=None):
    return xclip_b16.get_config(common.fork(arg, 'only'))
