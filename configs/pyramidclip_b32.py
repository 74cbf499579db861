"""PyramidCLIP ViT-B/32 (Gao et al., arXiv 2204.14095): global and local crops and regions meet captions, summaries and tags.

    python tools/annotate.py --help              # summaries and tags (objects with attributes) beside the captions of your tars
    python -m bigvlm.train --config 'configs/pyramidclip_b32.py:data=DIR/*.tar,fields=FIELDS' --workdir runs/pyramidclip_b32

Published zero-shot ImageNet top-1: YFCC15M 41.7, their own choice of it 46.0, 143M pairs 62.5 (RN50 there: 61.4); not run here.
Peers: the global crop with the summary, the local crop with the caption. Across levels: each crop with the tags, and with the
other's text. Softened by label smoothing .2; texts are pooled by their maximum. Left out: regions that enter the tower after its
stem, and LeFF blocks; so the region's two losses are those of crops. The weights of peers and others are as remembered (half
each). The scenes' words of their objects stand in for tags, and their short captions for summaries.
"""

from math import log

from bigvlm import recipe
from bigvlm.core.parts import RecipeError
from configs import common

DATA = 'yfcc15m'
LOSSES = {'global_summary': ('crops/0', 'summary_text', .25), 'local_caption': ('crops/1', 'text', .25),
          'global_tags': ('crops/0', 'tags_text', .125), 'local_tags': ('crops/1', 'tags_text', .125),
          'global_caption': ('crops/0', 'text', .125), 'local_summary': ('crops/1', 'summary_text', .125)}
SEEN = ('crops/0', 'crops/1', 'text', 'summary_text', 'tags_text')


def get_config(arg=None):
    arg = recipe.parse_arg(arg, smoke=False, patch=32, image=224, batch=4096, data=DATA, val='', imagenet='', fields='',
                           tokenizer=common.BPE)
    c = recipe.new()
    c.about = dict(paper='PyramidCLIP, arXiv 2204.14095', data='YFCC15M, summaries and tags', devices=32,
                   expected='ImageNet zero-shot top-1 41.7 (PyramidCLIP repository), not yet run')
    c.batch, c.steps = arg.batch, '32 epochs'
    c.tokenizers = dict(text=dict(name='clip_bpe', model=arg.tokenizer))
    c.towers = dict(image=common.clip_vit(size='B', patch=arg.patch, image=arg.image, out_dim=512),
                    text=common.clip_text(pool='max', out_dim=512))
    c.objectives = {name: dict(name='contrastive', image=image, text=text, image_tower='image', text_tower='text', smoothing=.2,
                               weight=weight,
                               dtype='bfloat16') for name, (image, text, weight) in LOSSES.items()}
    c.clamp = (('.*/t', 0., log(100.)),)
    c.data = common.tar_data(arg, 77, (.9, 1.))
    if not arg.fields and not arg.smoke and arg.data != DATA:
        raise RecipeError('fields: this method needs summaries and tags beside the captions; give the folder that tools/annotate.py wrote')
    if arg.fields:
        c.data.train.source = dict(name='annotated', source=c.data.train.source, fields=('summary', 'tags'), file=arg.fields)
    c.data.train.ops = ops(arg.image, 77, 'summary', 'tags')
    c.evals = common.evals(arg, 77, '2 epochs')
    for spec in c.evals.values():
        spec.objective = 'global_caption'
    c.optim = dict(name='adamw', lr=1e-3, b1=.9, b2=.98, eps=1e-8, weight_decay=.1, schedule=dict(name='cosine', warmup='2000 steps'),
                   decay=common.DECAY)
    c.checkpoint.every = '1 epochs'
    if arg.smoke:
        smoke(c, arg)
    return c


def ops(image: int, length: int, summary: str, tags: str, local=(.05, .4)) -> tuple[dict, ...]:
    crops = dict(name='multi_crop', global_count=1, global_size=image, global_area=(.9, 1.), local_count=1, local_size=image,
                 local_area=local,
                 flip=0.)
    texts = tuple(op for field, key in ((summary, 'summary_text'), (tags, 'tags_text'))
                  for op in (dict(name='pick_caption', fields={field: 1.}, out=f'{key}_words'),
                             dict(name='tokenize', length=length, caption=f'{key}_words', key=key)))
    return (dict(name='decode'), crops, dict(name='tokenize', length=length), *texts, dict(name='keep', keys=SEEN))


def smoke(c, arg):
    """The same method, small; other captions of the same scene stand in for summary and tags."""
    c.towers.image.update(common.small_vit())
    c.towers.text.update(common.small_text())
    for name in c.objectives:
        c.objectives[name].dtype = None
    common.small(c, arg, DATA, ops=ops(common.IMAGE, common.LENGTH, 'captions', 'captions', local=(.4, .8)), pair='global_caption',
                 held_out=('global_caption', 'local_tags'))
