"""FLAVA of transformers: towers, the multimodal encoder and every head and loss with the same numbers, the same files back."""

import fast
import jax.numpy as jnp
import numpy as np
import pytest
import torch_models

from bigvlm import model as model_lib
from bigvlm.core.foreign import WeightsError
from bigvlm.interop.hf import flava
from tests.interop import folders, pairs

B, CODES, VOCAB = 3, 12, 40
CASES = {  # settings of all three encoders, of images, of texts
    'small': (dict(hidden_size=32, num_attention_heads=4, intermediate_size=48, num_hidden_layers=2), dict(image_size=32, patch_size=8),
              dict(max_position_embeddings=12)),
    'patch 14, no bias, other norms, one type': (
        dict(hidden_size=24, num_attention_heads=2, intermediate_size=40, num_hidden_layers=1, qkv_bias=False, layer_norm_eps=1e-3),
        dict(image_size=42, patch_size=14, num_hidden_layers=2), dict(max_position_embeddings=20, type_vocab_size=1, pad_token_id=3)),
}
POOLERS = {f'flava.{part}_model.pooler.dense.{name}' for part in ('image', 'text', 'multimodal') for name in ('weight', 'bias')}


def configure(transformers, case):
    blocks, image, text = CASES[case]
    return transformers.FlavaConfig(
        image_config=blocks | dict(vocab_size=CODES) | image, text_config=blocks | dict(vocab_size=VOCAB) | text, multimodal_config=blocks,
        image_codebook_config=dict(hidden_size=4, vocab_size=CODES, num_blocks_per_group=1), hidden_size=blocks['hidden_size'],
        layer_norm_eps=blocks.get('layer_norm_eps', 1e-12), projection_dim=20)


