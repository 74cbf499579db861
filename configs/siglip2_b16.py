"""SigLIP 2 ViT-B/16's shape (Tschannen et al., arXiv 2502.14786): siglip_b16 with the multilingual vocabulary and lower case.

    python -m bigvlm.train --config 'configs/siglip2_b16.py:data=DIR/*.tar,tokenizer=gemma.model' --workdir runs/siglip2_b16

Only what its released fixed-resolution towers share with SigLIP's is here: the shape, 256,000 pieces of Gemma's tokenizer (license to
be accepted), texts in lower case, 64 tokens. Captioning, self-distillation, masked prediction and active curation, which
the paper adds in training, are not in this recipe. Not run here.
"""

from configs import common, siglip_b16


def get_config(arg=None):
    c = siglip_b16.get_config(common.fork(arg, 'tokenizer=data/gemma_tokenizer.model'))
    c.about = dict(paper='SigLIP 2, arXiv 2502.14786', data='WebLI (private); surrogate DataComp-1B', devices=256, expected='not yet run')
    if 'smoke' not in (arg or '').split(','):
        c.tokenizers.text = dict(name='sentencepiece', model=c.tokenizers.text.model, eos='sticky', pad='pad', lower=True)
        c.towers.text.update(vocab=256_000, pad_id=0)
        for spec in c.evals.values():
            spec.canonicalize = False
    return c
