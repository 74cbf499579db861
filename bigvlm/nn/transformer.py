"""The pre-norm transformer shared by towers: scanned over layers, rematerialised by choice.

B batch, L tokens, W width, M hidden width of the MLP.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from bigvlm.core import layout, mesh
from bigvlm.core.parts import RecipeError
from bigvlm.nn.attention import IMPLEMENTATIONS, Attention
from bigvlm.nn.random import drop_path, dropout


def _gelu(x):
    """x·Φ(x) by erf, in float32 at least: jax.nn.gelu's erfc is slower on a CPU, for digits below the rounding of x."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (.5 * wide * (1. + jax.lax.erf(wide * math.sqrt(.5)))).astype(x.dtype)


ACTIVATIONS: dict[str, Callable] = {
    'gelu': _gelu,
    'gelu_tanh': functools.partial(jax.nn.gelu, approximate=True),
    'quick_gelu': lambda x: x * jax.nn.sigmoid(1.702 * x),  # OpenAI's CLIP
    'relu': jax.nn.relu,
}

# Activations of a block by name, per token and layer: the queries, keys and values (3 widths), what attention gives before
# its output projection (1), the tokens after attention (1), the MLP's hidden layer before its activation (mlp_ratio).
NAMES = ('qkv', 'context', 'attended', 'hidden')

# What towers keep unless told otherwise. On a CPU it is faster than 'none' (what is kept is paged in, zeroed, written and
# read) and than 'full'; see docs/benchmarks.md.
KEPT = 'attended+hidden'

# Of jax.checkpoint_policies, those that need no arguments.
POLICIES = ('nothing_saveable', 'dots_with_no_batch_dims_saveable', 'dots_saveable', 'everything_saveable')

# Initializers of (query/key/value, attention output, MLP in, MLP out) by width and depth.
INITS: dict[str, Callable] = {
    # big_vision's ViT: Xavier everywhere.
    'xavier': lambda width, depth: (nn.initializers.xavier_uniform(),) * 4,
    # CLIP's text transformer (openai/CLIP, initialize_parameters).
    'clip': lambda width, depth: tuple(nn.initializers.normal(s) for s in (
        width ** -.5, width ** -.5 * (2 * depth) ** -.5, (2 * width) ** -.5, width ** -.5 * (2 * depth) ** -.5)),
}


def choose(table: dict[str, Any], key: str, field: str) -> Any:
    """``table[key]``, or a RecipeError that lists the keys."""
    if key not in table:
        raise RecipeError(f'{field}: unknown value {key!r} (valid: {", ".join(table)})')
    return table[key]


def remat_policy(name: str):
    """What a block keeps for its backward pass -> (rematerialise at all, policy).

    'none': everything; 'full': its input only; 'named': its input and the activations of NAMES; some of those joined by '+';
    or a policy of ``jax.checkpoint_policies``.
    """
    if name in ('none', 'full'):
        return name == 'full', None
    if name in POLICIES:
        return True, getattr(jax.checkpoint_policies, name)
    names = NAMES if name == 'named' else name.split('+')
    if len(set(names)) < len(names) or not set(names) <= set(NAMES):
        raise RecipeError(f'remat: unknown value {name!r} (valid: none, full, named, {", ".join(POLICIES)}, or some of {", ".join(NAMES)} '
                          "joined by '+')")
    return True, jax.checkpoint_policies.save_only_these_names(*names)


def check(tower: nn.Module) -> None:
    """Raises RecipeError for fields of a tower that its transformer could not use; needs no device."""
    choose(ACTIVATIONS, tower.activation, 'activation')
    choose(INITS, tower.init_scheme, 'init_scheme')
    choose(dict.fromkeys(IMPLEMENTATIONS), tower.attention, 'attention')
    choose(dict.fromkeys(('bfloat16', 'float16', 'float32', 'float64')), tower.dtype, 'dtype')
    remat_policy(tower.remat)
    for field in ('dropout', 'drop_path'):
        if not 0. <= getattr(tower, field) < 1.:
            raise RecipeError(f'{field}: {getattr(tower, field)} is not in [0, 1)')


class Mlp(nn.Module):
    """width -> hidden -> width."""
    hidden: int
    activation: str = 'gelu_tanh'
    in_init: Any = nn.initializers.xavier_uniform()
    out_init: Any = nn.initializers.xavier_uniform()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_BLW):
        x_BLM = nn.Dense(self.hidden, dtype=self.dtype, kernel_init=self.in_init, name='fc1')(x_BLW)
        x_BLM = checkpoint_name(x_BLM, 'hidden')
        x_BLM = choose(ACTIVATIONS, self.activation, 'activation')(x_BLM)
        return nn.Dense(x_BLW.shape[-1], dtype=self.dtype, kernel_init=self.out_init, name='fc2')(x_BLM)


