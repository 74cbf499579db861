"""What one objective of a trained model can be asked for: embeddings, scores, losses, texts; compiled once.

M images and N texts to score, B batch, L tokens.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax

from bigvlm import model as model_lib
from bigvlm.core import decoding, layout as layout_lib
from bigvlm.evals.embed import Embedder


def jitted(model: model_lib.Model, objective: str, stored: layout_lib.Layout | None) -> dict[str, Callable]:
    """{method of the model: function of (parameters, collections, …)}; ``stored``: the layout of the parameters."""
    def apply(method, params, collections, *args):
        with layout_lib.activate(stored):
            found, _ = model.apply({'params': params, **collections}, *args, method=method, mutable=list(collections))
            return found

    def embed(params, collections, batch):
        return apply('embed', params, collections, batch, objective)

    def score(params, collections, image_MD, text_ND):
        return apply('score', params, collections, image_MD, text_ND, objective)

    def measure(params, collections, batch):
        return apply('measure', params, collections, batch, objective)

    def call(params, collections, batch, method):
        return apply('call', params, collections, batch, objective, method)

    def generate(params, collections, batch, how, axes, options):
        state = apply('call', params, collections, batch, objective, 'begin')
        given = dict(options)
        if 'seed' in given:
            given['key'] = jax.random.key(given.pop('seed'))
        if how == 'beam':
            given['axes'] = dict(axes)
        return getattr(decoding, how)(lambda ids_B, index, state: apply('advance', params, collections, ids_B, index, state, objective),
                                      state, len(jax.tree.leaves(batch)[0]), **given)
    return dict(embed=jax.jit(embed), score=jax.jit(score), measure=jax.jit(measure), call=jax.jit(call, static_argnums=3),
                generate=jax.jit(generate, static_argnums=(3, 4, 5)))


class Functions:
    """``jitted`` functions with the parameters filled in. ``objective``: the part itself, for its fields."""

    def __init__(self, jitted: Mapping[str, Callable], objective: Any, params: Any, collections: Any):
        self.objective = objective
        for name in ('embed', 'score', 'measure', 'call'):
            setattr(self, name, functools.partial(jitted[name], params, collections))
        self._generate = functools.partial(jitted['generate'], params, collections)

    def generate(self, batch: Any, how: str, options: tuple[tuple[str, Any], ...]) -> jax.Array:
        """int32 [B, L] by a function of core/decoding.py with these arguments."""
        return self._generate(batch, how, tuple(sorted(getattr(self.objective, 'state_axes', {}).items())), options)


def embedder(found: Functions, mesh: jax.sharding.Mesh | None, batch: int) -> Embedder:
    """Over examples of any number, ``batch`` at a time."""
    part = found.objective
    return Embedder(found.embed, found.score, mesh, batch=batch, model=found,
                    image_key=getattr(part, 'image', 'image'), text_key=getattr(part, 'text', 'text'))
