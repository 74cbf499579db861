"""Muon (Jordan et al. 2024, github.com/KellerJordan/Muon): matrices move along their orthogonalised momentum.

What is a matrix, and along which axes, is said by path: a stacked kernel [depth, in, out] is one matrix per layer, and a
table of embeddings or of biases over layers is none, though both have two axes.

N matrices of one parameter, i input and o output features.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from jax.sharding import PartitionSpec as P

from bigvlm.core import paths
from bigvlm.core.parts import RecipeError
from bigvlm.optim.directions import STACKED, Direction, fractions, moment_dtype, scale_by_adam

_QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan's: the steepest slope at 0 that still maps (0, 1] to about (.7, 1.2)
_INPUT = r'(?!(.*/)?(patch_embed|embed|stem)/).*/kernel'  # kernels, but for those that read pixels and one-hot words


class State(NamedTuple):
    momentum: Any  # {path: leaf} of the matrices
    adamw: Any     # Adam's state of all else


class Axes(NamedTuple):
    """How a parameter lies as matrices: einops patterns of both, and the sizes of the names in them."""
    stored: str
    matrices: str
    sizes: Mapping[str, int]

    @property
    def fans(self) -> tuple[int, int]:
        """(input, output) features of one matrix."""
        return tuple(math.prod(self.sizes[name] for name in self.sizes if name[0] == kind) for kind in 'io')


def muon(*, momentum: float = .95, nesterov: bool = True, iterations: int = 5, ns_dtype: str = 'bfloat16', rms: float = .2,
         matrices: Sequence[tuple[str, str]] = ((_INPUT, 'auto'), ('.*', 'adamw')), momentum_dtype: str = 'float32',
         b1: float = .9, b2: float = .95, eps: float = 1e-8, shapes: Mapping[str, tuple[int, ...]]) -> Direction:
    """Muon for what ``matrices`` says, AdamW's direction (``b1``, ``b2``, ``eps``) for the rest.

    ``matrices``: rule list (regex, axes): 'adamw': no matrix; 'auto': the last axis is the output, those before it the
    input, but the first of a stacked parameter, which counts the layers; or one letter per axis: i input, o output, b one
    matrix for each index, such as 'bio'; 'io/3' cuts the last axis into 3 matrices (fused queries, keys and values; heads).
    ``rms``: the update's root mean square, as in Moonlight (arXiv 2502.16982: .2, that of AdamW, so that one learning rate
    and decay serve both); 0 scales by sqrt(max(1, out/in)), as Jordan. ``ns_dtype``: of the ``iterations``.
    """
    fractions(momentum=momentum, b1=b1, b2=b2)
    if not isinstance(iterations, int) or iterations < 1:
        raise RecipeError(f'optim.iterations: {iterations!r} must be a whole number, at least 1')
    dtype, kept = moment_dtype('ns_dtype', ns_dtype), moment_dtype('momentum_dtype', momentum_dtype)
    axes = {path: _axes(path, shapes[path], value) for path, value in paths.match(matrices, shapes, what='optim.matrices').items()
            if value != 'adamw'}
    adam = scale_by_adam(b1, b2, eps)

    def split(flat: Mapping[str, Any]):
        return ({path: x for path, x in flat.items() if path in axes}, {path: x for path, x in flat.items() if path not in axes})

    def init(params):
        ours, others = split(params)
        return State({path: jnp.zeros(x.shape, kept) for path, x in ours.items()}, adam.init(others))

    def update(gradient, state: State, params=None):
        ours, others = split(gradient)
        moved = {path: momentum * state.momentum[path].astype(jnp.float32) + (1. - momentum) * g for path, g in ours.items()}
        ahead = {path: (1. - momentum) * g + momentum * moved[path] if nesterov else moved[path] for path, g in ours.items()}
        directions, adam_state = adam.update(others, state.adamw)
        found = {path: _direction(x, axes[path], iterations, dtype, rms) for path, x in ahead.items()} | directions
        return ({path: found[path] for path in gradient},
                State({path: x.astype(kept) for path, x in moved.items()}, adam_state))
    return Direction(optax.GradientTransformation(init, update))


def _axes(path: str, shape: tuple[int, ...], value: str) -> Axes:
    letters, _, parts = value.partition('/')
    if letters == 'auto':
        layers = 'b' if STACKED in path.split('/') else ''
        letters = layers + 'i' * (len(shape) - len(layers) - 1) + 'o'
    pieces = int(parts) if parts.isdecimal() else 0 if parts else 1
    if len(letters) != len(shape) or set(letters) - set('bio') or not {'i', 'o'} <= set(letters) or not pieces or shape[-1] % pieces:
        raise RecipeError(f'optim.matrices: {value!r} does not fit {path} {shape}; valid: adamw, auto, or one of the letters b, i, o '
                          'for each axis, with an i and an o, and perhaps /N with N dividing the last axis')
    names = [f'{letter}{axis}' for axis, letter in enumerate(letters)]
    sizes = dict(zip(names, shape))
    sizes[names[-1]] //= pieces
    of = {kind: ' '.join(name for name in names if name[0] == kind) for kind in 'bio'}
    found = Axes(' '.join([*names[:-1], f'(p {names[-1]})']), f'(p {of["b"]}) ({of["i"]}) ({of["o"]})', sizes | {'p': pieces})
    if min(found.fans) < 2:
        raise RecipeError(f'optim.matrices: {path} {shape} is {found.fans[0]} × {found.fans[1]} by {value!r}, which is no matrix; '
                          "a rule before it can say 'adamw'")
    return found


def _direction(x, axes: Axes, iterations: int, dtype, rms: float):
    """The orthogonalised parameter-shaped ``x``, scaled by its matrices' shape."""
    fan_in, fan_out = axes.fans
    scale = rms * math.sqrt(max(fan_in, fan_out)) if rms else math.sqrt(max(1., fan_out / fan_in))
    x_Nio = rearrange(x, f'{axes.stored} -> {axes.matrices}', **axes.sizes)
    y_Nio = _spread(x_Nio.astype(dtype), iterations).astype(jnp.float32)
    return scale * rearrange(y_Nio, f'{axes.matrices} -> {axes.stored}', **axes.sizes)


