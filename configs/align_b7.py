"""ALIGN EfficientNet-B7 + BERT-base (Jia et al., arXiv 2102.05918), ``:large`` for EfficientNet-L2 + BERT-large.

    python -m bigvlm.train --config 'configs/align_b7.py:data=DIR/*.tar' --workdir runs/align_b7
    python -m bigvlm.train --config 'configs/align_b7.py:large,data=DIR/*.tar' --workdir runs/align_l2

The paper trains on 1.8 billion private pairs (surrogate: COYO-700M; its filters are predicates of ``tools/data.py filter``). Published:
ImageNet zero-shot top-1 76.4, COCO zero-shot R@1 58.6/45.6 (L2 + BERT-large); ablation B7 + BERT-base on CC3M: COCO 18.9/15.5;
none run here. Faithful: global pooling, a dense layer of no bias on [CLS], 64 tokens, the sum of both directions (weight 2 here,
since ours is their mean), label smoothing .1, temperature learned from 1, LAMB, rate 1e-3, decay 1e-5, 10,000 steps of warm-up,
linear to 0 over 1.2M steps, batch 16,384, 289 pixels. Their own 100k vocabulary is not public: BERT's stands in.
"""

from bigvlm import recipe
from configs import common

DATA = 'coyo700m'


def get_config(arg=None):
    arg = recipe.parse_arg(arg, smoke=False, large=False, image=289, batch=16_384, data=DATA, val='', imagenet='',
                           tokenizer=common.WORDPIECE)
    image, text, width = ('L2', 'large', 1376) if arg.large else ('B7', 'base', 640)
    c = recipe.new()
    c.about = dict(paper='ALIGN, arXiv 2102.05918', data='1.8B alt-texts (private); surrogate COYO-700M', devices=256,
                   expected='L2 + BERT-large: ImageNet zero-shot top-1 76.4 (paper), not yet run')
    c.batch, c.steps = arg.batch, '1200000 steps'
    c.tokenizers = dict(text=dict(name='wordpiece', model=arg.tokenizer))
    c.towers = dict(image=dict(name='efficientnet', size=image, image=arg.image, head=False, out_dim=width, bn_group=64),
                    text=dict(name='bert', size=text, length=64, pool='cls', out_dim=width, out_bias=False, remat='named'))
    c.objectives = dict(contrast=dict(name='contrastive', temperature=1., smoothing=.1, weight=2., dtype='bfloat16'))
    c.data = common.tar_data(arg, 64, (.9, 1.))
    c.evals = common.evals(arg, 64, '5000 steps')
    c.optim = dict(name='lamb', lr=1e-3, weight_decay=1e-5, schedule=dict(name='linear', warmup='10000 steps'), decay=common.DECAY)
    c.checkpoint.every = '2000 steps'
    if arg.smoke:
        smoke(c, arg)
    return c


def smoke(c, arg):
    """The same method, small; a temperature of 1 takes longer to learn than this run lasts."""
    c.towers.image.update(size='B0', wider=.25, deeper=.25, image=common.IMAGE, out_dim=128, bn_group=0, dtype='float32')
    c.towers.text.update(common.small_bert())
    c.objectives.contrast.update(dtype=None, temperature=.07)
    common.small(c, arg, DATA, pair='contrast', tokenizer=common.small_wordpiece())
