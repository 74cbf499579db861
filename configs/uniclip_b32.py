"""UniCLIP ViT-B/32 (Lee et al., arXiv 2209.13430): image-text, image-image and text-text pairs of all views in one space.

    python -m bigvlm.train --config 'configs/uniclip_b32.py:data=DIR/*.tar' --workdir runs/uniclip_b32

Published zero-shot ImageNet top-1: 54.2 on CC3M + CC12M + YFCC15M as remembered; COCO zero-shot R@1 32.0/20.2 on YFCC15M (ALIP's
table); not run here. Batch, rate and epochs were not at hand: declip_b32's. What is faithful of the loss, and what not, is
said in objectives/all_pairs.py.
"""

from bigvlm import recipe
from configs import common

DATA = 'yfcc15m'
VIEWS, TEXTS = ('views/0', 'views/1'), ('text', 'other_text')


def get_config(arg=None):
    arg = recipe.parse_arg(arg, smoke=False, patch=32, image=224, batch=4096, data=DATA, val='', imagenet='', tokenizer=common.BPE)
    c = recipe.new()
    c.about = dict(paper='UniCLIP, arXiv 2209.13430', data='CC3M, CC12M, YFCC15M', devices=32,
                   expected='ImageNet zero-shot top-1 54.2 (as remembered), not yet run')
    c.batch, c.steps = arg.batch, '32 epochs'
    c.tokenizers = dict(text=dict(name='clip_bpe', model=arg.tokenizer))
    c.towers = dict(image=common.clip_vit(size='B', patch=arg.patch, image=arg.image, out_dim=0), text=common.clip_text(out_dim=0))
    c.objectives = dict(match=dict(name='all_pairs', images=VIEWS, texts=TEXTS, image_tower='image', text_tower='text', dtype='bfloat16'))
    c.data = common.tar_data(arg, 77, (.2, 1.))
    c.data.train.ops = ops(arg.image, 77)
    c.augment = {view: common.SIMCLR for view in VIEWS}
    c.evals = common.evals(arg, 77, '2 epochs')
    c.optim = dict(name='adamw', lr=1e-3, b1=.9, b2=.98, eps=1e-8, weight_decay=.1, schedule=dict(name='cosine', warmup='2000 steps'),
                   decay=common.DECAY)
    c.checkpoint.every = '1 epochs'
    if arg.smoke:
        smoke(c, arg)
    return c


def ops(image: int, length: int, area=(.2, 1.), flip=.5) -> tuple[dict, ...]:
    return (dict(name='decode'), dict(name='views', count=2, size=image, area=area, flip=flip, keep=False), dict(name='eda', out='other'),
            dict(name='tokenize', length=length), dict(name='tokenize', length=length, caption='other', key='other_text'),
            dict(name='keep', keys=(*VIEWS, *TEXTS)))


def smoke(c, arg):
    """The same method, small."""
    c.towers.image.update(common.small_vit(out_dim=0))
    c.towers.text.update(common.small_text(out_dim=0))
    c.objectives.match.update(dim=128, hidden=256, dtype=None)
    c.augment = {view: (dict(name='blur', probability=.2),) for view in VIEWS}
    common.small(c, arg, DATA, ops=ops(common.IMAGE, common.LENGTH, (.5, 1.), 0.), pair='match', held_out=('match',))
