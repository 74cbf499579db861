"""Models of transformers in folders: theirs with random weights, ours of what is in it, and theirs again of what ours exports."""

import json

import jax.numpy as jnp
import numpy as np

from bigvlm.core import foreign, paths
from tests.interop.fakes import Memory


def randomise(model, seed=0):
    """Every parameter of a torch module, none at its initial value: kernels keep activations of size 1, other arrays are visible."""
    import torch
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            x = rng.normal(size=tuple(weight.shape)).astype(np.float32)
            fan_in = int(np.prod(weight.shape[1:]))
            table = 'embedding' in name and not name.endswith('projection.weight')
            if weight.ndim == 0:
                x = np.float32(1.7 + .1 * x)
            elif weight.ndim == 1:
                x = (name.endswith('weight')) + .3 * x
            elif not table and 'relative' not in name and fan_in > 1:
                x = x / np.sqrt(fan_in)
            weight.copy_(torch.tensor(x))
    return model.eval()


def save(model, folder):
    """(config.json, {name: array}) of a module as save_pretrained leaves them."""
    from safetensors.numpy import load_file
    model.save_pretrained(folder)
    return json.loads((folder / 'config.json').read_text()), load_file(folder / 'model.safetensors')


def ours(description, arrays):
    """{path: array} of a folder's arrays: all that ours needs, and nothing in the folder that nobody knows."""
    shapes = {path: x.shape for path, x in description.abstract.items()}
    found = foreign.Arrays(Memory(arrays), description.table, shapes, description.ignored)
    return {path: found.read(path) for path in shapes}


def variables(flat):
    return {'params': paths.unflatten({path: jnp.asarray(x) for path, x in flat.items()})}


def export(module, groups, flat, folder, description=None):
    """Writes a model of the recipe's groups with arrays {path: array} as ``module`` of bigvlm.interop.hf says, {name: array}; what
    is written is described as these groups. ``description``: of the same groups, whose table saves time if it has the same names."""
    from safetensors.numpy import save_file
    config = json.loads(json.dumps(module.theirs(groups)))
    again = module.describe(config, {})
    assert again.config == groups
    same = description is not None and (description.pieces, description.config) == (again.pieces, again.config)
    arrays = dict(foreign.export((description if same else again).table, flat))
    folder.mkdir()
    save_file(arrays, folder / 'model.safetensors', metadata={'format': 'pt'})
    (folder / 'config.json').write_text(json.dumps(config))
    return arrays


def same_bits(description, flat, arrays):
    """That what is exported of ours is what was in the folder."""
    for name, x in foreign.export(description.table, flat):
        assert x.dtype == arrays[name].dtype and np.array_equal(x, arrays[name]), name


def reopen(architecture, folder, missing=()):
    """Their model of a folder, of which they miss nothing (but ``missing``) and find nothing that they do not expect."""
    model, told = architecture.from_pretrained(folder, output_loading_info=True)
    assert not told['unexpected_keys'] and not told['mismatched_keys'] and set(told['missing_keys']) == set(missing), told
    return model.eval()


def relative(found, expected):
    """Largest difference by the largest number."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return np.abs(found - expected).max() / np.abs(expected).max()
