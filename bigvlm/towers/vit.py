"""Vision transformer (Dosovitskiy et al., arXiv 2010.11929) in the variants that CLIP and SigLIP use.

B batch, H×W pixels, C colours, P patch, L patches (+1 with a class token), W also the token width, D the pooled width.
"""

from typing import Any

import jax.numpy as jnp
from einops import rearrange, repeat
from flax import linen as nn

from bigvlm.core.parts import RecipeError
from bigvlm.nn import positions, transformer
from bigvlm.nn.attention import Attention
from bigvlm.nn.encoded import Encoded
from bigvlm.nn.random import EMBED_PLACE, dropout, patch_dropout
from bigvlm.nn.resampler import Resampler
from bigvlm.nn.sizes import SIZES, dims
from bigvlm.nn.transformer import Mlp, Transformer, choose, used


class MapHead(nn.Module):
    """Multi-head attention pooling with one learned probe, then a residual MLP (SigLIP; big_vision's MAP head)."""
    heads: int
    hidden: int
    norm_eps: float
    dtype: Any
    implementation: str = 'auto'
    activation: str = 'gelu_tanh'

    @nn.compact
    def __call__(self, x_BLW):
        probe = self.param('probe', nn.initializers.xavier_uniform(), (1, 1, x_BLW.shape[-1]))
        probe_B1W = repeat(probe.astype(self.dtype), '1 1 w -> b 1 w', b=x_BLW.shape[0])
        pooled_B1W = Attention(self.heads, dtype=self.dtype, implementation=self.implementation, name='attention')(probe_B1W, x_BLW)
        hidden_B1W = nn.LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, name='norm')(pooled_B1W)
        return (pooled_B1W + Mlp(self.hidden, self.activation, dtype=self.dtype, name='mlp')(hidden_B1W))[:, 0]


