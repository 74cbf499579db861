"""Text decoder: causal, reading image tokens by cross-attention (the multimodal half of CoCa, arXiv 2205.01917).

B batch, L text tokens, S image tokens, W the decoder's width, V vocabulary.
"""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from bigvlm.nn import transformer
from bigvlm.nn.sizes import dims
from bigvlm.nn.transformer import Transformer, empty_cache, used


class Text(nn.Module):
    """(tokens of the text so far [B, L, W'], image tokens [B, S, W'']) -> logits of the next tokens [B, L, V], in float32.

    Fields:
        vocab: size of the vocabulary.
        size: one of nn.sizes.SIZES, or '' with ``width``, ``depth``, ``heads`` given; those override the size's.
        cross_mlp: each cross-attention has an MLP and a norm of its context of its own, as in open_clip's CoCa.
    Tokens of another width are projected.
    """
    vocab: int = 32_000
    size: str = ''
    width: int = 0
    depth: int = 0
    heads: int = 0
    mlp_dim: int = 0
    cross_mlp: bool = False
    activation: str = 'gelu_tanh'
    init_scheme: str = 'xavier'
    norm_eps: float = 1e-6
    dropout: float = 0.
    drop_path: float = 0.
    remat: str = transformer.KEPT
    dtype: str = 'bfloat16'
    attention: str = 'auto'

    def check(self) -> None:
        """Raises RecipeError for impossible fields; needs no device."""
        dims(self)
        transformer.check(self)

    def cache(self, batch: int, length: int) -> Any:
        """Of no token yet, for texts of at most ``length``."""
        width, depth, _, heads = dims(self)
        return empty_cache(depth, batch, length, width, heads, jnp.dtype(self.dtype))

    @nn.compact
    def __call__(self, text_BLW, image_BSW, *, keys_B=None, cache=None, index=None):
        """With ``cache`` and ``index``, L = 1: the token of that number; returns (logits, cache)."""
        width, depth, hidden, heads = dims(self)
        dtype = jnp.dtype(self.dtype)

        def at_width(name, x_BLW):
            if x_BLW.shape[-1] == width:
                return x_BLW.astype(dtype)
            return used(nn.Dense, self, name, dtype)(width, dtype=dtype, kernel_init=nn.initializers.xavier_uniform(), name=name)(x_BLW)
        decoder = Transformer(depth, heads, mlp_dim=hidden, activation=self.activation, init_scheme=self.init_scheme,
                              norm_eps=self.norm_eps, causal=True, dropout=self.dropout, drop_path=self.drop_path, remat=self.remat,
                              dtype=dtype, implementation=self.attention, cross=True, cross_mlp=self.cross_mlp, name='decoder')
        x_BLW, _, *cache = decoder(at_width('text', text_BLW), keys_B=keys_B, context_BSW=at_width('image', image_BSW), cache=cache,
                                   index=index)
        head = used(nn.Dense, self, 'vocabulary', dtype)(self.vocab, False, dtype, kernel_init=nn.initializers.normal(width ** -.5),
                                                         name='vocabulary')
        logits_BLV = head(x_BLW).astype(jnp.promote_types(dtype, jnp.float32))
        return (logits_BLV, *cache) if cache else logits_BLV
