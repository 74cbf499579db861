"""SigLIP and SigLIP 2 of transformers: the same numbers here, the same files back, and what is refused."""

import numpy as np
import pytest
import torch_models
from einops import rearrange

from bigvlm.core.foreign import WeightsError
from bigvlm.interop import hf
from bigvlm.interop.hf import siglip, siglip2
from tests.interop import pairs

VISION = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16)
TEXT = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3, vocab_size=50, max_position_embeddings=10,
            projection_size=32, bos_token_id=None, eos_token_id=None)
WIDE = dict(hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=3, layer_norm_eps=1e-5)
CASES = {
    'small': (siglip, VISION, TEXT),
    'patch 14, larger cut image, gelu, longer text': (siglip, WIDE | dict(image_size=75, patch_size=14, hidden_act='gelu'), WIDE | dict(
        vocab_size=60, max_position_embeddings=24, bos_token_id=None, eos_token_id=None, pad_token_id=0)),
    'SigLIP 2, one grid': (siglip2, {key: x for key, x in VISION.items() if key != 'image_size'} | dict(num_patches=9), TEXT),
    'SigLIP 2, one patch, longer text': (siglip2, dict(WIDE, patch_size=14, num_patches=1), WIDE | dict(
        vocab_size=60, max_position_embeddings=24, bos_token_id=None, eos_token_id=None, pad_token_id=0)),
}


def cut(description, image_BHWC):
    """Patches of one grid, as SigLIP 2's processor makes them of square images."""
    import torch
    patch = description.config['towers']['image']['patch']
    patches_BLP = rearrange(pairs.normalised(description, image_BHWC), 'b (r p) (c q) k -> b (r c) (p q k)', p=patch, q=patch)
    number, length, _ = patches_BLP.shape
    side = round(length ** .5)
    return dict(pixel_values=torch.tensor(patches_BLP), pixel_attention_mask=torch.ones(number, length, dtype=torch.int32),
                spatial_shapes=torch.full((number, 2), side))


@pytest.mark.parity
@pytest.mark.parametrize('case', CASES)
def test_equals_transformers(case, tmp_path):
    module, vision, text = CASES[case]
    transformers = torch_models.transformers()
    kind = 'Siglip2' if module is siglip2 else 'Siglip'
    config = getattr(transformers, f'{kind}Config')(vision_config=vision, text_config=text)
    ids_TL = pairs.texts(text['vocab_size'], text['max_position_embeddings'], None, text.get('pad_token_id', 1))  # padding is attended to
    description, flat = pairs.check(module, getattr(transformers, f'{kind}Model'), config, tmp_path, ids_TL,
                                    pixels=cut if module is siglip2 else None)
    assert description.length == text['max_position_embeddings'] and abs(flat['match/b']) > .01
    side = description.config['towers']['image']['image']
    assert description.image_ops == (dict(name='resize', size=side, crop='squash', method='bicubic'),)


@pytest.mark.parity
def test_their_processor_of_a_square_cuts_as_here():
    """In rows of pixels, colours last: what our patch kernel is of."""
    transformers = torch_models.transformers()
    processor = transformers.Siglip2ImageProcessor(patch_size=14, max_num_patches=9)
    image_HWC = np.random.default_rng(0).integers(0, 256, (42, 42, 3), dtype=np.uint8)
    found = processor(images=image_HWC, return_tensors='pt')
    assert found['spatial_shapes'].tolist() == [[3, 3]] and found['pixel_attention_mask'].min() == 1
    description = siglip2.describe(dict(vision_config=dict(patch_size=14, num_patches=9)), {})
    np.testing.assert_allclose(found['pixel_values'], cut(description, np.float32(image_HWC[None] / 255.))['pixel_values'], atol=1e-6)


def config(kind='siglip', vision=None, **text):
    vision = {key: x for key, x in VISION.items() if kind == 'siglip' or key != 'image_size'} | (vision or {})
    return dict(model_type=kind, vision_config=vision, text_config=TEXT | text)