class ViT(nn.Module):
    """uint8 or float images [B, H, W, C] -> Encoded.

    Fields:
        size: one of SIZES, or '' with ``width``, ``depth``, ``heads`` (and ``mlp_dim``) given; those override the size's.
        patch, image: patch side, and the image side whose grid learned positions are stored at (others are resampled).
        trim: whether images whose side is no multiple of the patch lose their last rows and columns of pixels, as under a strided
            convolution (SigLIP So400m/14 at 384 pixels sees 378); otherwise they are an error.
        pool: 'cls' (a class token is added), 'pooler' (a dense layer of that and tanh: transformers' ViT), 'gap' (mean of the
            tokens), 'map' (attention pooling with an MLP); CoCa's, whose tokens are what
            ``queries`` learned queries of ``query_heads`` heads read from the patches: 'cascade', one more query over them pools (the
            paper), or 'queries', one more beside them does (open_clip).
        query_width: of those queries, 0 for the tokens'.
        class_token: has a class token with another pool than 'cls', too: 'gap' and 'map' leave it out, queries read it.
        class_position: whether a class token has a learned position of its own.
        last_norm: what the last norm is of: 'tokens', before they are pooled, 'pooled' (the tokens then have none), or 'none'.
        out_dim: width of a last projection, 0 for none; ``out_bias`` its bias.
        position: 'learned' or 'sincos2d'.
        pre_norm: CLIP's norm before the blocks; ``patch_bias``: CLIP has none; ``qkv_bias``: of the blocks' queries, keys and values.
        patch_dropout: fraction of patches dropped in training (FLIP).
        mask_token: has a learned vector that takes the place of patches masked in a call (BEiT, SimMIM).
        mean, std: normalisation of pixels in [0, 1], done here on the device.
        remat: what blocks keep for the backward pass, see transformer.remat_policy.
        dtype: of compute; parameters are float32.
    """
    size: str = 'B'
    patch: int = 16
    image: int = 224
    trim: bool = False
    pool: str = 'map'
    queries: int = 256
    query_heads: int = 0
    query_width: int = 0
    class_token: bool = False
    class_position: bool = True
    last_norm: str = 'tokens'
    out_dim: int = 0
    out_bias: bool = True
    width: int = 0
    depth: int = 0
    heads: int = 0
    mlp_dim: int = 0
    position: str = 'learned'
    pre_norm: bool = False
    patch_bias: bool = True
    qkv_bias: bool = True
    activation: str = 'gelu_tanh'
    init_scheme: str = 'xavier'
    norm_eps: float = 1e-6
    dropout: float = 0.
    drop_path: float = 0.
    patch_dropout: float = 0.
    mask_token: bool = False
    mean: tuple[float, ...] = (.5, .5, .5)
    std: tuple[float, ...] = (.5, .5, .5)
    remat: str = transformer.KEPT
    dtype: str = 'bfloat16'
    attention: str = 'auto'

    def check(self) -> None:
        """Raises RecipeError for impossible fields; needs no device."""
        width, _, _, heads = dims(self)
        if self.patch < 1 or self.image < self.patch or self.image % self.patch and not self.trim:
            raise RecipeError(f'image: a side of {self.image} is not a multiple of the patch side {self.patch} (trim=True cuts it)')
        choose(dict.fromkeys(('cls', 'pooler', 'gap', 'map', 'queries', 'cascade')), self.pool, 'pool')
        if self.queries < 1 or (self.query_width or width) % (self.query_heads or heads):
            raise RecipeError(f'queries: {self.queries} queries, of {self.query_heads} heads (0: those of the blocks), cannot pool '
                              f'{self.query_width or width}')
        choose(dict.fromkeys(('tokens', 'pooled', 'none')), self.last_norm, 'last_norm')
        if self.last_norm == 'pooled' and self.pool in ('queries', 'cascade'):
            raise RecipeError(f'last_norm: with pool={self.pool!r}, whose queries have a norm of their own, it is tokens or none')
        choose(dict.fromkeys(('learned', 'sincos2d')), self.position, 'position')
        if self.position == 'sincos2d':
            positions.check_sincos2d(width)
        if not 0. <= self.patch_dropout < 1.:
            raise RecipeError(f'patch_dropout: {self.patch_dropout} is not in [0, 1)')
        if len(self.mean) != len(self.std) or 0. in self.std:
            raise RecipeError(f'std: {self.std} must be one number other than 0 per colour of mean, {self.mean}')
        transformer.check(self)

    def example(self) -> tuple[tuple[int, ...], str]:
        """(shape, dtype) of one input, for compiling without data."""
        return (self.image, self.image, len(self.mean)), 'uint8'

    @nn.compact
    def __call__(self, image_BHWC, *, mask=None, keys_B=None, train=False, layers=(), masked=None, kept=None):
        """``masked`` bool [B, L]: patches that are shown as the mask token; ``kept`` int [B, K]: the only patches that are shown
        (MAE). Both count patches row by row, and only one may be given; no patch is dropped besides."""
        self.check()
        if masked is not None and (kept is not None or not self.mask_token):
            raise RecipeError('mask_token: masked patches need mask_token=True' if kept is None else
                              'mask_token: patches cannot be masked and left out in one call')
        width, depth, hidden, heads = dims(self)
        dtype = jnp.dtype(self.dtype)
        keys_B = keys_B if train else None
        x_BLW = self.embed(image_BHWC, masked, width, dtype)
        if kept is not None:
            x_BLW = jnp.take_along_axis(x_BLW, kept[:, :, None], axis=1)
        elif masked is None:
            x_BLW = patch_dropout(x_BLW, self.patch_dropout, keys_B)
        if self.pool in ('cls', 'pooler') or self.class_token:
            scale = width ** -.5 if self.init_scheme == 'clip' else 0.
            token = self.param('class_token', nn.initializers.normal(scale), (width,))
            if self.position == 'learned' and self.class_position:
                token = token + self.param('class_position', nn.initializers.normal(width ** -.5), (width,))
            x_BLW = jnp.concatenate([repeat(token.astype(dtype), 'w -> b 1 w', b=x_BLW.shape[0]), x_BLW], axis=1)
        if self.pre_norm:
            x_BLW = nn.LayerNorm(epsilon=self.norm_eps, dtype=dtype, name='pre_norm')(x_BLW)
        x_BLW = dropout(x_BLW, self.dropout, keys_B, EMBED_PLACE)
        encoder = Transformer(depth, heads, mlp_dim=hidden, activation=self.activation, init_scheme=self.init_scheme,
                              norm_eps=self.norm_eps,
                              dropout=self.dropout, drop_path=self.drop_path, remat=self.remat, dtype=dtype,
                              implementation=self.attention, qkv_bias=self.qkv_bias, last_norm=self.last_norm == 'tokens', name='encoder')
        x_BLW, collected = encoder(x_BLW, keys_B=keys_B, layers=layers)
        if self.pool in ('queries', 'cascade'):
            pooled_BD, x_BLW = self.queried(x_BLW, heads, dtype)
        else:
            pooled_BD = self.pooled(x_BLW, heads, hidden, dtype)
        if self.last_norm == 'pooled':
            pooled_BD = nn.LayerNorm(epsilon=self.norm_eps, dtype=dtype, name='pooled_norm')(pooled_BD)
        features_BD = pooled_BD
        if self.out_dim:
            out_init = nn.initializers.normal(width ** -.5) if self.init_scheme == 'clip' else nn.initializers.lecun_normal()
            pooled_BD = used(nn.Dense, self, 'out', dtype)(self.out_dim, self.out_bias, dtype, kernel_init=out_init, name='out')(pooled_BD)
        return Encoded(pooled_BD, x_BLW, None, collected, features_BD)

    def embed(self, image_BHWC, masked_BL, width: int, dtype):
        """Normalises pixels, cuts patches (a strided convolution written as one matrix product), masks, and adds positions."""
        if jnp.issubdtype(image_BHWC.dtype, jnp.integer):
            image_BHWC = image_BHWC.astype(jnp.float32) / 255.
        image_BHWC = (image_BHWC - jnp.asarray(self.mean, jnp.float32)) / jnp.asarray(self.std, jnp.float32)
        rows, columns = image_BHWC.shape[1] // self.patch, image_BHWC.shape[2] // self.patch
        if self.trim:
            image_BHWC = image_BHWC[:, :rows * self.patch, :columns * self.patch]
        if (rows * self.patch, columns * self.patch) != image_BHWC.shape[1:3]:
            height, width_ = image_BHWC.shape[1:3]
            raise RecipeError(f'patch: images of {height}×{width_} are not cut evenly by patches of {self.patch}')
        patches_BLP = rearrange(image_BHWC, 'b (r p) (c q) k -> b (r c) (p q k)', p=self.patch, q=self.patch)
        embed = used(nn.Dense, self, 'patch_embed', dtype)
        x_BLW = embed(width, self.patch_bias, dtype, name='patch_embed')(patches_BLP.astype(dtype))
        if self.mask_token:
            token_W = self.param('mask_token', nn.initializers.normal(.02), (width,)).astype(dtype)
            if masked_BL is not None:
                if masked_BL.shape != x_BLW.shape[:2]:
                    raise RecipeError(f'patch: masks of {masked_BL.shape[1]} patches for images of {x_BLW.shape[1]}')
                x_BLW = jnp.where(masked_BL[:, :, None], token_W, x_BLW)
        if self.position == 'sincos2d':
            return x_BLW + positions.sincos2d((rows, columns), width).astype(dtype)
        side = self.image // self.patch
        learned_LW = self.param('position', nn.initializers.normal(width ** -.5), (side * side, width))
        return x_BLW + positions.resample(learned_LW, (side, side), (rows, columns)).astype(dtype)

    def pooled(self, x_BLW, heads: int, hidden: int, dtype):
        if self.pool == 'cls':
            return x_BLW[:, 0]
        if self.pool == 'pooler':
            return jnp.tanh(used(nn.Dense, self, 'pooler', dtype)(x_BLW.shape[-1], dtype=dtype, name='pooler')(x_BLW[:, 0]))
        x_BLW = x_BLW[:, int(self.class_token):]
        if self.pool == 'gap':
            return x_BLW.astype(jnp.float32).mean(axis=1).astype(dtype)
        return used(MapHead, self, 'map', dtype)(heads, hidden, self.norm_eps, dtype, self.attention, self.activation, name='map')(x_BLW)

    def queried(self, x_BLW, heads: int, dtype):
        """(pooled [B, query_width], tokens [B, queries, query_width]) by attentional pooling (CoCa, arXiv 2205.01917, section 3.2)."""
        def read(name, queries, x_BLW):
            resampler = used(Resampler, self, name, dtype)
            return resampler(queries, self.query_heads or heads, width=self.query_width, project=False, norm_eps=self.norm_eps, dtype=dtype,
                             implementation=self.attention, name=name)(x_BLW)
        if self.pool == 'queries':
            x_BQW = read('read', self.queries + 1, x_BLW)
            return x_BQW[:, 0], x_BQW[:, 1:]
        x_BQW = read('read', self.queries, x_BLW)
        return read('cascade', 1, x_BQW)[:, 0], x_BQW
