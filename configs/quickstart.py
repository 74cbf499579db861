"""The first run: a small SigLIP model on rendered scenes, from nothing to a report in minutes on 2 CPU cores.

    make quickstart        # or: python -m bigvlm.train --config configs/quickstart.py --workdir runs/quickstart

bigvlm_scenes is rendered on first use; some combinations of attributes never occur in its training split, and the
zero-shot classes are those. Expected: see README, Quick start.
"""

from bigvlm import recipe
from configs import common


def get_config(arg=None):
    arg = recipe.parse_arg(arg, smoke=False, batch=256, steps=1000)
    c = recipe.new()
    c.about = dict(paper='SigLIP, arXiv 2303.15343, small', data='bigvlm_scenes (rendered here)', devices=1,
                   expected='zero-shot top-1 over 60 % on held-out combinations')
    c.batch, c.steps = arg.batch, f'{arg.steps} steps'
    c.tokenizers = dict(text=dict(name='sentencepiece', train_on='train', vocab=400, eos='sticky', pad='eos'))
    small = dict(size='', width=128, depth=3, heads=2, out_dim=128, dtype='float32')
    c.towers = dict(image=dict(name='vit', image=64, patch=16, pool='map', **small),
                    text=dict(name='text', vocab=400, length=24, pool='last', **small))
    c.objectives = dict(match=dict(name='sigmoid', temperature=10., bias=-10.))
    scenes = dict(name='tfds', dataset='bigvlm_scenes')
    c.data = dict(
        train=dict(source=dict(scenes, split='train'), ops=common.pair_ops(64, 24, (.8, 1.))),
        val=dict(source=dict(scenes, split='val'), ops=common.eval_ops(64)),
        zero_shot=dict(source=dict(scenes, split='zero_shot', label='label'), ops=common.eval_ops(64)))
    c.evals = dict(
        baseline=dict(name='nearest_caption', zero_shot='zero_shot', retrieval='val', every='start'),
        zero_shot=dict(name='zero_shot', length=24, every='50%'),
        retrieval=dict(name='retrieval', data='val', length=24, every='50%'))
    c.eval_first = True
    c.optim = dict(name='adamw', lr=2e-3, b1=.9, b2=.95, weight_decay=1e-4, clip=1., decay_by='schedule',
                   schedule=dict(name='cosine', warmup='10%'), decay=common.DECAY)
    c.checkpoint = dict(every='25%', keep=2, keep_every=0)
    c.log.every = '20 steps'
    if arg.smoke:
        c.steps, c.batch = '60 steps', 64
    return c