class Block(nn.Module):
    """One pre-norm block. Called by ``nn.scan``: carry the tokens, and the layer's number comes in."""
    heads: int
    hidden: int
    depth: int
    activation: str
    init_scheme: str
    norm_eps: float
    causal: bool
    dropout: float
    drop_path: float
    collect: bool
    dtype: Any
    implementation: str

    @nn.compact
    def __call__(self, x_BLW, layer, keys_B, mask_BL):
        qkv, out, fc1, fc2 = choose(INITS, self.init_scheme, 'init_scheme')(x_BLW.shape[-1], self.depth)
        norm = functools.partial(nn.LayerNorm, epsilon=self.norm_eps, dtype=self.dtype)
        rate = self.drop_path * layer / max(1, self.depth - 1)  # grows linearly with depth, as DeiT

        def add(x_BLW, branch_BLW, site):
            place = layer * 4 + site
            branch_BLW = dropout(branch_BLW, self.dropout, keys_B, place)
            if self.drop_path:
                branch_BLW = drop_path(branch_BLW, rate, keys_B, place + 2)
            return x_BLW + branch_BLW

        x_BLW = mesh.constrain_batch(x_BLW)
        attention = Attention(self.heads, qkv, out, self.causal, dtype=self.dtype, implementation=self.implementation, name='attention')
        x_BLW = add(x_BLW, attention(norm(name='norm1')(x_BLW), mask_BS=mask_BL), 0)
        x_BLW = checkpoint_name(x_BLW, 'attended')
        mlp = Mlp(self.hidden, self.activation, fc1, fc2, self.dtype, name='mlp')
        x_BLW = mesh.constrain_batch(add(x_BLW, mlp(norm(name='norm2')(x_BLW)), 1))
        return x_BLW, (x_BLW if self.collect else None)


def used(module: type[nn.Module], parent: nn.Module, name: str, dtype: Any, *, scanned: bool = False) -> type[nn.Module]:
    """``module`` with its parameters taken from the stored to the used layout; it is to be ``name`` in ``parent``."""
    initializing = parent.is_initializing()  # parameters are made as they are stored
    change = (lambda variables: variables) if initializing else \
        layout.to_used('/'.join((*parent.path, name)), dtype, scanned=scanned)
    return nn.map_variables(module, 'params', trans_in_fn=change, init=initializing, mutable=initializing)


class Transformer(nn.Module):
    """``depth`` blocks, scanned, and a last norm: [B, L, W] -> ([B, L, W], {layer: [B, L, W]}).

    The parameters of all blocks are stacked on a leading axis under ``blocks``.
    """
    depth: int
    heads: int
    mlp_ratio: float = 4.
    mlp_dim: int = 0
    activation: str = 'gelu_tanh'
    init_scheme: str = 'xavier'
    norm_eps: float = 1e-6
    causal: bool = False
    dropout: float = 0.
    drop_path: float = 0.
    remat: str = 'none'
    dtype: Any = jnp.float32
    implementation: str = 'auto'

    @nn.compact
    def __call__(self, x_BLW, *, keys_B=None, mask_BL=None, layers=()):
        block = used(Block, self, 'blocks', self.dtype, scanned=True)
        rematerialise, policy = remat_policy(self.remat)
        if rematerialise:
            block = nn.remat(block, policy=policy, prevent_cse=False)
        blocks = nn.scan(block, variable_axes={'params': 0}, split_rngs={'params': True},
                         in_axes=(0, nn.broadcast, nn.broadcast), length=self.depth)
        hidden = self.mlp_dim or round(x_BLW.shape[-1] * self.mlp_ratio)
        x_BLW, all_layers = blocks(
            heads=self.heads, hidden=hidden, depth=self.depth, activation=self.activation, init_scheme=self.init_scheme,
            norm_eps=self.norm_eps, causal=self.causal, dropout=self.dropout, drop_path=self.drop_path, collect=bool(layers),
            dtype=self.dtype, implementation=self.implementation, name='blocks')(x_BLW, jnp.arange(self.depth), keys_B, mask_BL)
        collected = {}
        for i in layers:
            if not -self.depth <= i < self.depth:
                raise RecipeError(f'layers: there is no layer {i} among {self.depth}')
            collected[i] = all_layers[i]
        return nn.LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, name='norm')(x_BLW), collected