def _spread(x_Nio, iterations: int):
    """Orthogonalised on a mesh with ``fsdp``: whole matrices on each device, some of them each, rather than parts of all
    matrices, which every product would have to gather."""
    mesh = jax.sharding.get_abstract_mesh()
    ways = 1 if mesh.empty else mesh.shape.get('fsdp', 1)
    if ways == 1:
        return orthogonalize(x_Nio, iterations)
    n = len(x_Nio)
    if n == 1:
        return orthogonalize(jax.lax.with_sharding_constraint(x_Nio, P()), iterations)
    whole_Nio = jax.lax.with_sharding_constraint(jnp.pad(x_Nio, ((0, -n % ways), (0, 0), (0, 0))), P('fsdp'))
    return orthogonalize(whole_Nio, iterations)[:n]


def orthogonalize(x_Nio, iterations: int = 5):
    """Newton and Schulz's iteration by an odd quintic: from U S V' to about U V', with singular values near 1."""
    a, b, c = _QUINTIC
    tall = x_Nio.shape[1] > x_Nio.shape[2]
    x_Nrk = rearrange(x_Nio, 'n i o -> n o i') if tall else x_Nio  # the products below are rows × rows
    norm_N11 = jnp.sqrt(jnp.sum(jnp.square(x_Nrk.astype(jnp.float32)), (1, 2), keepdims=True))
    x_Nrk = (x_Nrk / jnp.maximum(norm_N11, 1e-7)).astype(x_Nio.dtype)

    def times(x, y):
        return jnp.einsum('nij,njk->nik', x, y, precision='highest')
    for _ in range(iterations):
        gram_Nrr = jnp.einsum('nrk,nsk->nrs', x_Nrk, x_Nrk, precision='highest')
        x_Nrk = a * x_Nrk + times(b * gram_Nrr + c * times(gram_Nrr, gram_Nrr), x_Nrk)
    return rearrange(x_Nrk, 'n o i -> n i o') if tall else x_Nrk
