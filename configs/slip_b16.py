"""SLIP ViT-B/16 (Mu et al., arXiv 2112.12750): CLIP beside SimCLR on two more views of each image.

    python -m bigvlm.train --config 'configs/slip_b16.py:data=DIR/*.tar' --workdir runs/slip_b16

Published zero-shot ImageNet top-1 on YFCC15M: 42.8 after 25 epochs, 45.0 after 100 (CLIP in the same code: 37.6); CC3M 23.0
(17.1), CC12M 40.7 (36.5); none run here. Settings are those of the authors' code: batch 4,096, AdamW, rate 3e-3, weight
decay .1, one epoch of warm-up, cosine to 1e-5, scale clamped to [0, 100], temperature .1 between views. ``:smoke`` is two
minutes on 2 CPU cores, on rendered scenes, or on your own tars.
"""

from math import log

from bigvlm import recipe
from configs import common

VIEWS = ('views/0', 'views/1')


def get_config(arg=None):
    arg = recipe.parse_arg(arg, smoke=False, size='B', patch=16, image=224, batch=4096, epochs=25, data='yfcc15m', val='', imagenet='',
                           tokenizer='data/bpe_simple_vocab_16e6.txt.gz')
    c = recipe.new()
    c.about = dict(paper='SLIP, arXiv 2112.12750', data='YFCC15M', devices=64,
                   expected='ImageNet zero-shot top-1 42.8 after 25 epochs, 45.0 after 100 (SLIP repository), not yet run')
    c.batch, c.steps = arg.batch, f'{arg.epochs} epochs'
    c.tokenizers = dict(text=dict(name='clip_bpe', model=arg.tokenizer))
    c.towers = dict(
        image=dict(name='vit', size=arg.size, patch=arg.patch, image=arg.image, pool='cls', out_dim=512, out_bias=False, activation='gelu',
                   mean=(.485, .456, .406), std=(.229, .224, .225), remat='named'),
        text=dict(name='text', vocab=49_408, length=77, size='', width=512, depth=12, heads=8, causal=True, pool='eot', eot_id=49_407,
                  pad_id=0, activation='quick_gelu', norm_eps=1e-5, init_scheme='clip', out_dim=512, out_bias=False, remat='named'))
    c.objectives = dict(
        contrast=dict(name='contrastive', temperature=.07, dtype='bfloat16'),
        views=dict(name='image_contrast', views=VIEWS, tower='image', pool='first', hidden=4096, out=256, temperature=.1, weight=1.))
    c.clamp = (('contrast/t', 0., log(100.)),)
    c.data = common.tar_data(arg, 77, (.5, 1.))
    c.data.train.ops = ops(arg.image, 77)
    c.augment = {view: common.SIMCLR for view in VIEWS}
    c.evals = common.evals(arg, 77, '5 epochs')
    c.optim = dict(name='adamw', lr=3e-3, b1=.9, b2=.98, eps=1e-8, weight_decay=.1,
                   schedule=dict(name='cosine', warmup='1 epochs', end=1e-5), decay=common.DECAY)
    c.checkpoint.every = '1 epochs'
    if arg.smoke:
        smoke(c, arg)
    return c


def ops(image: int, length: int, area=(.5, 1.), view=(.08, 1.)) -> tuple[dict, ...]:
    return (dict(name='decode'), dict(name='views', count=2, size=image, area=view),
            dict(name='random_resized_crop', size=image, area=area), dict(name='tokenize', length=length))


def smoke(c, arg):
    """The same method, small. The scenes' captions name colours and places: views keep their colours and are not mirrored."""
    c.towers.image.update(common.small_vit())
    c.towers.text.update(common.small_text())
    c.objectives.contrast.dtype = None
    c.objectives.views.update(hidden=256, out=64)
    c.augment = {view: (dict(name='blur', probability=.2),) for view in VIEWS}
    common.small(c, arg, 'yfcc15m', ops=ops(common.IMAGE, common.LENGTH, (.9, 1.), (.3, 1.)), pair='contrast', held_out=('views',))
