"""BERT, RoBERTa and XLM-RoBERTa of transformers: the same numbers here, the same files back, and what is refused."""

import importlib

import fast
import numpy as np
import pytest
import torch_models

from bigvlm.core import foreign, parts
from bigvlm.core.foreign import WeightsError
from bigvlm.interop.hf import _files, bert
from tests.interop import folders
from tests.interop.fakes import Memory

SMALL = dict(vocab_size=40, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48, layer_norm_eps=1e-5)
MODELS = {
    'bert': ('Bert', 'Model', dict(max_position_embeddings=10)),
    'bert, one type, tanh, longer': ('Bert', 'Model', dict(max_position_embeddings=16, type_vocab_size=1, hidden_act='gelu_new',
                                                          num_hidden_layers=2, pad_token_id=3)),
    'bert, words': ('Bert', 'ForMaskedLM', dict(max_position_embeddings=10)),
    'bert, both': ('Bert', 'ForPreTraining', dict(max_position_embeddings=10)),
    'roberta': ('Roberta', 'Model', dict(max_position_embeddings=12, type_vocab_size=1)),
    'roberta, words': ('Roberta', 'ForMaskedLM', dict(max_position_embeddings=14, pad_token_id=3)),
    'xlm': ('XLMRoberta', 'ForMaskedLM', dict(max_position_embeddings=12, type_vocab_size=1)),
}


def texts(vocab, pad, length=10):
    rng = np.random.default_rng(0)
    ids_BL = rng.integers(4, vocab, (3, length)).astype(np.int32)
    ids_BL[1, 5:] = ids_BL[2, 1:] = pad
    return ids_BL


def encode(tower):
    """params, ids -> Encoded with the tokens after each layer."""
    return fast.jit(lambda variables, ids: tower.apply(variables, ids, layers=tuple(range(tower.dims()[1]))))


@pytest.mark.parity
@pytest.mark.parametrize('case', MODELS)
def test_equals_transformers(case, tmp_path):
    kind, architecture, settings = MODELS[case]
    transformers = torch_models.transformers()
    import torch
    module = importlib.import_module(f'bigvlm.interop.hf.{dict(Bert="bert", Roberta="roberta", XLMRoberta="xlm_roberta")[kind]}')
    config = getattr(transformers, f'{kind}Config')(**SMALL | settings)
    whole = folders.randomise(getattr(transformers, kind + architecture)(config))
    their_config, arrays = folders.save(whole, tmp_path / 'theirs')
    description = module.describe(their_config, {})
    flat = folders.ours(description, arrays)
    pooled = architecture != 'ForMaskedLM'
    tower = parts.build('bigvlm.towers', description.config['towers']['text'], 'towers.text')
    assert (tower.pool, description.length) == ('pooler' if pooled else 'cls', tower.length)
    ids_BL = texts(40, config.pad_token_id)
    mask_BL = ids_BL != config.pad_token_id
    base = whole if architecture == 'Model' else whole.base_model

    def compare(model):
        with torch.no_grad():
            theirs = model(torch.tensor(ids_BL).long(), attention_mask=torch.tensor(mask_BL).long(), output_hidden_states=True)
        out = encode(tower)(folders.variables({path.removeprefix('text/'): x for path, x in flat.items()}), ids_BL)
        for i, layer_BLW in enumerate(theirs.hidden_states[1:]):  # RoBERTa's padding has another position
            assert folders.relative(out.layers[i][mask_BL], layer_BLW.numpy()[mask_BL]) < 1e-5
        assert folders.relative(out.pooled_BD, (theirs.pooler_output if pooled else theirs.last_hidden_state[:, 0]).numpy()) < 1e-5
    compare(base)

    folders.same_bits(description, flat, arrays)
    folders.export(module, description.config, flat, tmp_path / 'ours', description)
    compare(folders.reopen(getattr(transformers, f'{kind}Model'), tmp_path / 'ours',
                           () if pooled else ('pooler.dense.weight', 'pooler.dense.bias')))


def test_names_of_the_first_files():
    description = bert.describe(SMALL | dict(architectures=['BertForMaskedLM']), {})
    shapes = {path: x.shape for path, x in description.abstract.items()}
    older = {name.replace('LayerNorm.weight', 'LayerNorm.gamma').replace('LayerNorm.bias', 'LayerNorm.beta'): np.zeros(shape)
             for name, shape in foreign.expected(description.table, shapes).items()}
    assert any(name.endswith('gamma') for name in older)
    heads = {'cls.predictions.transform.LayerNorm.gamma': np.zeros(4), 'bert.pooler.dense.bias': np.zeros(4)}
    foreign.Arrays(_files.Renamed(Memory(older | heads), bert.RENAMED), description.table, shapes, description.ignored)


@pytest.mark.parametrize('config, message', [
    (dict(is_decoder=True), '^is_decoder: found True; valid: False$'), (dict(hidden_act='silu'), "^hidden_act: found 'silu'; valid: gelu,"),
    (dict(position_embedding_type='relative_key'), "^position_embedding_type: found 'relative_key'; valid: 'absolute'$"),
    (dict(type_vocab_size=0), '^type_vocab_size: found 0'), (dict(num_attention_heads=5), '^num_attention_heads: 5 heads do not divide')])
def test_settings_that_no_tower_has(config, message):
    with pytest.raises(WeightsError, match=message):
        bert.describe(config, {})


@pytest.mark.parametrize('fields, message', [
    (dict(pool='mean'), "^towers.text.pool: found 'mean'; valid: 'pooler', 'cls'$"), (dict(types=0), '^towers.text.types: found 0'),
    (dict(out_dim=8), '^towers.text.out_dim: found 8; valid: 0$'), (dict(pre_norm=True), '^towers.text.pre_norm: found True'),
    (dict(first_position=2), '^towers.text.first_position: found 2; valid: 0$')])
def test_fields_that_their_files_cannot_hold(fields, message):
    with pytest.raises(WeightsError, match=message):
        bert.theirs(dict(towers=dict(text=dict(name='bert', **fields))))


def test_a_tower_that_is_not_alone_or_not_bert():
    with pytest.raises(WeightsError, match='^towers: BertModel is one tower, text; found text, image$'):
        bert.theirs(dict(towers=dict(text=dict(name='bert'), image=dict(name='vit'))))
    with pytest.raises(WeightsError, match="^towers.text.name: found 'text'; valid: bert$"):
        bert.theirs(dict(towers=dict(text=dict(name='text'))))
