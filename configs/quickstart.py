"""The first run: a small SigLIP model on rendered scenes, from nothing to a report in minutes on 2 CPU cores.

    make quickstart        # or: python -m bigvlm.train --config configs/quickstart.py --workdir runs/quickstart

bigvlm_scenes is rendered on first use; some combinations of attributes never occur in its training split, and the
zero-shot classes are those. Expected: see README, Quick start.
"""

from bigvlm import recipe
from configs import common


# Prompts in the captions' own words; which words stand around a class is as much of a choice here as on ImageNet.
TEMPLATES = ('a {}', 'a large {}', 'there is a large {}', 'a large {} in the middle')


def get_config(arg=None):
    arg = recipe.parse_arg(arg, smoke=False, batch=128, steps=1300)
    c = recipe.new()
    c.about = dict(paper='SigLIP, arXiv 2303.15343, small', data='bigvlm_scenes (rendered here)', devices=1,
                   expected='zero-shot top-1 over 60 % on held-out combinations')
    c.batch, c.steps = arg.batch, f'{arg.steps} steps'
    c.tokenizers = dict(text=dict(name='sentencepiece', train_on='train', vocab=256, eos='sticky', pad='eos'))
    small = dict(size='', width=128, heads=2, out_dim=128, dtype='float32')
    c.towers = dict(image=dict(name='vit', image=64, patch=16, depth=3, pool='gap', **small),
                    text=dict(name='text', vocab=256, length=24, depth=1, pool='last', **small))
    # The bias starts near -log(batch), as the paper's -10 does for 32k; equal captions of a batch are no negatives.
    c.objectives = dict(match=dict(name='sigmoid', temperature=10., bias=-5., target='captions'))
    scenes = dict(name='tfds', dataset='bigvlm_scenes')
    c.data = dict(
        train=dict(source=dict(scenes, split='train'), ops=(dict(name='decode'), dict(name='tokenize', length=24))),
        val=dict(source=dict(scenes, split='val'), ops=(dict(name='decode'),)),
        zero_shot=dict(source=dict(scenes, split='zero_shot', label='label'), ops=(dict(name='decode'),)))
    c.evals = dict(
        baseline=dict(name='nearest_caption', zero_shot='zero_shot', retrieval='val', every='start'),
        zero_shot=dict(name='zero_shot', length=24, templates=TEMPLATES, every='50%'),
        retrieval=dict(name='retrieval', data='val', length=24, every='50%'))
    c.eval_first = True
    c.optim = dict(name='adamw', lr=2e-3, b1=.9, b2=.95, weight_decay=1e-4, clip=1., decay_by='schedule',
                   schedule=dict(name='cosine', warmup='10%'), decay=common.DECAY)
    c.checkpoint = dict(every='25%', keep=2, keep_every=0)
    c.log.every = '20 steps'
    if arg.smoke:
        c.steps, c.batch = '60 steps', 64
    return c
