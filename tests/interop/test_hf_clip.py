"""CLIP of transformers: the same numbers here, the same files back, and what is refused."""

import json
import math

import numpy as np
import pytest
import torch_models

from bigvlm.core.foreign import WeightsError
from bigvlm.interop import hf
from bigvlm.interop.hf import _files, clip
from tests.interop import pairs

VISION = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16)
TEXT = dict(hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, vocab_size=50, max_position_embeddings=10,
            bos_token_id=None, eos_token_id=49)
WIDE = dict(hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=3, hidden_act='gelu')
CASES = {  # vision, text, padding (whether it is masked)
    'small': (VISION, TEXT, 49, False),
    'patch 14, larger image, gelu, longer masked text': (
        WIDE | dict(image_size=70, patch_size=14, layer_norm_eps=1e-4), WIDE | dict(
            vocab_size=60, max_position_embeddings=24, bos_token_id=None, eos_token_id=58, pad_token_id=0), 0, True),
    'cut image, old end of text': (VISION | dict(image_size=45, patch_size=14), TEXT | dict(eos_token_id=2), 0, False),
}


@pytest.mark.parity
@pytest.mark.parametrize('case', CASES)
def test_equals_transformers(case, tmp_path):
    vision, text, pad, masked = CASES[case]
    transformers = torch_models.transformers()
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=20, logit_scale_init_value=2.5)
    end = text['vocab_size'] - 1 if text['eos_token_id'] == 2 else text['eos_token_id']
    ids_TL = pairs.texts(text['vocab_size'], text['max_position_embeddings'] - 2, end, pad)  # fewer than the positions
    description, _ = pairs.check(clip, transformers.CLIPModel, config, tmp_path, ids_TL, attended=ids_TL != pad if masked else None)
    tower = description.config['towers']['text']
    assert tower['pool'] == ('argmax' if text['eos_token_id'] == 2 else 'eot') and tower['pad_id'] == text.get('pad_token_id', 1)
    assert description.length == text['max_position_embeddings']
    assert description.config['objectives']['match'] == dict(name='contrastive', temperature=pytest.approx(np.exp(-2.5), 1e-5))


@pytest.mark.parity
def test_a_folder_as_transformers_leaves_it(tmp_path):
    transformers = torch_models.transformers()
    config = transformers.CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=20)
    transformers.CLIPModel(config).save_pretrained(tmp_path)
    transformers.CLIPImageProcessor(size={'shortest_edge': 32}, crop_size=32, image_mean=[.1, .2, .3]).save_pretrained(tmp_path)
    description, weights = hf.open_model(tmp_path)
    assert description.image_ops == (dict(name='resize', size=32, crop='center', method='bicubic', rounding='floor'),)
    assert description.config['towers']['image']['mean'] == (.1, .2, .3) and description.tokenizer is None
    assert {*weights.names()} == {name for entry in description.table.values() for name in hf_names(entry)}
    written = hf.image_processor(description.config, 'clip', description.image_ops)
    again = json.loads((tmp_path / 'preprocessor_config.json').read_text())
    for key in ('size', 'crop_size', 'resample', 'do_center_crop', 'do_rescale', 'do_normalize', 'do_resize'):
        assert written[key] == again[key], key
    assert written['image_processor_type'] == again['image_processor_type'] and written['image_mean'] == again['image_mean']


def hf_names(entry):
    return [one.name for one in (entry if isinstance(entry, tuple) else (entry,))]


def config(**more):
    return dict(model_type='clip', vision_config=dict(VISION), text_config=dict(TEXT), projection_dim=20) | more


def test_old_files_say_a_tower_twice():
    plain, told = clip.describe(config(), {}), clip.describe(config(text_config=dict(hidden_size=8), text_config_dict=TEXT), {})
    assert plain.config == told.config
    nothing = clip.describe(config(text_config_dict=None), {})
    assert nothing.config == plain.config
    empty = clip.describe(config(text_config_dict={}), {})
    assert empty.config['towers']['text']['width'] == 512  # theirs begins from their defaults, too