def test_what_files_leave_out_is_base_at_224():
    towers = siglip.describe(dict(model_type='siglip', vision_config={}, text_config=None), {}).config['towers']
    assert {key: towers['image'][key] for key in ('width', 'depth', 'mlp_dim', 'patch', 'image', 'pool', 'mean', 'activation')} == dict(
        width=768, depth=12, mlp_dim=3072, patch=16, image=224, pool='map', mean=(.5, .5, .5), activation='gelu_tanh')
    assert {key: towers['text'][key] for key in ('vocab', 'length', 'out_dim', 'out_bias', 'pool', 'causal')} == dict(
        vocab=32_000, length=64, out_dim=768, out_bias=True, pool='last', causal=False)
    naflex = siglip2.describe(dict(model_type='siglip2'), {})
    assert naflex.config['towers']['image']['image'] == 256 and naflex.config['objectives'] == dict(match=dict(name='sigmoid'))


@pytest.mark.parametrize('kind, vision, text, processor, message', [
    ('siglip', dict(vision_use_head=False), {}, {}, '^vision_use_head: found False; valid: True$'),
    ('siglip', {}, dict(projection_size=16), {}, '^text_config.projection_size: found 16; valid: the width of the image tower, 32$'),
    ('siglip', {}, {}, dict(size=dict(height=32, width=64)), r'^preprocessor_config.json: size: found \(32, 64\)'),
    ('siglip', {}, {}, dict(size=dict(height=64, width=64)), '^preprocessor_config.json: size: images of 64 pixels for a model of 32$'),
    ('siglip2', dict(num_patches=10), {}, {}, '^num_patches: found 10; valid: squares$'),
    ('siglip2', dict(num_patches=9), {}, dict(image_processor_type='Siglip2ImageProcessor'), '^preprocessor_config.json: its images keep'),
    ('siglip2', dict(num_patches=9), {}, dict(max_num_patches=9), 'there is no tower; valid: a SiglipImageProcessor of one height'),
])
def test_settings_that_nothing_of_ours_has(kind, vision, text, processor, message):
    with pytest.raises(WeightsError, match=message):
        (siglip2 if kind == 'siglip2' else siglip).describe(config(kind, vision, **text), processor)


def test_a_processor_of_a_fixed_size_makes_siglip2_one_of_a_fixed_size():
    found = siglip2.describe(config('siglip2', dict(num_patches=9)), dict(image_processor_type='SiglipImageProcessor', resample=2,
                                                                          size=dict(height=48, width=48)))
    assert found.image_ops == (dict(name='resize', size=48, crop='squash', method='bilinear'),)
    written = hf.image_processor(found.config, 'siglip2', found.image_ops)
    assert written['image_processor_type'] == 'SiglipImageProcessor' and written['size'] == dict(height=48, width=48)
    assert siglip2.describe(config('siglip2', dict(num_patches=9)), written).image_ops == found.image_ops


@pytest.mark.parametrize('tower, fields, message', [
    ('image', dict(pool='gap'), "^towers.image.pool: found 'gap'; valid: 'map'$"),
    ('image', dict(out_dim=8), '^towers.image.out_dim: found 8; valid: 0$'),
    ('image', dict(position='sincos2d'), "^towers.image.position: found 'sincos2d'; valid: 'learned'$"),
    ('text', dict(out_dim=8), '^towers.text.out_dim: found 8; valid: 32$'),
    ('text', dict(mask_padding=True), '^towers.text.mask_padding: found True; valid: False$'),
    ('text', dict(pool='mean'), "^towers.text.pool: found 'mean'; valid: 'last'$")])
def test_fields_that_their_files_cannot_hold(tower, fields, message):
    towers = siglip.describe(config(), {}).config['towers']
    with pytest.raises(WeightsError, match=message):
        hf.theirs(dict(towers=towers | {tower: towers[tower] | fields}, objectives=dict(match=dict(name='sigmoid'))), 'siglip')
