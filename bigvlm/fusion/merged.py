"""A transformer over the tokens of image and text side by side (FLAVA's multimodal encoder, arXiv 2112.04482).

B batch, M image tokens, N text tokens, V and T their widths, W the transformer's, L = 1 + M + N.
"""

import jax.numpy as jnp
from einops import repeat
from flax import linen as nn

from bigvlm.core.parts import RecipeError
from bigvlm.nn import transformer
from bigvlm.nn.encoded import Encoded
from bigvlm.nn.transformer import Transformer, choose, used


class Merged(nn.Module):
    """(image tokens, text tokens) -> Encoded of a class token of its own, the image's tokens, the text's, in this order.

    Each modality has a linear projection to ``width``; tokens bring the positions that their towers gave them.
    ``image_mask``, ``text_mask``: bool, true where a token is real.

    Fields:
        qkv_bias: whether queries, keys and values have biases.
        pool: what ``pooled_BD`` is: 'cls', the class token, or 'pooler': a dense layer of it and tanh (transformers' FLAVA).
        before_norm: what ``read`` gives of a tower: its tokens before its last norm (transformers' FLAVA) instead of after it.
    """
    width: int = 768
    depth: int = 6
    heads: int = 12
    mlp_dim: int = 0
    activation: str = 'gelu'
    init_scheme: str = 'xavier'
    norm_eps: float = 1e-6
    qkv_bias: bool = True
    pool: str = 'cls'
    before_norm: bool = False
    dropout: float = 0.
    drop_path: float = 0.
    remat: str = transformer.KEPT
    dtype: str = 'bfloat16'
    attention: str = 'auto'

    def check(self) -> None:
        """Raises RecipeError for impossible fields; needs no device."""
        if self.depth < 1 or self.width < 1 or self.width % self.heads:
            raise RecipeError(f'heads: {self.heads} heads do not divide the width {self.width} (depth {self.depth})')
        choose(dict.fromkeys(('cls', 'pooler')), self.pool, 'pool')
        transformer.check(self)

    def read(self, encoded: Encoded):
        """The tokens [B, L, ·] of a tower that are to be given in the call."""
        if self.before_norm and -1 not in encoded.layers:
            raise RecipeError('before_norm: only transformers (vit, text, bert) tell their tokens before the last norm')
        return encoded.layers[-1] if self.before_norm else encoded.tokens_BLD

    @nn.compact
    def __call__(self, image_BMV, text_BNT, *, image_mask=None, text_mask=None, keys_B=None):
        dtype = jnp.dtype(self.dtype)
        batch = image_BMV.shape[0]

        def project(name, x):
            return used(nn.Dense, self, name, dtype)(self.width, dtype=dtype, kernel_init=nn.initializers.xavier_uniform(), name=name)(x)
        token_W = self.param('class_token', nn.initializers.normal(.02), (self.width,)).astype(dtype)
        x_BLW = jnp.concatenate([repeat(token_W, 'w -> b 1 w', b=batch), project('image', image_BMV), project('text', text_BNT)], axis=1)

        def real(mask, tokens):
            return jnp.ones(tokens.shape[:2], bool) if mask is None else mask
        mask_BL = None
        if image_mask is not None or text_mask is not None:
            mask_BL = jnp.concatenate([jnp.ones((batch, 1), bool), real(image_mask, image_BMV), real(text_mask, text_BNT)], axis=1)
        encoder = Transformer(self.depth, self.heads, mlp_dim=self.mlp_dim or 4 * self.width, activation=self.activation,
                              init_scheme=self.init_scheme, norm_eps=self.norm_eps, dropout=self.dropout, drop_path=self.drop_path,
                              remat=self.remat, dtype=dtype, implementation=self.attention, qkv_bias=self.qkv_bias, name='encoder')
        x_BLW, layers = encoder(x_BLW, keys_B=keys_B, mask_BL=mask_BL)
        pooled_BW = x_BLW[:, 0]
        if self.pool == 'pooler':
            dense = used(nn.Dense, self, 'pooler', dtype)(self.width, dtype=dtype, kernel_init=nn.initializers.truncated_normal(.02),
                                                          name='pooler')
            pooled_BW = jnp.tanh(dense(pooled_BW))
        return Encoded(pooled_BW, x_BLW, mask_BL, layers)
