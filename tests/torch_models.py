"""Models of torchvision and open_clip for parity tests, and what it takes to compare towers with them."""

import functools
import importlib
import importlib.util
import re

import fast
import jax
import numpy as np
import pytest
import reference

from bigvlm.core import paths


def load(name):
    """The module, or a skipped test."""
    pytest.importorskip('torch')
    if importlib.util.find_spec('torchvision') is None:
        pytest.skip('torchvision is not installed')
    _torchvision()
    return pytest.importorskip(name)


def transformers():
    """The module, or a skipped test; it imports torchvision where there is one."""
    pytest.importorskip('torch')
    if importlib.util.find_spec('torchvision') is not None:
        _torchvision()
    return pytest.importorskip('transformers')


@functools.cache
def _torchvision():
    """Makes torchvision importable. Its wheel for CUDA has no operators under a torch without CUDA, and then stumbles over two
    that it describes; nothing here calls them."""
    import torch
    try:
        importlib.import_module('torchvision')
    except RuntimeError:
        library = torch.library.Library('torchvision', 'DEF')
        for operator in ('nms', 'qnms'):
            library.define(f'{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
        return library  # the operators live as long as it does


def their_names(table, ours):
    """{our path: their name} by the templates of a FOREIGN table, each path by exactly one."""
    patterns = [(re.compile(re.sub(r'\\{(\w+)\\}', r'(?P<\1>\\d+)', re.escape(mine))), theirs) for mine, theirs in table.items()]
    found = {}
    for path in ours:
        (found[path],) = [theirs.format(**match.groupdict()) for pattern, theirs in patterns if (match := pattern.fullmatch(path))]
    return found


def as_theirs(path, x):
    """The variable at a path as PyTorch has it: kernels lead with the outputs."""
    x = np.asarray(x)
    if not path.endswith('kernel'):
        return x
    return np.einsum('pqio->oipq', x) if x.ndim == 4 else x.T


def random_variables(tower, image_BHWC, seed=0):
    """Parameters and running statistics of the tower's shapes, float64, none at its initial value."""
    rng = np.random.default_rng(seed)
    found = {}
    shapes = jax.eval_shape(tower.init, jax.random.key(0), image_BHWC)
    for path, leaf in sorted(reference.flat(shapes).items()):
        value = rng.normal(size=leaf.shape)
        last = path.rpartition('/')[2]
        fan_in = np.prod(leaf.shape[:-1])
        found[path] = {'kernel': value / fan_in ** .5, 'scale': 1 + .3 * value, 'var': 1 + np.square(value)}.get(last, .3 * value)
    return reference.nested(found)


def compare(tower, module, table, image_BHWC, train, tolerance=1e-6):
    """Pooled vector, in training also the gradient of every parameter and running statistics, ours against those of ``module``:
    [B, C, H, W] -> [B, D] with the tower's variables carried over by ``table``, which must name all of the module's."""
    import torch
    variables = random_variables(tower, image_BHWC)
    params, stats = variables['params'], variables['batch_stats']
    flat = {**paths.flatten(params), **paths.flatten(stats)}
    names = their_names(table, flat)
    known = {name for name in module.state_dict() if 'num_batches' not in name}
    assert sorted(names.values()) == sorted(known)
    weight = np.random.default_rng(1).normal(size=jax.eval_shape(tower.apply, variables, image_BHWC).pooled_BD.shape)

    def run(params, image_BHWC):
        def loss(params):
            out, moved = tower.apply({'params': params, 'batch_stats': stats}, image_BHWC, train=train, mutable=['batch_stats'])
            return (weight * out.pooled_BD).sum(), (out.pooled_BD, moved['batch_stats'])
        return jax.value_and_grad(loss, has_aux=True)(params) if train else (loss(params), {})
    (_, (pooled, moved)), gradient = fast.jit(run)(params, image_BHWC)

    module.double().train(train).load_state_dict({names[path]: torch.tensor(as_theirs(path, x)) for path, x in flat.items()}, strict=False)
    theirs = module(torch.tensor(np.einsum('bhwc->bchw', image_BHWC)))
    (torch.tensor(weight) * theirs).sum().backward()
    assert reference.relative(pooled, theirs.detach().numpy()) < tolerance
    gradients = {name: p.grad.numpy() for name, p in module.named_parameters()}
    largest = max(np.abs(g).max() for g in gradients.values())
    for path, found in paths.flatten(gradient).items():
        expected = gradients[names[path]]
        if path.endswith('key/bias'):  # softmax does not see a shift of all keys: zero but for rounding
            assert np.abs(found).max() < tolerance * largest
            continue
        assert np.abs(as_theirs(path, found) - expected).max() < tolerance * (np.abs(expected).max() + 1e-3 * largest), path
    after = module.state_dict()
    for path, found in paths.flatten(moved).items():
        assert reference.relative(found, after[names[path]].numpy()) < tolerance, path
        assert (np.abs(found - flat[path]).max() > 1e-4) == train, path