def test_what_files_leave_out_is_openais_b32():
    found = clip.describe(dict(model_type='clip'), {})
    assert sum(math.prod(x.shape) for x in found.abstract.values()) == 151_277_313
    towers = found.config['towers']
    assert {key: towers['image'][key] for key in ('width', 'depth', 'heads', 'mlp_dim', 'patch', 'image', 'out_dim', 'activation')} == dict(
        width=768, depth=12, heads=12, mlp_dim=3072, patch=32, image=224, out_dim=512, activation='quick_gelu')
    assert {key: towers['text'][key] for key in ('width', 'depth', 'heads', 'vocab', 'length', 'eot_id', 'causal')} == dict(
        width=512, depth=12, heads=8, vocab=49_408, length=77, eot_id=49_407, causal=True)
    assert towers['image']['mean'] == (.48145466, .4578275, .40821073) and towers['image']['dtype'] == 'float32'


@pytest.mark.parametrize('more, processor, message', [
    (dict(vision_config=VISION | dict(image_size=[32, 48])), {}, r'^image_size: found \[32, 48\]'),
    (dict(vision_config=VISION | dict(hidden_act='silu')), {}, "^hidden_act: found 'silu'; valid: gelu, "),
    (dict(vision_config=VISION | dict(num_channels=4)), {}, '^num_channels: found 4; valid: 3$'),
    (dict(vision_config=VISION | dict(num_attention_heads=3)), {}, '^num_attention_heads: 3 heads do not divide hidden_size, 32$'),
    (dict(text_config=TEXT | dict(num_hidden_layers='two')), {}, "^num_hidden_layers: found 'two'; valid: whole numbers from 1$"),
    (dict(text_config='TEXT'), {}, "^text_config: a mapping is expected, found 'TEXT'$"),
    (dict(text_config=TEXT | dict(eos_token_id=[1, 2])), {}, r'^eos_token_id: found \[1, 2\]'),
    (dict(projection_dim=0), {}, '^projection_dim: found 0'),
    ({}, dict(resample=0), '^preprocessor_config.json: resample: found 0; valid: 2, 3$'),
    ({}, dict(do_resize=False), '^preprocessor_config.json: do_resize: found False'),
    ({}, dict(rescale_factor=1 / 127.5), '^preprocessor_config.json: rescale_factor: found 0.0078'),
    ({}, dict(crop_size=24, size=24), '^preprocessor_config.json: crop_size: images of 24 pixels for a model of 32$'),
    ({}, dict(size=dict(shortest_edge=36)), r"^preprocessor_config.json: size: found {'shortest_edge': 36} with a crop of 32"),
    ({}, dict(do_center_crop=False), r"^preprocessor_config.json: size: found {'shortest_edge': 32} with no crop"),
    ({}, dict(image_mean=[.5]), '^preprocessor_config.json: image_mean: found'),
])
def test_settings_that_nothing_of_ours_has(more, processor, message):
    with pytest.raises(WeightsError, match=message):
        clip.describe(config(**more), processor)


def test_processors_that_squash_or_do_not_normalise():
    found = clip.describe(config(), dict(size=dict(height=32, width=32), do_center_crop=False, do_normalize=False, resample=2))
    assert found.image_ops == (dict(name='resize', size=32, crop='squash', method='bilinear'),)
    assert found.config['towers']['image']['mean'] == (0., 0., 0.) and found.config['towers']['image']['std'] == (1., 1., 1.)
    assert clip.describe(config(), dict(size=32, crop_size=32)).image_ops == clip.describe(config(), {}).image_ops  # as old files write it


@pytest.mark.parametrize('tower, fields, message', [
    ('image', dict(pool='map'), "^towers.image.pool: found 'map'; valid: 'cls'$"),
    ('image', dict(patch_bias=True), '^towers.image.patch_bias: found True; valid: False$'),
    ('image', dict(qkv_bias=False), '^towers.image.qkv_bias: found False; valid: True$'),
    ('image', dict(out_bias=True), '^towers.image.out_bias: found True'),
    ('image', dict(out_dim=0), '^towers.text.out_dim: found 20, and 0 of the image tower'),
    ('image', dict(name='resnet'), "^towers.image.name: found 'resnet'; valid: vit$"),
    ('text', dict(pool='last'), "^towers.text.pool: found 'last'; valid: 'eot', 'argmax'$"),
    ('text', dict(eot_id=2), '^towers.text.eot_id: found 2, which means'),
    ('text', dict(causal=False), '^towers.text.causal: found False'),
    ('text', dict(out_dim=24), '^towers.text.out_dim: found 24, and 20 of the image tower; valid: the same, not 0$'),
])
def test_fields_that_their_files_cannot_hold(tower, fields, message):
    towers = clip.describe(config(), {}).config['towers']
    spec = towers[tower] | fields if 'name' not in fields else fields
    with pytest.raises(WeightsError, match=message):
        hf.theirs(dict(towers=towers | {tower: spec}, objectives=dict(match=dict(name='contrastive'))), 'clip')


