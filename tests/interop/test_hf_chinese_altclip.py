"""ChineseCLIP and AltCLIP of transformers: the same numbers here, the same files back, and what is refused."""

import re

import numpy as np
import pytest
import torch_models

from bigvlm.core.foreign import WeightsError
from bigvlm.interop import hf
from bigvlm.interop.hf import altclip, chinese_clip
from bigvlm.interop.hf._files import Renamed
from tests.interop import pairs
from tests.interop.fakes import Memory

VISION = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16)
TEXT = dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3, vocab_size=50, max_position_embeddings=12)
WIDE = dict(hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=3)
LONG = WIDE | dict(vocab_size=60, max_position_embeddings=26, layer_norm_eps=1e-4)
CASES = {
    'chinese': (chinese_clip, VISION, TEXT),
    'chinese, patch 14, larger image, one type, tanh': (
        chinese_clip, WIDE | dict(image_size=70, patch_size=14, hidden_act='gelu'), LONG | dict(
            type_vocab_size=1, hidden_act='gelu_new', pad_token_id=3)),
    'alt': (altclip, VISION, TEXT | dict(project_dim=20)),
    'alt, patch 14, cut image, other padding': (altclip, WIDE | dict(image_size=45, patch_size=14), LONG | dict(
        project_dim=36, pad_token_id=3, type_vocab_size=2)),
}


def hub_name(name):
    """As the hub's files of AltCLIP have it; transformers 5 writes another."""
    for rule, replacement in altclip.RENAMED:
        name = re.sub(rule, replacement, name)
    return name


@pytest.mark.parity
@pytest.mark.parametrize('case', CASES)
def test_equals_transformers(case, tmp_path):
    module, vision, text = CASES[case]
    transformers = torch_models.transformers()
    kind = 'AltCLIP' if module is altclip else 'ChineseCLIP'
    config = getattr(transformers, f'{kind}Config')(vision_config=vision, text_config=text, projection_dim=28)
    pad = text.get('pad_token_id', 1 if module is altclip else 0)
    first = pad + 1 if module is altclip else 0
    length = text['max_position_embeddings'] - first
    ids_TL = pairs.texts(text['vocab_size'], length, None, pad)
    description, _ = pairs.check(module, getattr(transformers, f'{kind}Model'), config, tmp_path, ids_TL, attended=ids_TL != pad,
                                 rename=hub_name)
    tower = description.config['towers']['text']
    assert (tower.get('first_position', 0), tower['pad_id'], description.length) == (first, pad, length)
    if module is altclip:  # as it is opened in a folder, whichever name is in it
        opened, weights = hf.open_model(tmp_path / 'theirs')
        _, ours = hf.open_model(tmp_path / 'ours')
        assert {*weights.names()} == {*ours.names()} and opened.config == description.config
        name = 'vision_model.encoder.layers.1.mlp.fc2.weight'
        assert np.array_equal(weights.read(name, (slice(3, 5),)), ours.read(name, (slice(3, 5),)))
        assert weights.shape(name) == ours.shape(name) == (vision['hidden_size'], vision['intermediate_size'])


def test_two_names_of_one_array():
    with pytest.raises(WeightsError, match='memory: a.1 and b.1 are two names of one array'):
        Renamed(Memory({'a.1': 0., 'b.1': 0.}), ((r'^[ab]\.', 'c.'),))


def test_what_files_leave_out():
    found = chinese_clip.describe(dict(model_type='chinese_clip'), {}).config['towers']
    assert {key: found['text'][key] for key in ('vocab', 'length', 'types', 'pad_id', 'width', 'out_dim', 'out_bias', 'pool')} == dict(
        vocab=30_522, length=512, types=2, pad_id=0, width=768, out_dim=512, out_bias=False, pool='cls')
    found = altclip.describe(dict(model_type='altclip'), {}).config['towers']
    known = dict(vocab=250_002, length=512, first_position=2, types=1, pad_id=1, width=1024, neck=768, out_dim=768)
    assert {key: found['text'][key] for key in known} == known and found['image']['out_dim'] == 768


@pytest.mark.parametrize('module, fields, message', [
    (chinese_clip, dict(neck=8), '^towers.text.neck: found 8; valid: 0$'),
    (chinese_clip, dict(first_position=2), '^towers.text.first_position: found 2; valid: 0$'),
    (chinese_clip, dict(pool='mean'), "^towers.text.pool: found 'mean'; valid: 'cls'$"),
    (altclip, dict(neck=0), '^towers.text.neck: found 0; valid: 1 or more$'),
    (altclip, dict(out_bias=True), '^towers.text.out_bias: found True; valid: False$'),
    (altclip, dict(pre_norm=True), '^towers.text.pre_norm: found True; valid: False$'),
    (altclip, dict(out_dim=8), '^towers.text.out_dim: found 8, and 768 of the image tower')])
def test_fields_that_their_files_cannot_hold(module, fields, message):
    kind = module.__name__.rpartition('.')[2]
    groups = module.describe(dict(model_type=kind, projection_dim=768), {}).config
    towers = groups['towers'] | dict(text=groups['towers']['text'] | fields)
    with pytest.raises(WeightsError, match=message):
        hf.theirs(groups | dict(towers=towers), kind)
