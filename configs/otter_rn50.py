"""OTTER ResNet-50 (Wu et al., arXiv 2112.09445): optimal transport says which other pairs of a batch go together.

    python -m bigvlm.train --config 'configs/otter_rn50.py:data=DIR/*.tar' --workdir runs/otter_rn50

Published on CC3M: Google Open Images FH@1/5/10 29.1/59.6/70.9, ImageNet-10k 12.0/31.8/42.1 (InfoNCE: 26.8 and 10.9 at 1); not run
here. Settings of the authors' code: SGD, rate 3e-3, no decay, 10 epochs, batch 512, 60 tokens, embedding 768, teacher's decay
.999 (momentum .9 and cosine are choices of this recipe), Sinkhorn's λ .15, five iterations, exp(t) from 1
to 100. Both towers begin from published weights there (an ImageNet ResNet-50, DeCLUTR-sci-base); reading these is not built yet,
so this run begins from nothing. ``noise=.5`` gives half of the training images the captions of others; with
``--config.objectives.transport.alpha=1`` it is the InfoNCE that OTTER is compared with.
"""

from math import log

from bigvlm import recipe
from configs import common

DATA = 'cc3m'


def get_config(arg=None):
    arg = recipe.parse_arg(arg, smoke=False, size='50', image=224, batch=512, data=DATA, val='', imagenet='', noise=0.,
                           tokenizer=common.WORDPIECE)
    c = recipe.new()
    c.about = dict(paper='OTTER, arXiv 2112.09445', data='CC3M', devices=8, expected='GOI FH@1 29.1 (OTTER repository), not yet run')
    c.batch, c.steps = arg.batch, '10 epochs'
    c.tokenizers = dict(text=dict(name='wordpiece', model=arg.tokenizer))
    c.towers = dict(image=dict(name='resnet', size=arg.size, image=arg.image, out_dim=768, bn_group=64),
                    text=dict(name='bert', size='base', length=60, pool='mean', out_dim=768, remat='named'))
    c.objectives = dict(transport=dict(name='transport', teacher='teacher', alpha=.5, regularisation=.15, iterations=5))
    c.clamp = (('transport/t.*', 0., log(100.)),)
    c.ema = dict(teacher=.999)
    c.data = common.tar_data(arg, 60, (.9, 1.))
    c.evals = common.evals(arg, 60, '5000 steps')
    c.optim = dict(name='sgd', lr=3e-3, momentum=.9, weight_decay=0., schedule=dict(name='cosine'), decay=common.DECAY)
    c.checkpoint.every = '1 epochs'
    if arg.smoke:
        smoke(c, arg)
    if arg.noise:
        c.data.train.source = dict(name='mismatched', of=dict(c.data.train.source), share=arg.noise)
    return c


def smoke(c, arg):
    """The same method, small; by Adam, since SGD from nothing takes longer than this run lasts."""
    c.towers.image.update(size='', bottleneck=False, depths=(1, 1, 1, 1), width=16, image=common.IMAGE, out_dim=128, bn_group=0,
                          dtype='float32')
    c.towers.text.update(common.small_bert())
    c.ema.teacher = .99
    common.small(c, arg, DATA, pair='transport', held_out=('transport',),
                 tokenizer=common.small_wordpiece())
