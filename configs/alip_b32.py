"""ALIP ViT-B/32 (Yang et al., arXiv 2308.08428), its synthetic captions: CLIP on the caption of the web or one of a captioner.

    python tools/annotate.py --help                # how captions of your captioner come beside those of your tars
    python -m bigvlm.train --config 'configs/alip_b32.py:data=DIR/*.tar,rewrites=REWRITES' --workdir runs/alip_b32

Published zero-shot ImageNet top-1 on YFCC15M: 40.3 (ALIP repository; not run here). What is here is the choice of captions; the paper's
gates, which weigh pairs by how well image, raw and synthetic caption agree, are not built. Batch 4,096 and 32 epochs are as
remembered, not checked.
"""

from configs import common, laclip_b16


def get_config(arg=None):
    c = laclip_b16.get_config(common.fork(arg, 'patch=32', 'batch=4096', 'data=yfcc15m'))
    c.about = dict(paper='ALIP, arXiv 2308.08428', data='YFCC15M and synthetic captions', devices=64,
                   expected='ImageNet zero-shot top-1 40.3 (ALIP repository), not yet run')
    return c