def test_objectives_that_are_not_one_learned_contrast():
    groups = clip.describe(config(), {}).config
    for objectives, message in (({}, 'objectives: one contrastive objective is expected, found none'),
                                (dict(a=dict(name='contrastive'), b=dict(name='contrastive')), 'found a, b'),
                                (dict(match=dict(name='contrastive', learned=False)), '^objectives.learned: found False; valid: True$')):
        with pytest.raises(WeightsError, match=message):
            clip.theirs(groups | dict(objectives=objectives))
    with pytest.raises(WeightsError, match="^towers: there is no tower 'text'$"):
        clip.theirs(groups | dict(towers=dict(image=groups['towers']['image'])))


def test_ours_whose_config_says_a_size_are_written_in_numbers():
    both = dict(out_dim=512, out_bias=False)
    groups = dict(towers=dict(image=dict(name='vit', size='B', patch=32, pool='cls', pre_norm=True, patch_bias=False, **both),
                              text=dict(name='text', size='S', causal=True, pool='eot', eot_id=1, **both)),
                  objectives=dict(contrast=dict(name='contrastive')))
    found = clip.theirs(groups)
    assert (found['vision_config']['hidden_size'], found['text_config']['hidden_size'], found['text_config']['intermediate_size']) == (
        768, 384, 1536)
    assert found['vision_config']['hidden_act'] == 'gelu_pytorch_tanh' and found['projection_dim'] == 512


@pytest.mark.parametrize('files, message', [
    ({}, 'there is no config.json, so this is no folder of transformers$'),
    ({'config.json': '{'}, 'config.json: this is no JSON'),
    ({'config.json': '[1]'}, 'config.json: a mapping is expected, found list$'),
    ({'config.json': '{"model_type": "opt"}'}, "model_type: found 'opt'; valid: altclip, .*clip, .*vit"),
    ({'config.json': '{"model_type": "clip", "projection_dim": -1}'}, 'projection_dim: found -1; valid: whole numbers from 1$'),
])
def test_folders_that_are_no_model(files, message, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(WeightsError, match=message) as error:
        hf.describe(tmp_path)
    assert str(error.value).startswith(str(tmp_path)) and '\n' not in str(error.value)


def test_the_processor_may_be_in_another_file(tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps(config()))
    (tmp_path / 'processor_config.json').write_text(json.dumps(dict(image_processor=dict(image_std=[.1, .2, .4]))))
    assert hf.describe(tmp_path).config['towers']['image']['std'] == (.1, .2, .4)


def test_models_of_the_hub(monkeypatch, tmp_path):
    asked = []

    def snapshot(name, allow_patterns, ignore_patterns):
        asked.append((name, '*.bin' in allow_patterns))
        if name == 'org/none':
            raise OSError('Not Found\nmore')
        return str(tmp_path)
    monkeypatch.setattr(_files.huggingface_hub, 'snapshot_download', snapshot)
    assert _files.folder(tmp_path) == tmp_path and not asked
    assert _files.folder('org/name') == tmp_path
    assert asked == [('org/name', False), ('org/name', True)]  # there is no file of safetensors
    (tmp_path / 'model.safetensors').write_bytes(b'')
    assert _files.folder('name') == tmp_path and asked[2:] == [('name', False)]
    with pytest.raises(WeightsError, match='^org/none: there is no such folder, and the Hugging Face hub .* have it: Not Found more$'):
        _files.folder('org/none')
    with pytest.raises(WeightsError, match='^a/b/c: there is no such folder, and no model'):
        _files.folder('a/b/c')