def batch(description):
    """Images and texts, whole and masked; every text has padding."""
    rng, tower = np.random.default_rng(0), description.config['towers']
    image, text = tower['image'], tower['text']
    length, patches = text['length'] - 2, (image['image'] // image['patch']) ** 2
    ids_BL = pairs.texts(VOCAB, length, None, text['pad_id'], B)
    target_BL = np.where((rng.random((B, length)) < .4) & (ids_BL != text['pad_id']), ids_BL, -1)
    mask_BL = rng.random((B, patches)) < .4
    mask_BL[:, 0] = True
    return dict(image=pairs.images(image['image'], B), text=ids_BL, masked_text=np.where(target_BL >= 0, 4, ids_BL), text_target=target_BL,
                patch_mask=mask_BL, patch_codes=rng.integers(0, CODES, (B, patches)).astype(np.int32),
                id=np.stack([np.zeros(B), np.arange(B)], axis=1).astype(np.uint32))


def numbers(description, flat, b):
    """Tokens after each layer, embeddings, logits, and the metrics of all objectives, on one kind of batch for speed."""
    config, length = description.config, b['text'].shape[1]
    changed = dict(pair=dict(most=length), words=dict(most=length, kinds=('pairs',)), patches=dict(kinds=('pairs',)))
    objectives = {name: dict(spec, **changed.get(name, {})) for name, spec in config['objectives'].items()}
    model = model_lib.from_config(dict(config, objectives=objectives))

    def run(variables, b):
        found = {}
        for name in ('image', 'text'):
            tower = model.towers[name]()
            out = tower.apply({'params': variables['params'][name]}, b[name], layers=tuple(range(tower.depth)))
            found |= {name: out.pooled_BD, f'{name}_tokens': out.tokens_BLD, f'{name}_layers': [out.layers[i] for i in range(tower.depth)]}
        features = model.apply(variables, b, None, 'pairs', False, method='features')
        match, features2 = features['match'], None
        found['logits'] = jnp.exp(variables['params']['match']['t']) * match['image_BD'] @ match['text_BD'].T
        if 'itm' in objectives:
            itm, right_P = features['itm'], jnp.ones(B, bool)
            own = dict(image_PMV=itm['image_BMV'], text_PNT=itm['text_BNT'], text_mask_PN=itm['text_mask_BN'], right_P=right_P,
                       counts_P=right_P)
            features2 = model.apply(variables, {'itm': own}, None, 'pairs', False, method='features2')
            found['itm'] = features2['itm']['logits_P2']
        return found | {'metrics': model.apply(variables, features, features2, method='loss')[1]}
    return fast.jit(run)(folders.variables(flat), b)


def compare_towers(out, model, inputs, mask_BL):
    """``model``: FlavaModel."""
    import torch
    with torch.no_grad():
        theirs = model(**inputs)
        image, text = model.image_projection(theirs.image_embeddings[:, 0]), model.text_projection(theirs.text_embeddings[:, 0])
        unit = [torch.nn.functional.normalize(x, dim=-1) for x in (image, text)]
        logits = unit[0] @ unit[1].T * model.logit_scale.exp()
    whole = np.ones(out['image_tokens'].shape[:2], bool)
    for name, x in (('image', image), ('text', text), ('logits', logits)):
        assert folders.relative(out[name], x.numpy()) < 1e-5, name
    for name, there, where in (('image', theirs.image_output, whole), ('text', theirs.text_output, mask_BL)):
        assert folders.relative(np.asarray(out[f'{name}_tokens'])[where], there.last_hidden_state.numpy()[where]) < 1e-5, name
        assert len(out[f'{name}_layers']) == len(there.hidden_states) - 1
        for found, expected in zip(out[f'{name}_layers'], there.hidden_states[1:]):
            assert folders.relative(np.asarray(found)[where], expected.numpy()[where]) < 1e-4, name
    return theirs


def compare(out, model, inputs, b):
    """``model``: FlavaForPreTraining."""
    import torch
    theirs = compare_towers(out, model.flava, inputs, inputs['attention_mask'].bool().numpy())

    def labels():
        return torch.tensor(b['patch_codes']).long()  # theirs writes into them
    words = dict(input_ids_masked=torch.tensor(b['masked_text']).long(),
                 mlm_labels=torch.tensor(np.where(b['text_target'] < 0, -100, b['text_target'])).long())
    masked = torch.tensor(b['patch_mask'])
    text = {name: x for name, x in inputs.items() if name != 'pixel_values'}
    with torch.no_grad():
        both = model(**inputs, **words, bool_masked_pos=masked, mim_labels=labels(), return_loss=True)
        image = model(pixel_values=inputs['pixel_values'], bool_masked_pos=masked, mim_labels=labels(), return_loss=True)
        alone = model(**text, **words, return_loss=True)
        itm = model.itm_head(theirs.multimodal_embeddings)
    assert folders.relative(out['itm'], itm.numpy()) < 1e-5
    found = {'global_contrastive': 'match/loss', 'mmm_image': 'pair/patch_loss', 'mmm_text': 'pair/word_loss', 'mim': 'patches/loss',
             'mlm': 'words/loss'}
    losses = dict(both.loss_info) | dict(mim=image.loss_info['mim'], mlm=alone.loss_info['mlm'])
    for name, ours in found.items():
        assert abs(float(out['metrics'][ours]) - losses[name].item()) < 1e-5 * losses[name].item(), name


def prepared(description, b):
    import torch
    ids_BL = torch.tensor(b['text']).long()
    return pairs.plain(description, b['image']) | dict(
        input_ids=ids_BL, attention_mask=(ids_BL != description.config['towers']['text']['pad_id']).long())


@pytest.mark.parity
@pytest.mark.parametrize('case', CASES)
def test_equals_transformers(case, tmp_path):
    transformers = torch_models.transformers()
    whole = folders.randomise(transformers.FlavaForPreTraining(configure(transformers, case)))
    config, arrays = folders.save(whole, tmp_path / 'theirs')
    description = flava.describe(config, {})
    flat, b = folders.ours(description, arrays), batch(description)
    out, inputs = numbers(description, flat, b), prepared(description, b)
    compare(out, whole, inputs, b)
    folders.same_bits(description, flat, arrays)
    exported = folders.export(flava, description.config, flat, tmp_path / 'ours', description)
    assert exported.keys() == {name for name in arrays if not name.startswith('image_codebook.')} - POOLERS
    compare(out, folders.reopen(transformers.FlavaForPreTraining, tmp_path / 'ours', POOLERS), inputs, b)


@pytest.mark.parity
def test_the_towers_of_a_file_without_heads(tmp_path):
    transformers = torch_models.transformers()
    whole = folders.randomise(transformers.FlavaModel(configure(transformers, 'small')))
    config, arrays = folders.save(whole, tmp_path / 'theirs')
    description = flava.describe(config, {})
    assert 'fusion' not in description.config and [*description.config['objectives']] == ['match']
    flat, b = folders.ours(description, arrays), batch(description)
    inputs = prepared(description, b)
    compare_towers(numbers(description, flat, b), whole, inputs, inputs['attention_mask'].bool().numpy())
    folders.same_bits(description, flat, arrays)


def test_what_files_leave_out_is_flava_full():
    found = flava.describe({}, {})
    image, text, joint = found.config['towers']['image'], found.config['towers']['text'], found.config['fusion']['joint']
    assert (image['patch'], image['width'], image['depth'], text['vocab'], text['length'], joint['depth'], joint['width']) == (
        16, 768, 12, 30_522, 512, 6, 768)
    assert found.length == 77 and found.image_ops == (dict(name='resize', size=224, crop='squash', method='bicubic'),)
    # transformers' FlavaForPreTraining without its codebook, poolers and second names of biases
    count = sum(int(np.prod(x.shape)) for x in found.abstract.values())
    assert count == 302_087_287


@pytest.mark.parametrize('config, message', [
    (dict(multimodal_config=dict(use_cls_token=False)), '^multimodal_config.use_cls_token: found False; valid: True$'),
    (dict(hidden_size=512), '^multimodal_config.hidden_size: found 768; valid: 512$'),
    (dict(image_config=dict(mask_token=False)), '^image_config.mask_token: found False; valid: True$'),
    (dict(text_config=dict(hidden_act='relu')), "^text_config.hidden_act: found 'relu'; valid: 'gelu'$")])
def test_settings_that_nothing_of_ours_has(config, message):
    with pytest.raises(WeightsError, match=message):
        flava.describe(config, {})


@pytest.mark.parametrize('group, part, fields, message', [
    ('fusion', 'joint', dict(pool='cls'), "^fusion.joint.pool: found 'cls'; valid: 'pooler'$"),
    ('fusion', 'joint', dict(before_norm=False), '^fusion.joint.before_norm: found False'),
    ('objectives', 'patches', dict(norm_eps=1e-5), '^objectives.patches.norm_eps: found 1e-05; valid: 1e-12$'),
    ('objectives', 'words', dict(name='contrastive'), "^objectives: one contrastive objective is expected, found match, words"),
    ('objectives', 'itm', None, "^FLAVA has a matching 'itm', which this recipe has not$"),
    ('towers', 'text', dict(pre_norm=False), '^towers.text.pre_norm: found False')])
def test_fields_that_their_files_cannot_hold(group, part, fields, message):
    groups = dict(flava.describe({}, {}).config)
    if fields is None:
        groups[group] = {name: spec for name, spec in groups[group].items() if name != part}
    else:
        groups[group] = groups[group] | {part: groups[group][part] | fields if 'name' not in fields else fields}
    with pytest.raises(WeightsError, match=message):
        flava.theirs(groups)
