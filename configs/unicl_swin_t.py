"""UniCL Swin-T (Yang et al., arXiv 2204.03610): images with labels and images with captions in one contrast.

    python -m bigvlm.train --config 'configs/unicl_swin_t.py:data=DIR/*.tar,labels=imagenet21k' --workdir runs/unicl_swin_t
    python -m bigvlm.train --config 'configs/unicl_swin_t.py:size=B,drop_path=.5,data=DIR/*.tar' --workdir runs/unicl_swin_b
    python -m bigvlm.train --config 'configs/unicl_swin_t.py:data=DIR/*.tar,labels=' --workdir runs/unicl_captions   # captions only

Published ImageNet zero-shot top-1: IN-21K + YFCC14M Swin-T 40.5, Swin-B 44.3; + GCC15M Swin-B 52.2; YFCC14M only Swin-T 30.1; not
run here. Faithful: positives are all of one label, weighed alike, both directions; pairs have labels of their own; labels become
one of many prompts; t begins at 1, that is a scale of e, and does not decay; AdamW, rate 5e-4, decay .1, clip 5, 32 epochs, 5 of
warm-up, drop path .2 (Swin-T). Batch 4,096 is as remembered. In ``:smoke`` the scenes' held-out names are labels of half the
images that show them; zero-shot classification is of the other half.
"""

import math

from bigvlm import recipe
from configs import common

DATA = 'yfcc15m'
PROMPTS = ('a photo of a {}.', 'a bad photo of a {}.', 'a photo of many {}.', 'a sculpture of a {}.', 'a photo of the hard to see {}.',
           'a low resolution photo of the {}.', 'a rendering of a {}.', 'a cropped photo of the {}.', 'a bright photo of a {}.',
           'a photo of my {}.', 'a close-up photo of a {}.', 'a drawing of a {}.')  # of CLIP's 80


def get_config(arg=None):
    arg = recipe.parse_arg(arg, smoke=False, size='T', image=224, drop_path=.2, batch=4096, data=DATA, labels='imagenet21k', val='',
                           imagenet='',
                           tokenizer=common.BPE)
    c = recipe.new()
    c.about = dict(paper='UniCL, arXiv 2204.03610', data='YFCC14M and ImageNet-21k', devices=64,
                   expected='ImageNet zero-shot top-1 40.5 (UniCL repository), not yet run')
    c.batch, c.steps = arg.batch, '32 epochs'
    c.tokenizers = dict(text=dict(name='clip_bpe', model=arg.tokenizer))
    c.towers = dict(image=dict(name='swin', size=arg.size, image=arg.image, drop_path=arg.drop_path, out_dim=512, out_bias=False),
                    text=common.clip_text(out_dim=512))
    c.objectives = dict(contrast=dict(name='contrastive', target='labels', temperature=1 / math.e, dtype='bfloat16'))
    c.clamp = (('contrast/t', 0., math.log(100.)),)
    c.data = common.tar_data(arg, 77, (.9, 1.))
    c.data.train.ops = ops(arg.image, 77)
    if arg.labels:
        c.data.captions = c.data.train
        c.data.labels = dict(source=common.source(arg.labels, 'train'), number=1,
                             ops=ops(arg.image, 77, dict(name='prompt', templates=PROMPTS)))
        c.data.train = dict(mix=dict(captions=1., labels=1.))
    c.evals = common.evals(arg, 77, '2 epochs')
    c.optim = dict(name='adamw', lr=5e-4, b1=.9, b2=.999, weight_decay=.1, clip=5., schedule=dict(name='cosine', warmup='5 epochs',
                                                                                                  end=5e-6),
                   decay=common.DECAY)
    c.checkpoint.every = '1 epochs'
    if arg.smoke:
        smoke(c, arg)
    return c


def ops(image: int, length: int, *first: dict) -> tuple[dict, ...]:
    return (dict(name='decode'), *first, dict(name='random_resized_crop', size=image, area=(.9, 1.)), dict(name='tokenize', length=length),
            dict(name='unlabelled'), dict(name='keep', keys=('image', 'text', 'label')))


def smoke(c, arg):
    """The same method, small: scenes with captions, and scenes of one object whose name is their label."""
    c.towers.image.update(common.small_swin())
    c.towers.text.update(common.small_text())
    c.objectives.contrast.dtype = None
    common.small(c, arg, DATA, ops=ops(common.IMAGE, common.LENGTH), pair='contrast', label='label')
    if 'zero_shot' in c.data:
        named = dict(c.data.zero_shot.source)
        c.data.zero_shot.source.split = 'zero_shot[:50%]'
        if arg.labels:
            c.data.captions = dict(c.data.train)
            c.data.labels = dict(source=dict(named, split='zero_shot[50%:]'), number=1,
                                 ops=ops(common.IMAGE, common.LENGTH, dict(name='prompt', templates=common.PROMPTS)))
            c.data.train = dict(mix=dict(captions=3., labels=1.))
            c.tokenizers.text.train_on = 'captions'
