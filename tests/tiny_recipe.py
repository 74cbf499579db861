"""A recipe for tests of the whole loop: a tiny model on tars given as arguments."""

from bigvlm import recipe


def get_config(arg=None):
    arg = recipe.parse_arg(arg, data='', steps=8)
    c = recipe.new()
    c.about = dict(paper='none', data='tars made by a test', devices=1, expected='nothing')
    c.batch, c.steps = 8, f'{arg.steps} steps'
    c.tokenizers = dict(text=dict(name='sentencepiece', train_on='train', vocab=60, pad='eos'))
    small = dict(size='', width=32, depth=2, heads=2, out_dim=16, dropout=.1, dtype='float32')
    c.towers = dict(image=dict(name='vit', image=32, patch=8, patch_dropout=.25, **small),
                    text=dict(name='text', vocab=60, length=8, **small))
    c.objectives = dict(match=dict(name='sigmoid'))
    source = dict(name='webdataset', files=arg.data)
    c.data = dict(
        train=dict(source=source, max_bad=.5, ops=(
            dict(name='decode'), dict(name='random_resized_crop', size=32, area=(.5, 1.)), dict(name='tokenize', length=8))),
        val=dict(source=source, max_bad=.5, ops=(dict(name='decode'), dict(name='resize', size=32))))
    c.evals = dict(retrieval=dict(name='retrieval', length=8, every='4 steps'))
    c.optim = dict(name='adamw', lr=3e-3, schedule=dict(name='cosine', warmup='2 steps'))
    c.ema = dict(slow=.9)
    c.checkpoint = dict(every='2 steps', keep=3, keep_every=0)
    c.log.every = '1 steps'
    return c
