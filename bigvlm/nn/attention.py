"""Multi-head attention: the plain formula, cuDNN's kernel on GPUs, jax's Pallas kernel on TPUs.

B batch, T queries, S keys, W width, N heads, H head width.
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from bigvlm.core import platform
from bigvlm.core.parts import RecipeError
from bigvlm.nn import splash


IMPLEMENTATIONS = ('auto', 'xla', 'cudnn', 'splash')
SPLASH_FROM = 512  # tokens; see docs/benchmarks.md, "Attention on TPUs"


def _cudnn_can(query_BTNH) -> bool:
    """What cuDNN's flash attention takes, in training too, on every GPU that has it; one query is not worth a kernel."""
    head, half = query_BTNH.shape[-1], query_BTNH.dtype in (jnp.bfloat16, jnp.float16)
    return half and head % 8 == 0 and head <= 128 and query_BTNH.shape[1] > 1


def _cudnn(query_BTNH, key_BSNH, value_BSNH, mask_BS, causal: bool):
    """jax refuses odd lengths in training: they are made even, and true lengths (or the mask) hide what was added."""
    (batch, t), s = query_BTNH.shape[:2], key_BSNH.shape[1]

    def even(x):
        return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), *[(0, 0)] * (x.ndim - 2)))
    hidden: dict[str, Any] = {}
    if mask_BS is not None:  # the kernel adds it to the scores, and wants it for every query
        hidden['mask'] = jnp.broadcast_to(even(mask_BS)[:, None, None, :], (batch, 1, t + t % 2, s + s % 2))
    elif s % 2:
        hidden = dict(query_seq_lengths=jnp.full(batch, t, jnp.int32), key_value_seq_lengths=jnp.full(batch, s, jnp.int32))
    return jax.nn.dot_product_attention(even(query_BTNH), even(key_BSNH), even(value_BSNH), is_causal=causal,
                                        implementation='cudnn', **hidden)[:, :t]


def _float64(query_BTNH, key_BSNH, value_BSNH, mask_BS, causal: bool):
    """The plain formula throughout in float64: jax's has a float32 softmax."""
    logits_BNTS = jnp.einsum('btnh,bsnh->bnts', query_BTNH, key_BSNH) * query_BTNH.shape[-1] ** -.5
    seen = True if mask_BS is None else mask_BS[:, None, None, :]
    if causal:
        seen = seen & jnp.tril(jnp.ones(logits_BNTS.shape[-2:], bool))
    weight_BNTS = jax.nn.softmax(jnp.where(seen, logits_BNTS, jnp.finfo(jnp.float32).min))
    return jnp.einsum('bnts,bsnh->btnh', weight_BNTS, value_BSNH)


def choose(query_BTNH, key_BSNH) -> str:
    """What 'auto' is, on the platform of the current mesh."""
    target = platform.current()
    if target == 'gpu' and _cudnn_can(query_BTNH):
        return 'cudnn'
    if target == 'tpu' and min(query_BTNH.shape[1], key_BSNH.shape[1]) >= SPLASH_FROM:
        return 'splash'
    return 'xla'


def attend(query_BTNH, key_BSNH, value_BSNH, *, mask_BS=None, causal: bool = False, implementation: str = 'auto'):
    """Scaled dot-product attention -> [B, T, N, H]; the softmax is float32 (float64 for float64).

    ``implementation``: 'xla', 'cudnn' (GPUs), 'splash' (TPUs), or 'auto': cuDNN on a GPU where it can, splash on a TPU for
    sequences of at least SPLASH_FROM tokens, else XLA.
    ``mask_BS``: True where a key may be attended to.
    """
    if implementation == 'auto':
        implementation = choose(query_BTNH, key_BSNH)
    if implementation == 'splash':
        return splash.attend(query_BTNH, key_BSNH, value_BSNH, mask_BS=mask_BS, causal=causal)
    if implementation == 'cudnn':
        return _cudnn(query_BTNH, key_BSNH, value_BSNH, mask_BS, causal)
    if query_BTNH.dtype == jnp.float64:
        return _float64(query_BTNH, key_BSNH, value_BSNH, mask_BS, causal)
    mask = None if mask_BS is None else mask_BS[:, None, None, :]
    return jax.nn.dot_product_attention(query_BTNH, key_BSNH, value_BSNH, mask=mask, is_causal=causal, implementation='xla')


class Attention(nn.Module):
    """Multi-head attention of ``query_BTW`` over ``key_BSW`` (itself by default) -> [B, T, W].

    ``bias``: of all four layers; ``qkv_bias`` of those of queries, keys and values, if all have one.
    """
    heads: int
    kernel_init: Any = nn.initializers.xavier_uniform()
    out_init: Any = nn.initializers.xavier_uniform()
    causal: bool = False
    bias: bool = True
    qkv_bias: bool = True
    dtype: Any = jnp.float32
    implementation: str = 'auto'

    @nn.compact
    def __call__(self, query_BTW, key_BSW=None, mask_BS=None, cache=None, index=None):
        """With ``cache``, the keys and values [B, S, N, H] of the tokens before number ``index``, ``query_BTW`` is the one token of
        that number, T = 1; returns (output, the cache with it). Otherwise the output alone."""
        key_BSW = query_BTW if key_BSW is None else key_BSW
        width = query_BTW.shape[-1]
        if width % self.heads:
            raise RecipeError(f'heads: {self.heads} heads do not divide the width {width}')

        def project(name, x_BLW):
            y_BLW = nn.Dense(width, self.bias and self.qkv_bias, self.dtype, kernel_init=self.kernel_init, name=name)(x_BLW)
            return rearrange(checkpoint_name(y_BLW, 'qkv'), 'b l (n h) -> b l n h', n=self.heads)

        query_BTNH, key_BSNH, value_BSNH = project('query', query_BTW), project('key', key_BSW), project('value', key_BSW)
        if cache is not None:
            cache = key_BSNH, value_BSNH = tuple(jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), index, axis=1)
                                                 for old, new in zip(cache, (key_BSNH, value_BSNH)))
            mask_BS = jnp.broadcast_to(jnp.arange(key_BSNH.shape[1]) <= index, key_BSNH.shape[:2])
        x_BTNH = attend(query_BTNH, key_BSNH, value_BSNH, mask_BS=mask_BS, causal=self.causal and cache is None,
                        implementation=self.implementation if cache is None else 'xla')
        x_BTW = checkpoint_name(rearrange(x_BTNH, 'b t n h -> b t (n h)'), 'context')
        x_BTW = nn.Dense(width, self.bias, self.dtype, kernel_init=self.out_init, name='out')(x_BTW)
        return x_BTW if cache is None else (x_BTW, cache)
