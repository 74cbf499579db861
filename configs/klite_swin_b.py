"""K-LITE Swin-B (Shen et al., arXiv 2204.09222): unicl_swin_t, names explained by a dictionary.

    python tools/annotate.py --help             # explained texts beside the captions of your tars, from your file of glosses
    python -m bigvlm.train --config 'configs/klite_swin_b.py:data=DIR/*.tar,knowledge=FILE' --workdir runs/klite_swin_b

Published ImageNet zero-shot top-1, Swin-B on IN-21K + GCC15M + YFCC14M: 55.8 (UniCL there: 52.3); 58.0 with GPT-3's glosses; not run
here. The explained text takes the place of the caption in half of the draws (this share is the recipe's). The glosses are
WordNet's and Wiktionary's: their retrieval happens beforehand, in the file that you give.
"""

from bigvlm import recipe
from configs import common, unicl_swin_t


def get_config(arg=None):
    given = [item for item in (arg or '').split(',') if item]
    own = recipe.parse_arg(','.join(item for item in given if item.startswith('knowledge')), knowledge='')
    c = unicl_swin_t.get_config(common.fork(','.join(item for item in given if not item.startswith('knowledge')), 'size=B', 'drop_path=.5'))
    c.about = dict(paper='K-LITE, arXiv 2204.09222', data='IN-21K, GCC15M, YFCC14M, with glosses', devices=64,
                   expected='ImageNet zero-shot top-1 55.8 (K-LITE repository), not yet run')
    if own.knowledge:
        c.data.captions.source = dict(name='annotated', source=c.data.captions.source, fields=('knowledge',), file=own.knowledge)
        pick = dict(name='pick_caption', fields=dict(captions=.5, knowledge=.5))
        c.data.captions.ops = common.with_op(c.data.captions.ops, pick, before='tokenize')
    return c
