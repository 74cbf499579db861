"""Florence's shape (Yuan et al., arXiv 2111.11432): unicl_swin_t with a large Swin and a RoBERTa-like text tower.

    python -m bigvlm.train --config 'configs/florence.py:data=DIR/*.tar' --workdir runs/florence

The paper trains CoSwin-H (637M parameters) on FLD-900M (private; surrogate: LAION-400M with ImageNet-21k), in two stages, the
second without augmented prompts, and then at 384 pixels; batch 24,576; ImageNet zero-shot top-1 83.7; all as remembered. CoSwin's
convolutions are not published: Swin-L stands in, so that this is the method's shape, not a reproduction.
"""

from configs import common, unicl_swin_t


def get_config(arg=None):
    c = unicl_swin_t.get_config(common.fork(arg, 'size=L', 'batch=24576', 'data=laion400m'))
    c.about = dict(paper='Florence, arXiv 2111.11432', data='FLD-900M (private); surrogate LAION-400M + ImageNet-21k', devices=256,
                   expected='ImageNet zero-shot top-1 83.7 (as remembered), another tower and other data, not yet run')
    if 'smoke' not in (arg or '').split(','):
        c.tokenizers.text = dict(name='wordpiece', model=common.WORDPIECE)
        c.towers.text = dict(name='bert', size='base', length=77, pool='cls', out_dim=512, out_bias=False, remat='named')
        c.mesh = dict(replica=1, data=-1, fsdp=8, tensor=1)
        # Prompts for labels until nine tenths of the run, then the bare name.
        c.stages = (dict(until='90%', set={'data.labels.ops.1.templates': unicl_swin_t.PROMPTS}),
                    dict(set={'data.labels.ops.1.templates': ('{}',)}))
    return c
