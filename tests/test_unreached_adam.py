"""A parameter that only some steps reach: its Adam goes by its own updates, as PyTorch's does for a gradient that is None."""

import jax.numpy as jnp
import numpy as np
import pytest

import fast
from bigvlm import optim

STEPS, EVERY, LR, DECAY, B1, B2, EPS = 12, 3, .1, .2, .9, .999, 1e-8
RNG = np.random.default_rng(0)
START = {path: RNG.normal(size=(3, 2)).astype(np.float32) for path in ('a/kernel', 'b/kernel')}
GRADIENTS = [{path: RNG.normal(size=(3, 2)).astype(np.float32) for path in START} for _ in range(STEPS)]


def reached(path, step):
    return path == 'a/kernel' or step % EVERY == EVERY - 1


def ours():
    nested = {path.split('/')[0]: {'kernel': jnp.asarray(x)} for path, x in START.items()}
    optimizer = optim.build(dict(name='adamw', lr=LR, b1=B1, b2=B2, eps=EPS, weight_decay=DECAY, schedule=dict(name='constant')),
                            total_steps=STEPS, batch=1, examples_per_epoch=None, params=nested)
    params = {path: jnp.asarray(x) for path, x in START.items()}
    state, update = optimizer.tx.init(params), fast.jit(optimizer.update)
    for step, gradient in enumerate(GRADIENTS):
        new, found = update(gradient, state, params)
        state = optim.keep_unreached(found, state, params, lambda path, step=step: reached(path, step))
        params = {path: new[path] if reached(path, step) else x for path, x in params.items()}
    return params


def test_equal_the_formula_over_its_own_updates():
    found = ours()
    for path, x in START.items():
        x, m, v = x.astype(np.float64), 0., 0.
        for n, gradient in enumerate((g[path] for step, g in enumerate(GRADIENTS) if reached(path, step)), start=1):
            m, v = B1 * m + (1 - B1) * gradient, B2 * v + (1 - B2) * gradient ** 2
            x = x - LR * (m / (1 - B1 ** n) / (np.sqrt(v / (1 - B2 ** n)) + EPS) + DECAY * x)
        np.testing.assert_allclose(found[path], x, rtol=1e-4, atol=1e-5)


@pytest.mark.parity
def test_equal_pytorch_s_with_no_gradient():
    torch = pytest.importorskip('torch')
    params = {path: torch.nn.Parameter(torch.tensor(x)) for path, x in START.items()}
    optimizer = torch.optim.AdamW(list(params.values()), LR, betas=(B1, B2), eps=EPS, weight_decay=DECAY)
    for step, gradient in enumerate(GRADIENTS):
        for path, p in params.items():
            p.grad = torch.tensor(gradient[path]) if reached(path, step) else None
        optimizer.step()
    found = ours()
    for path, p in params.items():
        np.testing.assert_allclose(found[path], p.detach().numpy(), rtol=1e-4, atol=1e-5)
