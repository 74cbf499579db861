"""FLAVA (Singh et al., arXiv 2112.04482): pairs, images alone and text alone in one run; five losses over three encoders.

    python -m bigvlm.train --config 'configs/flava.py:data=DIR/*.tar,images=IMAGES/*.tar,text=TEXT/*.jsonl,codebook=CODES.npz' \\
        --workdir runs/flava

The paper: PMD (70M pairs), ImageNet-1k images, CCNews and BookCorpus; ViT-B/16 and a text encoder of the same shape, six layers
over both; contrast, matching and masked pairs on pairs, masked patches on images, masked words on text, all of weight 1;
AdamW, rate 1e-3, weight decay .1, batch 8,192, 10,000 steps of warm-up, kinds in turn. The paper begins from DINO's image and
MLM text encoders; this starts from nothing (they report 2.1 points for it). Its patch codes are DALL-E's (8,192): here those of
tools/train_codebook.py, or DALL-E's from a side field. Published macro average over 35 tasks: 75.85, of its multimodal
part 69.92; not run here. ``:smoke`` is a few minutes on 2 CPU cores, with patch colours for codes.
"""

from math import log

from bigvlm import recipe
from configs import common

SEEN = ('image', 'text', 'masked_text', 'text_target', 'patch_mask', 'patch_codes')


def get_config(arg=None):
    arg = recipe.parse_arg(arg, smoke=False, image=224, batch=8192, steps=150_000, data='pmd', images='imagenet', text='data/text/*.jsonl',
                           val='',
                           imagenet='', vocab='data/bert-base-uncased-vocab.txt', codebook='data/patch_codes_8192.npz')
    c = recipe.new()
    c.about = dict(paper='FLAVA, arXiv 2112.04482', data='PMD (70M pairs), ImageNet-1k, CCNews + BookCorpus', devices=64,
                   expected='macro average over 35 tasks 75.85 (paper), not yet run')
    c.batch, c.steps = arg.batch, f'{arg.steps} steps'
    c.kinds = {kind: dict(data=data, weight=1) for kind, data in (('pairs', 'train'), ('images', 'images'), ('text', 'texts'))}
    c.tokenizers = dict(text=dict(name='wordpiece', model=arg.vocab))
    tower = dict(size='B', activation='gelu', norm_eps=1e-12, remat='named')
    c.towers = dict(
        image=dict(name='vit', patch=16, image=224, pool='cls', mask_token=True, mean=(.485, .456, .406), std=(.229, .224, .225),
                   out_dim=768, **tower),
        text=dict(name='text', vocab=30_522, length=77, pool='first', pad_id=0, eot_id=102, mask_padding=True, out_dim=768, **tower))
    c.fusion = dict(joint=dict(name='merged', width=768, depth=6, heads=12, activation='gelu', norm_eps=1e-12, remat='named'))
    masked = dict(count=75, grid=(14, 14))
    c.objectives = dict(
        contrast=dict(name='contrastive', temperature=.07, dtype='bfloat16'),
        match=dict(name='matching', fusion='joint', negatives='random', wrong=.1),
        pair=dict(name='masked_pair', fusion='joint', image_vocab=8192, vocab=30_522, **masked),
        patches=dict(name='masked_image', target='codes', vocab=8192, transform=True, kinds=('images',), **masked),
        words=dict(name='masked_text', vocab=30_522, kinds=('text',)))
    c.clamp = (('contrast/t', 0., log(100.)),)
    mask = dict(name='block_patch_mask', patches=(14, 14), count=75)
    c.data = sets(arg, 224, 77, (dict(name='patch_codes', codebook=arg.codebook, size=112), mask))
    c.evals = common.evals(arg, 77, '5000 steps')
    c.optim = dict(name='adamw', lr=1e-3, b1=.9, b2=.999, eps=1e-8, weight_decay=.1,
                   schedule=dict(name='cosine', warmup='10000 steps'), decay=common.DECAY)
    c.checkpoint.every = '5000 steps'
    if arg.smoke:
        smoke(c, arg)
    return c


def image_ops(image: int, masks: tuple[dict, ...]) -> tuple[dict, ...]:
    return (dict(name='decode'), dict(name='random_resized_crop', size=image, area=(.9, 1.)), *masks)


def text_ops(length: int) -> tuple[dict, ...]:
    return (dict(name='tokenize', length=length), dict(name='mask_tokens'))


def keep(*keys: str) -> tuple[dict, ...]:
    return (dict(name='keep', keys=keys),)


def sets(arg, image: int, length: int, masks: tuple[dict, ...]) -> dict:
    data = common.tar_data(arg, length, (.9, 1.))
    data['train']['ops'] = image_ops(image, masks) + text_ops(length) + keep(*SEEN)
    data['images'] = dict(source=common.source(arg.images, 'train'), ops=image_ops(image, masks) + keep('image', 'patch_mask',
                                                                                                        'patch_codes'))
    data['texts'] = dict(source=dict(name='table', files=arg.text, captions='text', image=''), ops=text_ops(length) + keep('masked_text',
                                                                                                                'text_target'))
    return data


def smoke(c, arg):
    """The same method, small: 16 patches, of which six are masked; the codes of patches are their colours."""
    c.towers.image.update(common.small_vit())
    c.towers.text.update(common.small_text(vocab=common.VOCAB + 1))
    c.fusion.joint.update(width=128, depth=2, heads=2, dtype='float32', remat='attended+hidden')
    masked = dict(count=6, grid=(4, 4))
    c.objectives.contrast.dtype = None
    c.objectives.pair.update(image_vocab=64, vocab=common.VOCAB + 1, **masked)
    c.objectives.patches.update(vocab=64, **masked)
    c.objectives.words.vocab = common.VOCAB + 1
    masks = (dict(name='patch_colors'), dict(name='block_patch_mask', patches=(4, 4), count=6, least=2))
    ops = image_ops(common.IMAGE, masks) + text_ops(common.LENGTH)
    common.small(c, arg, 'pmd', ops=ops + keep(*SEEN), steps=1200, pair='contrast', held_out=('match', 'pair', 'patches', 'words'),
                 tokenizer=common.small_tokenizer(bos='eos', extra=1))
    train = c.data.train.source
    c.data.images = dict(source=train, ops=image_ops(common.IMAGE, masks) + keep('image', 'patch_mask', 'patch_codes'))
    c.data.texts = dict(source=train, ops=text_ops(common.LENGTH) + keep('masked_text', 'text_target'))
