"""KELIP ViT-B/32 (Ko et al., arXiv 2203.14463): two languages, an image tower that first learned to fill in patches, several crops.

    python -m bigvlm.train --config 'configs/kelip_b32.py:data=DIR/*.tar' --workdir runs/kelip_b32

The paper trains on 1.1 billion private pairs, 708M Korean and 476M English (surrogate: LAION-5B's multilingual part). Published English
ImageNet zero-shot top-1: 62.6, as remembered; not run here. The order (masked autoencoding, 75 % masked, then contrast with
several crops) is as remembered; how long each lasts, crops and batch are this recipe's: one run of two stages. The scenes have
German captions for the second language.
"""

from math import log

from bigvlm import recipe
from configs import common

DATA = 'laion5b_multi'
CROPS = ('crops/0', 'crops/1')


def get_config(arg=None):
    arg = recipe.parse_arg(arg, smoke=False, patch=32, image=224, batch=32_768, data=DATA, val='', imagenet='',
                           tokenizer='data/multilingual_sentencepiece.model')
    c = recipe.new()
    c.about = dict(paper='KELIP, arXiv 2203.14463', data='1.1B Korean and English pairs (private); surrogate LAION-5B multilingual',
                   devices=256, expected='ImageNet zero-shot top-1 62.6 (as remembered), not yet run')
    c.batch, c.steps = arg.batch, '3e9 examples'
    c.tokenizers = dict(text=dict(name='sentencepiece', model=arg.tokenizer, eos='sticky', pad='pad'))
    c.towers = dict(
        image=common.clip_vit(size='B', patch=arg.patch, image=arg.image, out_dim=512),
        text=common.clip_text(vocab=98_304, eot_id=1, out_dim=512))
    c.objectives = objectives('bfloat16', arg.patch, (arg.image // arg.patch,) * 2)
    c.clamp = (('contrast_./t', 0., log(100.)),)
    c.data = common.tar_data(arg, 77, (.5, 1.))
    c.data.train.ops = ops(arg.image, 77, arg.image // arg.patch)
    c.evals = common.evals(arg, 77, '5000 steps')
    for spec in c.evals.values():
        spec.objective = 'contrast_0'
    c.stages = stages('10%')
    c.optim = dict(name='adamw', lr=5e-4, b1=.9, b2=.98, eps=1e-6, weight_decay=.2, schedule=dict(name='cosine', warmup='2000 steps'),
                   decay=common.DECAY)
    c.checkpoint.every = '1000 steps'
    if arg.smoke:
        smoke(c, arg)
    return c


def objectives(products, patch: int, grid: tuple[int, int], **decoder) -> dict:
    """The contrast of each crop, and masked autoencoding; stages set which of them count."""
    contrasts = {f'contrast_{i}': dict(name='contrastive', image=crop, text='text', image_tower='image', dtype=products, weight=.5)
                 for i, crop in enumerate(CROPS)}
    return contrasts | dict(fill=dict(name='masked_autoencoder', image=CROPS[0], image_tower='image', patch=patch, grid=grid, ratio=.75,
                                  kinds=('pairs',), **decoder))


def stages(until: str) -> tuple[dict, ...]:
    """Masked autoencoding alone, then contrast alone."""
    def weights(contrast, fill):
        return {'objectives.contrast_0.weight': contrast, 'objectives.contrast_1.weight': contrast, 'objectives.fill.weight': fill}
    return (dict(until=until, set=weights(0., 1.)), dict(set=weights(.5, 0.)))


def ops(image: int, length: int, side: int, fields=None, area=(.5, 1.)) -> tuple[dict, ...]:
    pick = (dict(name='pick_caption', fields=fields),) if fields else ()
    return (dict(name='decode'), dict(name='multi_crop', global_count=2, global_size=image, global_area=area, local_count=0, flip=0.),
            *pick,
            dict(name='tokenize', length=length), dict(name='random_patch_mask', patches=(side, side), ratio=.75, kept='kept'),
            dict(name='keep', keys=(*CROPS, 'text', 'kept')))


def smoke(c, arg):
    """The same method, small; half of the captions are the scenes' German ones."""
    c.towers.image.update(common.small_vit())
    c.towers.text.update(common.small_text())
    c.objectives = objectives(None, 16, (4, 4), width=64, depth=1, heads=2, dtype='float32')
    languages = dict(captions=.5, captions_de=.5)
    common.small(c, arg, DATA, ops=ops(common.IMAGE, common.LENGTH, 4, languages, (.7, 1.)), pair='contrast_0', held_out=('fill',),
                 extra=('captions_de',))
    c.stages = stages('25%')
