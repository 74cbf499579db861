"""A fixed number of learned queries that read one tower's tokens, as a part of a recipe (nn/resampler.py).

B batch, S tokens read, W their width, Q queries, D the queries' width.
"""

import jax.numpy as jnp
from flax import linen as nn

from bigvlm.core.parts import RecipeError
from bigvlm.nn import resampler
from bigvlm.nn.attention import IMPLEMENTATIONS
from bigvlm.nn.transformer import ACTIVATIONS, choose, used


class Resampler(nn.Module):
    """[B, S, W] (and mask [B, S]) -> [B, Q, D]. Fields as of ``nn.resampler.Resampler``."""
    queries: int = 64
    heads: int = 8
    width: int = 0
    depth: int = 1
    mlp: int = 0
    among: str = ''
    residual: bool = False
    activation: str = 'gelu_tanh'
    norm_eps: float = 1e-6
    dtype: str = 'bfloat16'
    attention: str = 'auto'

    def check(self) -> None:
        """Raises RecipeError for impossible fields; needs no device."""
        for field in ('queries', 'heads', 'depth'):
            if getattr(self, field) < 1:
                raise RecipeError(f'{field}: found {getattr(self, field)}; valid: at least 1')
        choose(dict.fromkeys(('', 'keys', 'before')), self.among, 'among')
        choose(ACTIVATIONS, self.activation, 'activation')
        choose(dict.fromkeys(IMPLEMENTATIONS), self.attention, 'attention')

    @nn.compact
    def __call__(self, tokens_BSW, mask_BS=None):
        dtype = jnp.dtype(self.dtype)
        read = used(resampler.Resampler, self, 'read', dtype)
        return read(self.queries, self.heads, self.width, self.depth, self.mlp, self.among, self.residual, self.activation,
                    self.norm_eps, dtype, self.attention, name='read')(tokens_BSW, mask_BS)
