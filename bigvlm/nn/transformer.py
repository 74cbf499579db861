"""The transformer shared by towers, pre-norm or post-norm: scanned over layers, rematerialised by choice.

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
    # BERT (google-research/bert, initializer_range): within two standard deviations.
    'bert': lambda width, depth: (nn.initializers.truncated_normal(.02),) * 4,
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
    """One block. Called by ``nn.scan``: carry the tokens, and the layer's number comes in.

    ``post_norm``: BERT's, whose norms follow the residual sums, instead of norms of what the branches read. ``cross``: it attends
    to a context, too, after itself: with a norm of the context and an MLP of its own if ``cross_mlp`` (CoCa as open_clip has
    it), else without (the decoder of Vaswani et al., arXiv 1706.03762).
    """
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
    post_norm: bool = False
    cross: bool = False
    cross_mlp: bool = False
    qkv_bias: bool = True

    @nn.compact
    def __call__(self, x_BLW, layer, keys_B, mask_BL, cache=None, context_BSW=None, context_mask_BS=None, index=None):
        qkv, out, fc1, fc2 = choose(INITS, self.init_scheme, 'init_scheme')(x_BLW.shape[-1], self.depth)
        norm = functools.partial(nn.LayerNorm, epsilon=self.norm_eps, dtype=self.dtype)
        rate = self.drop_path * layer / max(1, self.depth - 1)  # grows linearly with depth, as DeiT

        def add(x_BLW, branch_BLW, site):
            """Sites 0 and 1 are self-attention and MLP; those of the cross-attention, 2 and 3, draw after all layers'."""
            place = layer * 4 + site % 2 + (site // 2) * 4 * self.depth
            branch_BLW = dropout(branch_BLW, self.dropout, keys_B, place)
            if self.drop_path:
                branch_BLW = drop_path(branch_BLW, rate, keys_B, place + 2)
            return x_BLW + branch_BLW

        def residual(x_BLW, branch, norm, site):
            return norm(add(x_BLW, branch(x_BLW), site)) if self.post_norm else add(x_BLW, branch(norm(x_BLW)), site)

        x_BLW = mesh.constrain_batch(x_BLW)
        attention = functools.partial(Attention, self.heads, qkv, out, qkv_bias=self.qkv_bias, dtype=self.dtype,
                                      implementation=self.implementation)
        mlp = functools.partial(Mlp, self.hidden, self.activation, fc1, fc2, self.dtype)

        def itself(x_BLW):
            nonlocal cache
            attend = attention(causal=self.causal, name='attention')
            if cache is None:
                return attend(x_BLW, mask_BS=mask_BL)
            x_BLW, cache = attend(x_BLW, cache=cache, index=index)
            return x_BLW

        def context(x_BLW):
            keys_BSW = norm(name='norm_context')(context_BSW) if self.cross_mlp else context_BSW
            return attention(name='cross')(x_BLW, keys_BSW, mask_BS=context_mask_BS)

        x_BLW = residual(x_BLW, itself, norm(name='norm1'), 0)
        x_BLW = checkpoint_name(x_BLW, 'attended')
        if self.cross and not self.cross_mlp:
            x_BLW = residual(x_BLW, context, norm(name='norm_cross'), 2)
        x_BLW = mesh.constrain_batch(residual(x_BLW, mlp(name='mlp'), norm(name='norm2'), 1))
        if self.cross_mlp:
            x_BLW = residual(x_BLW, context, norm(name='norm_cross'), 2)
            x_BLW = mesh.constrain_batch(residual(x_BLW, mlp(name='mlp_cross'), norm(name='norm_cross_mlp'), 3))
        return x_BLW, (x_BLW if self.collect else None, cache)


def used(module: type[nn.Module], parent: nn.Module, name: str, dtype: Any, *, scanned: bool = False) -> type[nn.Module]:
    """``module`` with its parameters taken from the stored to the used layout; it is to be ``name`` in ``parent``."""
    initializing = parent.is_initializing()  # parameters are made as they are stored
    change = (lambda variables: variables) if initializing else \
        layout.to_used('/'.join((*parent.path, name)), dtype, scanned=scanned)
    return nn.map_variables(module, 'params', trans_in_fn=change, init=initializing, mutable=initializing)


class Transformer(nn.Module):
    """``depth`` blocks, scanned, and a last norm: [B, L, W] -> ([B, L, W], {layer: [B, L, W]}).

    The parameters of all blocks are stacked on a leading axis under ``blocks``. ``post_norm`` blocks end with a norm of
    their own, so there is no last one, and none without ``last_norm``. ``cross``, ``cross_mlp``: see Block; the context is given in
    the call. ``qkv_bias``: whether queries, keys and values have biases.
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
    post_norm: bool = False
    cross: bool = False
    cross_mlp: bool = False
    qkv_bias: bool = True
    last_norm: bool = True

    @nn.compact
    def __call__(self, x_BLW, *, keys_B=None, mask_BL=None, layers=(), context_BSW=None, context_mask_BS=None, cache=None, index=None):
        """-> (tokens, those after the ``layers`` asked for and, as it costs nothing, after the last block: -1). With ``cache``
        (``empty_cache``) and ``index``, ``x_BLW`` is the one token of that number, and the new cache follows."""
        block = used(Block, self, 'blocks', self.dtype, scanned=True)
        rematerialise, policy = remat_policy(self.remat)
        if rematerialise:
            block = nn.remat(block, policy=policy, prevent_cse=False)
        blocks = nn.scan(block, variable_axes={'params': 0}, split_rngs={'params': True},
                         in_axes=(0, nn.broadcast, nn.broadcast, 0, *[nn.broadcast] * 3), length=self.depth)
        hidden = self.mlp_dim or round(x_BLW.shape[-1] * self.mlp_ratio)
        x_BLW, (all_layers, new_cache) = blocks(
            heads=self.heads, hidden=hidden, depth=self.depth, activation=self.activation, init_scheme=self.init_scheme,
            norm_eps=self.norm_eps, causal=self.causal, dropout=self.dropout, drop_path=self.drop_path, collect=bool(layers),
            dtype=self.dtype, implementation=self.implementation, post_norm=self.post_norm,
            cross=self.cross or self.cross_mlp, cross_mlp=self.cross_mlp, qkv_bias=self.qkv_bias, name='blocks')(
                x_BLW, jnp.arange(self.depth), keys_B, mask_BL, cache, context_BSW, context_mask_BS, index)
        collected = {-1: x_BLW}
        for i in layers:
            if not -self.depth <= i < self.depth:
                raise RecipeError(f'layers: there is no layer {i} among {self.depth}')
            collected[i] = all_layers[i]
        normed_BLW = x_BLW
        if self.last_norm and not self.post_norm:
            normed_BLW = nn.LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, name='norm')(x_BLW)
        return (normed_BLW, collected) if cache is None else (normed_BLW, collected, new_cache)


def empty_cache(depth: int, batch: int, length: int, width: int, heads: int, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """Keys and values [depth, B, L, N, H] of no token yet, for ``Transformer``'s ``cache``."""
    shape = (depth, batch, length, heads, width // heads)
    return jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)
