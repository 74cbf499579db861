"""DeCLIP ViT-B/32 (Li et al., arXiv 2110.05208): two views of each image and of each text, four contrasts, three more losses.

    python -m bigvlm.train --config 'configs/declip_b32.py:data=DIR/*.tar' --workdir runs/declip_b32

Published zero-shot ImageNet top-1 on YFCC15M (their own 15,388,848): 43.2 (CLIP in the same code 32.8); not run here. Weights of
the authors' code: contrast .4 (the mean of four), SimSiam .2, masked words .2, nearest neighbour .2; AdamW to 1e-3 by 2,500 steps of
warm-up, decay .1, 128,000 steps of batch 4,096, t from 3 to 6, a queue of 65,536 texts. Their synonyms come from WordNet: give
a file (``synonyms=FILE``), without one words are swapped and deleted only.
"""

from bigvlm import recipe
from configs import common

DATA = 'yfcc15m'
VIEWS, TEXTS = ('views/0', 'views/1'), ('text', 'other_text')
SEEN = (*VIEWS, *TEXTS, 'masked_text', 'text_target')


def get_config(arg=None):
    arg = recipe.parse_arg(arg, smoke=False, patch=32, image=224, batch=4096, data=DATA, val='', imagenet='', synonyms='', filip=False,
                           tokenizer=common.BPE)
    c = recipe.new()
    c.about = dict(paper='DeCLIP, arXiv 2110.05208', data='YFCC15M', devices=32,
                   expected='ImageNet zero-shot top-1 43.2 (DeCLIP repository), not yet run')
    c.batch, c.steps = arg.batch, '128000 steps'
    c.tokenizers = dict(text=dict(name='clip_bpe', model=arg.tokenizer, extra=1))
    c.towers = dict(image=common.clip_vit(size='B', patch=arg.patch, image=arg.image, out_dim=512), text=common.clip_text(vocab=49_409,
                                                                                                                          out_dim=512))
    c.objectives = contrasts('bfloat16') | dict(
        images=dict(name='simsiam', first=VIEWS[0], second=VIEWS[1], weight=.2),
        words=dict(name='masked_text', vocab=49_409, weight=.2),
        neighbour=dict(name='nearest_neighbour', images=VIEWS, texts=TEXTS, size=65_536, weight=.2, dtype='bfloat16'))
    c.clamp = (('contrast_.*/t', 3., 4.6052), ('neighbour/t', 3., 4.6052))
    c.data = common.tar_data(arg, 77, (.2, 1.))
    c.data.train.ops = ops(arg.image, 77, arg.synonyms)
    c.augment = {view: common.SIMCLR for view in VIEWS}
    c.evals = common.evals(arg, 77, '5000 steps')
    for spec in c.evals.values():
        spec.objective = 'contrast_00'
    c.optim = dict(name='adamw', lr=1e-3, b1=.9, b2=.98, eps=1e-8, weight_decay=.1, schedule=dict(name='cosine', warmup='2500 steps'),
                   decay=common.DECAY)
    c.checkpoint.every = '2000 steps'
    if arg.smoke:
        smoke(c, arg)
    return c


def contrasts(dtype) -> dict:
    """Each view of the image with each of the text: the mean of four, of weight .4."""
    return {f'contrast_{i}{j}': dict(name='contrastive', image=view, text=text, image_tower='image', text_tower='text', weight=.1,
                                     dtype=dtype)
            for i, view in enumerate(VIEWS) for j, text in enumerate(TEXTS)}


def ops(image: int, length: int, synonyms: str = '', area=(.2, 1.), flip=.5) -> tuple[dict, ...]:
    eda = dict(name='eda', out='other', replace=1. if synonyms else 0., synonyms=synonyms)
    return (dict(name='decode'), dict(name='views', count=2, size=image, area=area, flip=flip, keep=False), eda,
            dict(name='tokenize', length=length), dict(name='tokenize', length=length, caption='other', key='other_text'),
            dict(name='mask_tokens'), dict(name='keep', keys=SEEN))


def smoke(c, arg):
    """The same method, small. The scenes' captions name colours and places: views keep their colours and are not mirrored."""
    c.towers.image.update(common.small_vit())
    c.towers.text.update(common.small_text(vocab=common.VOCAB + 1))
    for name in c.objectives:
        if name.startswith('contrast_') or name == 'neighbour':
            c.objectives[name].dtype = None
    c.objectives.images.update(projector=128, bottleneck=64)
    c.objectives.words.vocab = common.VOCAB + 1
    c.objectives.neighbour.update(size=1024)
    c.augment = {view: (dict(name='blur', probability=.2),) for view in VIEWS}
    common.small(c, arg, DATA, ops=ops(common.IMAGE, common.LENGTH, area=(.5, 1.), flip=0.), pair='contrast_00',
                 held_out=('images', 'words', 'neighbour'), tokenizer=common.small_tokenizer(extra=1))
