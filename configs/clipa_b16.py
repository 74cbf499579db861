"""CLIPA ViT-B/16 (Li et al., arXiv 2305.07017): an inverse scaling law. Small images and short texts, then a little of both whole.

    python -m bigvlm.train --config 'configs/clipa_b16.py:data=DIR/*.tar' --workdir runs/clipa_b16

Two stages in one run: images of 112 pixels and 16 tokens until 90 % of it, then 224 pixels and 32 tokens. The larger the model,
the shorter its inputs may be, says the paper; which sizes it used for B/16, and for how long, was not at hand: these are
choices of this recipe. Batch, rate and data as clip_b32's. Not run here.
"""

from configs import clip_b32, common


def get_config(arg=None):
    c = clip_b32.get_config(common.fork(arg, 'patch=16'))
    c.about = dict(paper='CLIPA, arXiv 2305.07017', data='LAION-400M', devices=256, expected='not yet run')
    image, length = (64, 24) if 'smoke' in (arg or '').split(',') else (224, 32)
    c.towers.text.length = length
    for spec in c.evals.values():
        if 'length' in spec:
            spec.length = length
    def sizes(image, length):
        return {'data.train.ops.1.size': image, 'data.train.ops.2.length': length}
    c.stages = (dict(until='90%', set=sizes(image // 2, length // 2)), dict(set=sizes(image, length)))
    return c
