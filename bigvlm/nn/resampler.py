"""Learned queries that read a sequence: one module for attentional poolers, the Perceiver resampler and the Q-Former.

B batch, S tokens read, W their width, Q queries, D the queries' width.
"""

from typing import Any

import jax.numpy as jnp
from einops import repeat
from flax import linen as nn

from bigvlm.nn.attention import Attention
from bigvlm.nn.transformer import Mlp


class Resampler(nn.Module):
    """[B, S, W] -> [B, Q, D]: ``queries`` learned vectors that attend to the tokens, ``depth`` times.

    Fields:
        width: of queries, 0 for the tokens'. project: whether tokens of another width are brought to that first; else the attention's
            keys and values do it alone (open_clip's pooler).
        mlp: hidden width of an MLP after each attention, 0 for none (CoCa's attentional pooler, arXiv 2205.01917, has one
            layer without; MAP heads, Perceiver and Q-Former have one).
        among: whether queries also see each other: '' no; 'keys', in the same attention, after the tokens (the Perceiver
            resampler of Flamingo, arXiv 2204.14198); 'before', in a self-attention of their own (the Q-Former, 2301.12597).
        residual: whether what attention gives is added to the queries (not in CoCa's pooler).
    """
    queries: int
    heads: int
    width: int = 0
    project: bool = True
    depth: int = 1
    mlp: int = 0
    among: str = ''
    residual: bool = False
    activation: str = 'gelu_tanh'
    norm_eps: float = 1e-6
    dtype: Any = jnp.float32
    implementation: str = 'auto'

    @nn.compact
    def __call__(self, tokens_BSW, mask_BS=None):
        width = self.width or tokens_BSW.shape[-1]
        query_QD = self.param('queries', nn.initializers.normal(width ** -.5), (self.queries, width)).astype(self.dtype)
        x_BQD = repeat(query_QD, 'q d -> b q d', b=tokens_BSW.shape[0])
        if self.project and tokens_BSW.shape[-1] != width:
            tokens_BSW = nn.Dense(width, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(), name='project')(tokens_BSW)
        for layer in range(self.depth):
            x_BQD = self._layer(x_BQD, tokens_BSW, mask_BS, f'layer{layer}')
        return nn.LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, name='norm')(x_BQD)

    def _layer(self, x_BQD, tokens_BSW, mask_BS, name: str):
        def norm(what, x):
            return nn.LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, name=f'{name}_{what}_norm')(x)

        def attention(what):
            return Attention(self.heads, dtype=self.dtype, implementation=self.implementation, name=f'{name}_{what}')
        if self.among == 'before':
            x_BQD = x_BQD + attention('self')(norm('self', x_BQD))
        read, keys = norm('query', x_BQD), norm('tokens', tokens_BSW)
        if self.among == 'keys':
            keys = jnp.concatenate([keys, read], axis=1)
            mask_BS = None if mask_BS is None else jnp.pad(mask_BS, ((0, 0), (0, self.queries)), constant_values=True)
        found = attention('attention')(read, keys, mask_BS=mask_BS)
        x_BQD = x_BQD + found if self.residual else found
        return x_BQD + Mlp(self.mlp, self.activation, dtype=self.dtype, name=f'{name}_mlp')(norm('mlp', x_BQD)) if self.mlp else x_BQD
