"""Text transformers: CLIP's (causal, pooled at the end-of-text token) and SigLIP's (bidirectional, last token).

B batch, L tokens, W token width, D the pooled width, V vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import repeat
from flax import linen as nn

from bigvlm.core import layout
from bigvlm.core.parts import RecipeError
from bigvlm.nn import transformer
from bigvlm.nn.embed import Embed
from bigvlm.nn.encoded import Encoded
from bigvlm.nn.random import EMBED_PLACE, dropout
from bigvlm.nn.sizes import dims
from bigvlm.nn.transformer import Transformer, choose, empty_cache, used


class Text(nn.Module):
    """int32 token ids [B, L] -> Encoded.

    Fields:
        vocab, length: size of the vocabulary, and the number of learned positions (texts may be shorter, not longer).
        size: one of nn.sizes.SIZES, or '' with ``width``, ``depth``, ``heads`` given; those override the size's.
        causal: CLIP's mask. pool: 'eot' (the first ``eot_id``), 'argmax' (the first of the largest id: OpenAI's code, whose end of text
            is that), 'last', 'first', 'max' or 'mean' (over real tokens).
        mask_padding: whether attention ignores ``pad_id``; neither CLIP nor SigLIP does.
        class_token: a learned token after the text, with the last position, which pools with pool='last' (CoCa: it sees the whole
            text although that is causal; with mask_padding, no padding).
        late_mask: with a class token, mask_padding hides the token after a padding token, also if it is that one, instead of the
            padding itself (open_clip's CoCa).
        out_dim: width of a last projection, 0 for none; ``out_bias`` its bias (SigLIP has one, CLIP has none).
    """
    vocab: int = 32_000
    length: int = 64
    size: str = 'B'
    width: int = 0
    depth: int = 0
    heads: int = 0
    mlp_dim: int = 0
    causal: bool = False
    pool: str = 'last'
    eot_id: int = 1
    pad_id: int = 1
    mask_padding: bool = False
    class_token: bool = False
    late_mask: bool = False
    out_dim: int = 0
    out_bias: bool = True
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
        choose(dict.fromkeys(('eot', 'argmax', 'last', 'first', 'max', 'mean')), self.pool, 'pool')
        if self.class_token and self.pool != 'last':
            raise RecipeError(f"pool: a class token after the text pools with pool='last', found {self.pool!r}")
        if self.late_mask and not (self.class_token and self.mask_padding):
            raise RecipeError('late_mask: it is of a mask_padding with a class_token, which this tower has not')
        if self.pool == 'eot' and not 0 <= self.eot_id < self.vocab:
            raise RecipeError(f'eot_id: {self.eot_id} is not a token of a vocabulary of {self.vocab}')
        if self.length < 1:
            raise RecipeError(f'length: {self.length} positions hold no text')
        transformer.check(self)

    def example(self) -> tuple[tuple[int, ...], str]:
        """(shape, dtype) of one input, for compiling without data."""
        return (self.length,), 'int32'

    def cache(self, batch: int) -> Any:
        """Of no token yet, for texts of at most ``length``."""
        width, depth, _, heads = dims(self)
        return empty_cache(depth, batch, self.length, width, heads, jnp.dtype(self.dtype))

    @nn.compact
    def __call__(self, text_BL, *, mask=None, keys_B=None, train=False, layers=(), cache=None, index=None):
        """With ``cache`` and ``index``, L = 1: the token of that number, of a causal tower; returns (its encoding, the cache)."""
        self.check()
        width, depth, hidden, heads = dims(self)
        dtype = jnp.dtype(self.dtype)
        keys_B = keys_B if train else None
        if text_BL.shape[1] > self.length:
            raise RecipeError(f'length: texts of {text_BL.shape[1]} tokens are longer than the {self.length} positions')
        token_init = nn.initializers.normal(.02 if self.init_scheme == 'clip' else width ** -.5)
        stored = layout.stored('/'.join((*self.path, 'embed', 'embedding')))
        embed = used(Embed, self, 'embed', dtype)(self.vocab, width, dtype, token_init, stored, name='embed')
        position_init = nn.initializers.normal(.01 if self.init_scheme == 'clip' else width ** -.5)
        position_LW = self.param('position', position_init, (self.length + self.class_token, width)).astype(dtype)
        if cache is not None:
            x_B1W = embed(text_BL) + jax.lax.dynamic_slice_in_dim(position_LW, index, 1)
            x_B1W, collected, cache = self._blocks(depth, heads, hidden, dtype)(x_B1W, layers=layers, cache=cache, index=index)
            return Encoded(None, x_B1W, None, collected), cache
        x_BLW = embed(text_BL) + position_LW[:text_BL.shape[1]]
        mask_BL = seen_BL = text_BL != self.pad_id if mask is None else mask
        if self.class_token:
            token_W = self.param('class_token', token_init, (width,)).astype(dtype) + position_LW[-1]
            x_BLW = jnp.concatenate([x_BLW, repeat(token_W, 'w -> b 1 w', b=x_BLW.shape[0])], axis=1)
            mask_BL, late_BL = (jnp.pad(mask_BL, ((0, 0), side), constant_values=True) for side in ((0, 1), (1, 0)))
            seen_BL = late_BL if self.late_mask else mask_BL
        x_BLW = dropout(x_BLW, self.dropout, keys_B, EMBED_PLACE)
        encoder = self._blocks(depth, heads, hidden, dtype)
        x_BLW, collected = encoder(x_BLW, keys_B=keys_B, mask_BL=seen_BL if self.mask_padding else None, layers=layers)
        pooled_BD = self.pooled(x_BLW, text_BL, mask_BL)
        if self.out_dim:
            out_init = nn.initializers.normal(width ** -.5) if self.init_scheme == 'clip' else nn.initializers.lecun_normal()
            pooled_BD = used(nn.Dense, self, 'out', dtype)(self.out_dim, self.out_bias, dtype, kernel_init=out_init, name='out')(pooled_BD)
        return Encoded(pooled_BD, x_BLW, mask_BL, collected)

    def _blocks(self, depth: int, heads: int, hidden: int, dtype) -> Transformer:
        return Transformer(depth, heads, mlp_dim=hidden, activation=self.activation, init_scheme=self.init_scheme,
                           norm_eps=self.norm_eps, causal=self.causal, dropout=self.dropout, drop_path=self.drop_path,
                           remat=self.remat, dtype=dtype, implementation=self.attention, name='encoder')

    def pooled(self, x_BLW, text_BL, mask_BL):
        if self.pool in ('eot', 'argmax'):
            index_B = jnp.argmax(text_BL == self.eot_id if self.pool == 'eot' else text_BL, axis=1)
            return jnp.take_along_axis(x_BLW, index_B[:, None, None], axis=1)[:, 0]
        if self.pool in ('last', 'first'):
            return x_BLW[:, -1 if self.pool == 'last' else 0]
        mask_BL1 = mask_BL[:, :, None]
        if self.pool == 'max':
            return jnp.max(jnp.where(mask_BL1, x_BLW, jnp.finfo(x_BLW.dtype).min), axis=1)
        count_B1 = jnp.maximum(mask_BL1.sum(axis=1), 1).astype(jnp.float32)
        return (jnp.where(mask_BL1, x_BLW, 0).astype(jnp.float32).sum(axis=1) / count_B1).astype(x_BLW.dtype)
