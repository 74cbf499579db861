"""Modules of PyTorch with random weights, and our model of a description with the same, compared.

B examples, H×W pixels, C colours, L tokens, W token width.
"""

import fast
import jax
import numpy as np
import reference

from bigvlm import model as model_lib
from bigvlm.core import foreign, parts
from tests.interop.fakes import Memory

MEAN, STD = (.4, .5, .6), (.2, .3, .25)


def randomise(module, seed=0):
    """None of its arrays at its initial value, no sum growing with width; returns its state_dict as NumPy."""
    import torch
    rng = np.random.default_rng(seed)
    for name, x in module.state_dict().items():
        if not x.is_floating_point():
            continue
        value = rng.normal(size=tuple(x.shape))
        if name.endswith('logit_scale'):
            value = 1 + .1 * value
        elif 'running_var' in name:
            value = 1 + np.square(value)
        elif x.ndim < 2:  # biases, and scales of norms, which are around one
            value = .3 * value + (name.endswith('weight') and 'proj' not in name)
        else:
            value = value / np.prod(value.shape[1:]) ** .5 if 'embedding' not in name else .5 * value
        x.copy_(torch.tensor(value, dtype=x.dtype))
    module.eval()
    return state(module)


def state(module):
    return {name: x.numpy().copy() for name, x in module.state_dict().items()}


def arrays(description, weights):
    """{our path: array}; all of theirs is used."""
    source = foreign.Arrays(Memory(weights), description.table, {path: x.shape for path, x in description.abstract.items()},
                            description.ignored)
    return {path: source.read(path) for path in description.table}


def exported(description, found):
    return dict(foreign.export(description.table, found))


def assert_round_trip(description, weights, found):
    """What is exported is what was imported, bit by bit, but for what carries nothing learned."""
    back = exported(description, found)
    learned = {name: x for name, x in weights.items() if x.dtype.kind == 'f'}
    assert back.keys() == learned.keys()
    for name, x in learned.items():
        assert np.array_equal(back[name], x), name
        assert back[name].shape == x.shape, name


def tower(description, name, found, x, layers=()):
    """The Encoded of one tower."""
    part = parts.build('bigvlm.towers', description.config['towers'][name], name)
    own = {path.removeprefix(f'{name}/'): x for path, x in found.items() if path.startswith(f'{name}/')}
    stats = {path for path in own if path.endswith(('/mean', '/var')) and 'norm' in path}
    variables = {'params': reference.nested({path: x for path, x in own.items() if path not in stats}),
                 'batch_stats': reference.nested({path: own[path] for path in stats})}
    return fast.jit(lambda variables, x: part.apply(variables, x, layers=layers))(variables, x)


def part_of(description, group, name, found, *args):
    """What a fusion or a decoder of a recipe gives."""
    part = parts.build(f'bigvlm.{group}', description.config[group][name], name)
    own = {path.removeprefix(f'{name}/'): x for path, x in found.items() if path.startswith(f'{name}/')}
    return fast.jit(part.apply)({'params': reference.nested(own)}, *args)


def logits(description, found, image_BD, text_BD):
    """Of the objective 'match', which is exp(t)·cosine, plus b if there is one."""
    model = model_lib.from_config(description.config)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (np.asarray(image_BD), np.asarray(text_BD))]
    scores = model.objectives['match']().score(*unit)
    return np.exp(found['match/t']) * np.asarray(scores) + found.get('match/b', 0.)


def pixels(side, batch=3, seed=0):
    """(uint8 images, the same as theirs take them: normalised [B, C, H, W])."""
    import torch
    image_BHWC = np.random.default_rng(seed).integers(0, 256, (batch, side, side, 3)).astype(np.uint8)
    normal_BHWC = ((image_BHWC / np.float32(255) - np.float32(MEAN)) / np.float32(STD)).astype(np.float32)
    return image_BHWC, torch.tensor(np.einsum('bhwc->bchw', normal_BHWC).copy())


def watch(blocks):
    """A list that fills with the tokens [B, L, W] after each of the blocks when they run."""
    found = []
    for block in blocks:
        block.register_forward_hook(lambda module, given, out: found.append(out.detach().numpy()))
    return found


def assert_near(ours, theirs, tolerance=1e-5):
    assert reference.relative(ours, theirs) < tolerance


def abstract_equals(description, module):
    """Names and shapes, with no array made: for models of their real sizes."""
    shapes = {path: x.shape for path, x in description.abstract.items()}
    theirs = {name: tuple(x.shape) for name, x in module.state_dict().items() if x.is_floating_point()}
    assert foreign.expected(description.table, shapes) == theirs
    assert jax.tree.leaves(shapes)
