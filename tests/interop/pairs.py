"""Two towers of transformers against ours: import, every layer, embeddings, logits, export, and theirs again of what was exported.

B images, T texts, H×W pixels, C colours, L tokens.
"""

import fast
import jax.numpy as jnp
import numpy as np

from bigvlm import model as model_lib
from bigvlm.core import foreign, parts
from tests.interop import folders


def images(side, number=3):
    """Pixels in [0, 1]."""
    return np.random.default_rng(1).random((number, side, side, 3), np.float32)


def texts(vocab, length, end, pad, number=4):
    """Words, one end of text at different places (none if ``end`` is None), then padding (none if ``pad`` is None)."""
    rng = np.random.default_rng(2)
    ids_TL = rng.integers(5, vocab - 2, (number, length)).astype(np.int32)
    for i, last in enumerate(np.linspace(length // 2, length - 1, number).astype(int)):
        if pad is not None:
            ids_TL[i, last + 1:] = pad
        if end is not None:
            ids_TL[i, last] = end
    return ids_TL


def check(module, architecture, config, tmp_path, ids_TL, *, attended=None, pixels=None, rename=lambda name: name):
    """Both directions for their model of a config.

    ``attended``: bool [T, L], given to theirs as attention_mask; tokens are compared there only. ``pixels``: normalised images as
    arguments of their model, if not pixel_values. ``rename``: of names in the files that transformers writes.
    """
    import torch
    whole = folders.randomise(architecture(config))
    their_config, arrays = folders.save(whole, tmp_path / 'theirs')
    arrays = {rename(name): x for name, x in arrays.items()}
    description = module.describe(their_config, {})
    flat = folders.ours(description, arrays)
    assert {type(x) for x in arrays.values()} == {np.ndarray} and arrays.keys() == foreign.expected(
        description.table, {path: x.shape for path, x in flat.items()}).keys()
    image_BHWC = images(description.config['towers']['image']['image'])
    ours = numbers(description, flat, image_BHWC, ids_TL)
    inputs = dict(input_ids=torch.tensor(ids_TL).long(), **(pixels or plain)(description, image_BHWC))
    if attended is not None:
        inputs['attention_mask'] = torch.tensor(attended).long()
    mask_TL = np.ones(ids_TL.shape, bool) if attended is None else attended
    compare(ours, whole, inputs, mask_TL)

    folders.same_bits(description, flat, arrays)
    exported = folders.export(module, description.config, flat, tmp_path / 'ours')
    assert exported.keys() == arrays.keys() and all(np.array_equal(exported[name], x) for name, x in arrays.items())
    compare(ours, folders.reopen(architecture, tmp_path / 'ours'), inputs, mask_TL)
    return description, flat


def normalised(description, image_BHWC):
    tower = description.config['towers']['image']
    return (image_BHWC - np.asarray(tower['mean'], np.float32)) / np.asarray(tower['std'], np.float32)


def plain(description, image_BHWC):
    import torch
    return dict(pixel_values=torch.tensor(np.einsum('bhwc->bchw', normalised(description, image_BHWC))))


def numbers(description, flat, image_BHWC, ids_TL):
    """Embeddings before and after normalisation, logits [B, T], and tokens after each layer."""
    depths = {name: parts.build('bigvlm.towers', spec, name).depth for name, spec in description.config['towers'].items()}
    batch = {'image': image_BHWC, 'text': ids_TL}

    def encode(model, batch):
        out = {name: getattr(model, name)(x, layers=tuple(range(depths[name]))) for name, x in batch.items()}
        unit = model.match.embed(lambda tower, key, **_: out[tower], batch)
        logits_BT = jnp.exp(model.match.t) * model.match.score(unit['image_BD'], unit['text_BD']) + getattr(model.match, 'b', 0.)
        return {**{name: x.pooled_BD for name, x in out.items()}, 'unit_image': unit['image_BD'], 'unit_text': unit['text_BD'],
                **{f'{name}_layers': [x.layers[i] for i in range(depths[name])] for name, x in out.items()}, 'logits': logits_BT}
    model = model_lib.from_config(description.config)
    return fast.jit(lambda variables, batch: model.apply(variables, batch, method=encode))(folders.variables(flat), batch)


def compare(ours, model, inputs, mask_TL):
    """``mask_TL``: text tokens that count."""
    import torch
    vision = {name: x for name, x in inputs.items() if name not in ('input_ids', 'attention_mask')}
    text = {name: x for name, x in inputs.items() if name not in vision}
    with torch.no_grad():
        out = model(**inputs)
        image, words = model.get_image_features(**vision), model.get_text_features(**text)
        layers = {'image': model.vision_model(**vision, output_hidden_states=True).hidden_states[1:],
                  'text': model.text_model(**text, output_hidden_states=True).hidden_states[1:]}
    for name, x in (('image', image.pooler_output), ('text', words.pooler_output), ('unit_image', out.image_embeds),
                    ('unit_text', out.text_embeds), ('logits', out.logits_per_image)):
        assert folders.relative(ours[name], x.numpy()) < 1e-5, name
    for name, theirs in layers.items():
        assert len(ours[f'{name}_layers']) == len(theirs)
        for found, expected in zip(ours[f'{name}_layers'], theirs):
            where = mask_TL if name == 'text' else np.ones(found.shape[:2], bool)
            assert folders.relative(np.asarray(found)[where], expected.numpy()[where]) < 1e-4, name
