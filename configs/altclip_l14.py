"""AltCLIP ViT-L/14 + XLM-R-large (Chen et al., arXiv 2211.06679): a multilingual text tower in the place of CLIP's.

    python tools/annotate.py --help             # the English teacher's text embeddings beside your captions
    python -m bigvlm.train --config 'configs/altclip_l14.py:data=DIR/*.tar,image_weights=hf:openai/clip-vit-large-patch14,\
        text_weights=hf:FacebookAI/xlm-roberta-large' --workdir runs/altclip_l14

Published ImageNet zero-shot top-1: 74.5 (survey, as remembered); not run here. This is its second stage, contrast with a locked image
tower; its first, in which the text tower learns the teacher's embeddings of parallel texts, is not built yet. Without
``image_weights`` and ``text_weights`` the towers begin from nothing. Batch and rate are as remembered, not checked.
"""

from math import log

from bigvlm import recipe
from configs import common

DATA = 'laion5b_multi'


def get_config(arg=None):
    arg = recipe.parse_arg(arg, smoke=False, patch=14, image=224, batch=1024, data=DATA, val='', imagenet='',
                           image_weights='', text_weights='', tokenizer='data/xlmr_sentencepiece.model')
    c = recipe.new()
    c.about = dict(paper='AltCLIP, arXiv 2211.06679', data='Wukong, LAION', devices=8,
                   expected='ImageNet zero-shot top-1 74.5 (as remembered), not yet run')
    c.batch, c.steps = arg.batch, '2e6 examples'
    c.tokenizers = dict(text=dict(name='sentencepiece', model=arg.tokenizer, fairseq=True))
    c.towers = dict(image=common.clip_vit(size='L', patch=arg.patch, image=arg.image, out_dim=768),
                    text=dict(name='bert', vocab=250_002, size='large', length=77, pool='cls', types=1, pad_id=1, first_position=2,
                              neck=768, out_dim=768, out_bias=False, norm_eps=1e-5, remat='named'))
    c.objectives = dict(contrast=dict(name='contrastive', temperature=.07, dtype='bfloat16'))
    c.clamp = (('contrast/t', 0., log(100.)),)
    c.data = common.tar_data(arg, 77, (.9, 1.))
    c.evals = common.evals(arg, 77, '500 steps')
    c.optim = dict(name='adamw', lr=2e-6, b1=.9, b2=.999, weight_decay=.05, schedule=dict(name='cosine', warmup='10%'), decay=common.DECAY,
                   freeze=('image/.*',))
    c.checkpoint.every = '500 steps'
    c.start = common.begin_with(arg.image_weights, arg.text_weights, out='image')
    if arg.smoke:
        smoke(c, arg)
    return c


def smoke(c, arg):
    """The same method, small."""
    c.towers.image.update(common.small_vit())
    c.towers.text.update(common.small_bert(first_position=0, types=2, neck=128))
    c.objectives.contrast.dtype = None
    common.small(c, arg, DATA, pair='contrast', tokenizer=common.small_wordpiece())
    c.optim.freeze = ('image/.*',)
