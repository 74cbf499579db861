"""SigLIP ViT-B/16 (Zhai et al., arXiv 2303.15343) on image-text tars.

    python -m bigvlm.train --config 'configs/siglip_b16.py:image=256,data=DIR/*.tar' --workdir runs/siglip_b16

The paper trains on WebLI (private; surrogate: DataComp-1B or LAION). Published zero-shot ImageNet top-1: 76.0 at 224,
76.5 at 256 pixels (not yet run here). ``:smoke`` is a few minutes on 2 CPU cores, on rendered scenes or your own tars.
Settings: towers, loss and its initial values as in big_vision's released models; batch 32,768, rate 1e-3, weight decay
1e-4, beta2 .95, 20,000 steps of warm-up, 9 billion examples are the paper's as remembered, not checked against its text.
"""

from bigvlm import recipe
from bigvlm.nn.sizes import SIZES
from configs import common

DATA = 'datacomp_1b'
TOKENIZER = 'data/c4_en_sentencepiece.model'  # 32k SentencePiece of C4, English; big_vision's c4_en


def get_config(arg=None):
    arg = recipe.parse_arg(arg, smoke=False, size='B', patch=16, text_size='', image=224, batch=32_768, data=DATA, val='',
                           imagenet='', tokenizer=TOKENIZER)
    c = recipe.new()
    c.about = dict(paper='SigLIP, arXiv 2303.15343', data='WebLI (private); surrogate DataComp-1B', devices=256,
                   expected='ImageNet zero-shot top-1 76.0 at 224, 76.5 at 256 (open_clip results table), not yet run')
    c.batch, c.steps = arg.batch, '9e9 examples'
    c.mesh = dict(replica=1, data=-1, fsdp=1, tensor=1)
    c.tokenizers = dict(text=dict(name='sentencepiece', model=arg.tokenizer, eos='sticky', pad='eos', canonicalize=True))
    c.towers = dict(
        image=dict(name='vit', size=arg.size, patch=arg.patch, image=arg.image, trim=bool(arg.image % arg.patch), pool='map',
                   remat='named'),
        text=dict(name='text', size=arg.text_size or arg.size, vocab=32_000, length=64, pool='last', out_dim=SIZES[arg.size][0],
                  remat='named'))
    c.objectives = dict(match=dict(name='sigmoid', temperature=10., bias=-10., dtype='bfloat16'))
    c.data = common.tar_data(arg, 64, (1., 1.))
    c.evals = common.evals(arg, 64, '5000 steps', canonicalize=True)
    c.optim = dict(name='adafactor', lr=1e-3, momentum=.9, b2_cap=.95, weight_decay=1e-4, clip=1., decay_by='schedule',
                   schedule=dict(name='rsqrt', warmup='20000 steps', timescale='10000 steps', cooldown='20%'), decay=common.DECAY)
    if arg.smoke:
        smoke(c, arg)
    return c


def smoke(c, arg):
    """The same method, small: on rendered scenes, or, longer, on your own tars: a few hundred photos are enough to see it learn."""
    if arg.data in (DATA, 'scenes'):
        c.towers.image.update(common.small_vit())
        c.towers.text.update(common.small_text(pad_id=1))
        c.objectives.match.update(bias=-4., dtype=None)  # near -log(batch), as -10 is for 32k
        common.small(c, arg, DATA, pair='match',
                     tokenizer=common.small_tokenizer(pad='eos'))
        return
    c.batch, c.steps = min(arg.batch, 100), '40 epochs'
    c.tokenizers.text = common.smoke_tokenizer(pad='eos')
    small = dict(size='', width=128, depth=4, heads=4, remat='attended+hidden', dtype='float32')
    c.towers.image.update(small, patch=32, image=224, trim=False)
    c.towers.text.update(small, vocab=2000, length=32, out_dim=128)
    c.objectives.match.update(bias=-5., dtype=None)  # near -log(batch), as -10 is for 32k
    c.data = common.tar_data(arg, 32, (.5, 1.))
    c.evals = common.evals(arg, 32, '10 epochs')
    c.optim = dict(name='adamw', lr=1e-3, b1=.9, b2=.95, weight_decay=1e-4, clip=1., decay_by='schedule',
                   schedule=dict(name='cosine', warmup='10%'), decay=common.DECAY)
    c.checkpoint.every = '10 epochs'
    c.log.every = '10 steps'
