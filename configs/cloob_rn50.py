"""CLOOB ResNet-50 (Fürst et al., arXiv 2110.11316): leave one out, after a Hopfield network's retrieval.

    python -m bigvlm.train --config 'configs/cloob_rn50.py:data=DIR/*.tar' --workdir runs/cloob_rn50

Published zero-shot ImageNet top-1 on CC3M: 23.97 (CLIP in the same code: 20.33), both as remembered; not run here. Settings of
the authors' code: batch 512, AdamW, rate 1e-3, decay .1, 20,000 steps of warm-up, cosine with restarts (10 cycles), 70 epochs,
inverse temperature 30 fixed, Hopfield scale 8.
"""

from configs import clip_rn50, common


def get_config(arg=None):
    smoke = 'smoke' in (arg or '').split(',')
    c = clip_rn50.get_config(common.fork(arg, 'batch=512', 'data=cc3m'))
    c.about = dict(paper='CLOOB, arXiv 2110.11316', data='CC3M', devices=8,
                   expected='ImageNet zero-shot top-1 23.97 (as remembered), not yet run')
    c.objectives = dict(loob=dict(name='loob', temperature=1 / 30, hopfield=8., dtype=None if smoke else 'bfloat16'))
    c.clamp = ()
    for spec in c.evals.values():
        spec.objective = 'loob'
    if not smoke:
        c.steps = '70 epochs'
        c.towers.image.bn_group = 64
        c.optim = dict(name='adamw', lr=1e-3, b1=.9, b2=.999, eps=1e-8, weight_decay=.1,
                       schedule=dict(name='cosine_restarts', warmup='20000 steps', cycles=10), decay=common.DECAY)
    return c
