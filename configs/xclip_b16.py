"""xCLIP ViT-B/16 (Zhou et al., arXiv 2210.09304): CLIP beside nCLIP, which predicts prototypes; ``:only`` is nCLIP.

    python -m bigvlm.train --config 'configs/xclip_b16.py:data=DIR/*.tar' --workdir runs/xclip_b16

Published zero-shot ImageNet top-1 with 35M pairs: 48.8 as remembered; not run here, and no code was ever published. Batch 4,096,
32 epochs, 32,768 prototypes and the sets are as remembered; the weights of the two losses (.7 and .3) are from third parties'
notes, and the three terms' own weights are this repository's (objectives/prototypes.py says why).
"""

from configs import clip_b32, common

def get_config(arg=None):
    given = [item for item in (arg or '').split(',') if item]
    only = any(item.split('=')[0] == 'only' and item != 'only=False' for item in given)
    smoke = 'smoke' in given
    c = clip_b32.get_config(common.fork(','.join(item for item in given if item.split('=')[0] != 'only'), 'patch=16', 'batch=4096',
                                         'data=cc12m'))
    c.about = dict(paper='nCLIP and xCLIP, arXiv 2210.09304', data='COCO, VG, SBU, CC3M, CC12M, YFCC14M', devices=64,
                   expected='xCLIP: ImageNet zero-shot top-1 48.8 (as remembered), not yet run')
    c.objectives.contrast.weight = .7
    c.objectives.prototypes = dict(name='prototypes', prototypes=256 if smoke else 32_768, hidden=256 if smoke else 4096, weight=.3,
                                   pieces=1 if smoke else 16)
    if smoke and 'held_out' in c.data:
        c.evals.prototypes_held_out = dict(name='held_out', objective='prototypes', data='held_out')
    if only:
        c.objectives = dict(prototypes=dict(c.objectives.prototypes, weight=1.))
        c.clamp = ()
        for spec in c.evals.values():
            spec.objective = 'prototypes'
    return c
