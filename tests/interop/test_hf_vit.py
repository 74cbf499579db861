"""ViT of transformers: the same numbers here, the same files back, and what is refused."""

import fast
import numpy as np
import pytest
import torch_models

from bigvlm.core import parts
from bigvlm.core.foreign import WeightsError
from bigvlm.interop import hf
from bigvlm.interop.hf import vit
from tests.interop import folders, pairs

SMALL = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16)
WIDE = dict(hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=3, image_size=70, patch_size=14)
CASES = {
    'model': ('ViTModel', SMALL),
    'patch 14, larger image, no biases of queries, keys and values, tanh': ('ViTModel', WIDE | dict(
        qkv_bias=False, hidden_act='gelu_pytorch_tanh', layer_norm_eps=1e-6)),
    'classes': ('ViTForImageClassification', SMALL | dict(num_labels=5)),
    'masked': ('ViTForMaskedImageModeling', WIDE | dict(encoder_stride=14)),
}


@pytest.mark.parity
@pytest.mark.parametrize('case', CASES)
def test_equals_transformers(case, tmp_path):
    architecture, settings = CASES[case]
    transformers = torch_models.transformers()
    import torch
    whole = folders.randomise(getattr(transformers, architecture)(transformers.ViTConfig(**settings)))
    config, arrays = folders.save(whole, tmp_path / 'theirs')
    description = vit.describe(config, {})
    flat = folders.ours(description, arrays)
    tower = parts.build('bigvlm.towers', description.config['towers']['image'], 'towers.image')
    image_BHWC = pairs.images(tower.image)
    encode = fast.jit(lambda variables, image: tower.apply(variables, image, layers=tuple(range(tower.depth))))
    ours = encode(folders.variables({path.removeprefix('image/'): x for path, x in flat.items()}), image_BHWC)

    def compare(model):
        with torch.no_grad():
            theirs = model(**pairs.plain(description, image_BHWC), output_hidden_states=True)
        assert len(theirs.hidden_states) == tower.depth + 1
        for i, layer_BLW in enumerate(theirs.hidden_states[1:tower.depth]):  # what they call the last layer's is after the last norm
            assert folders.relative(ours.layers[i], layer_BLW.numpy()) < 1e-5
        assert folders.relative(ours.tokens_BLD, theirs.last_hidden_state.numpy()) < 1e-5
        assert folders.relative(ours.pooled_BD, theirs.last_hidden_state[:, 0].numpy()) < 1e-5
    compare(whole if architecture == 'ViTModel' else whole.vit)

    folders.same_bits(description, flat, arrays)
    exported = folders.export(vit, description.config, flat, tmp_path / 'ours')
    prefix = '' if architecture == 'ViTModel' else 'vit.'
    heads = ('pooler', 'classifier', 'decoder', 'vit.embeddings.mask_token')
    assert {prefix + name for name in exported} == {name for name in arrays if not name.startswith(heads)}
    compare(folders.reopen(transformers.ViTModel, tmp_path / 'ours', ('pooler.dense.weight', 'pooler.dense.bias')))


def test_what_files_leave_out_is_base_at_224():
    found = vit.describe(dict(model_type='vit'), {})
    tower = found.config['towers']['image']
    assert {key: tower[key] for key in ('width', 'depth', 'heads', 'mlp_dim', 'patch', 'image', 'pool', 'qkv_bias', 'norm_eps')} == dict(
        width=768, depth=12, heads=12, mlp_dim=3072, patch=16, image=224, pool='cls', qkv_bias=True, norm_eps=1e-12)
    assert found.image_ops == (dict(name='resize', size=224, crop='squash', method='bilinear'),) and 'objectives' not in found.config
    assert hf.theirs(found.config, 'vit')['architectures'] == ['ViTModel']


@pytest.mark.parametrize('fields, message', [
    (dict(pool='map'), "^towers.image.pool: found 'map'; valid: 'cls'$"), (dict(pre_norm=True), '^towers.image.pre_norm: found True'),
    (dict(out_dim=8), '^towers.image.out_dim: found 8; valid: 0$'), (dict(mask_token=True), '^towers.image.mask_token: found True'),
    (dict(class_position=False), '^towers.image.class_position: found False')])
def test_fields_that_their_files_cannot_hold(fields, message):
    with pytest.raises(WeightsError, match=message):
        vit.theirs(dict(towers=dict(image=dict(name='vit', pool='cls') | fields)))


def test_a_tower_that_is_not_alone():
    with pytest.raises(WeightsError, match='^towers: ViTModel is one tower, image; found image, text$'):
        vit.theirs(dict(towers=dict(image=dict(name='vit', pool='cls'), text=dict(name='text'))))
