"""FLIP ViT-B/16 (Li et al., arXiv 2212.00794): clip_b32's method, half of the patches dropped in training.

    python -m bigvlm.train --config 'configs/flip_b16.py:data=DIR/*.tar' --workdir runs/flip_b16
    python -m bigvlm.train --config 'configs/flip_b16.py:drop=.75,batch=65536' --workdir runs/flip_b16_75

Trained on LAION-400M in the paper. After it, a short stage without dropping closes the gap to whole images (the paper's
"unmasked tuning", here the last ``whole`` of the run). Batch and rate as clip_b32's, not the paper's. Not run here.
"""

from bigvlm import recipe
from configs import clip_b32, common

OWN = dict(drop=.5, whole='1%')


def get_config(arg=None):
    given = [item for item in (arg or '').split(',') if item]
    own = recipe.parse_arg(','.join(item for item in given if item.split('=')[0] in OWN), **OWN)
    rest = [item for item in given if item.split('=')[0] not in OWN]
    c = clip_b32.get_config(common.fork(','.join(rest), 'patch=16'))
    c.about = dict(paper='FLIP, arXiv 2212.00794', data='LAION-400M', devices=256, expected='not yet run')
    share = 100. - float(own.whole.rstrip('%'))
    c.stages = (dict(until=f'{share:g}%', set={'towers.image.patch_dropout': own.drop}), dict(set={'towers.image.patch_dropout': 0.}))
    return c
