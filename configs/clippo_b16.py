"""CLIPPO ViT-B/16 (Tschannen et al., arXiv 2212.08045): one tower reads images, and texts drawn as images.

    python -m bigvlm.train --config 'configs/clippo_b16.py:data=DIR/*.tar,font=unifont.otf' --workdir runs/clippo_b16

Published on YFCC100M, 250,000 steps: ImageNet zero-shot top-1 43.4, COCO zero-shot R@1 34.7/19.7; not run here. Settings of the
authors' public configs: MAP pooling, width 768, softmax contrast from temperature 10, Adafactor, rate 1e-3, decay 1e-4, rsqrt
10,000, batch 10,240; GNU Unifont (download it; the license is free), 16 pixels, grey background. Their option of pairs of
texts from C4 is not in this recipe.
"""

from bigvlm import recipe
from bigvlm.core.parts import RecipeError
from configs import common

DATA = 'yfcc100m'


def get_config(arg=None):
    arg = recipe.parse_arg(arg, smoke=False, size='B', patch=16, image=224, batch=10_240, data=DATA, val='', imagenet='',
                           font='data/unifont.otf')
    c = recipe.new()
    c.about = dict(paper='CLIPPO, arXiv 2212.08045', data='YFCC100M', devices=64,
                   expected='ImageNet zero-shot top-1 43.4 (big_vision), not yet run')
    c.batch, c.steps = arg.batch, '250000 steps'
    c.towers = dict(image=dict(name='vit', size=arg.size, patch=arg.patch, image=arg.image, pool='map', out_dim=768, remat='named'))
    c.objectives = dict(contrast=dict(name='contrastive', image='image', text='text_image', text_tower='image', temperature=.1,
                                      dtype='bfloat16'))
    c.data = common.tar_data(arg, 64, (.9, 1.))
    c.data.train.ops = ops(arg.image, 16, arg.font)
    if arg.val or arg.imagenet:
        raise RecipeError('val, imagenet: evaluations of texts drawn as images are not built; leave both out')
    c.evals = {}
    c.optim = dict(name='adafactor', lr=1e-3, momentum=.9, weight_decay=1e-4, clip=1., decay_by='schedule',
                   schedule=dict(name='rsqrt', warmup='10000 steps', timescale='10000 steps',
                                 cooldown='10000 steps'), decay=common.NO_TABLE)
    c.checkpoint.every = '2000 steps'
    if arg.smoke:
        smoke(c, arg)
    return c


def ops(image: int, font_px: int, font: str = '', area=(.9, 1.)) -> tuple[dict, ...]:
    draw = dict(name='render_text', size=image, font_px=font_px) | (dict(font=font) if font else {})
    return (dict(name='decode'), dict(name='random_resized_crop', size=image, area=area), draw, dict(name='keep', keys=('image',
                                                                                                                        'text_image')))


def smoke(c, arg):
    """The same method, small: 64 pixels hold a few words of eight pixels, in Pillow's own font."""
    c.towers.image.update(common.small_vit())
    c.objectives.contrast.dtype = None
    common.small(c, arg, DATA, ops=ops(common.IMAGE, 8), held_out=('contrast',))
