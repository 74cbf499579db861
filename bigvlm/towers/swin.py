"""Swin transformer (Liu et al., arXiv 2103.14030): four stages of attention within windows, each on half the grid of the last.

B batch, H×W pixels or tokens of a grid, C their width, L tokens, D the pooled width.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from bigvlm.core import mesh
from bigvlm.core.foreign import Theirs
from bigvlm.core.parts import RecipeError
from bigvlm.nn import transformer
from bigvlm.nn.encoded import Encoded
from bigvlm.nn.random import EMBED_PLACE, drop_path, dropout
from bigvlm.nn.transformer import ACTIVATIONS, Mlp, choose, remat_policy, used
from bigvlm.nn.windows import WindowAttention

# (width of the first stage, blocks of each stage): the paper's section 3.3. Heads are 32 wide.
SIZES = {'T': (96, (2, 2, 6, 2)), 'S': (96, (2, 2, 18, 2)), 'B': (128, (2, 2, 18, 2)), 'L': (192, (2, 2, 18, 2))}
HEAD = 32
_init = nn.initializers.truncated_normal(.02)

# Names of the same arrays in Hugging Face's checkpoints of SwinModel, whose modules in memory are called otherwise; p and q are the
# sides of a patch. Blocks that are ``plain`` here are the even ones of a stage there, ``shifted`` ones the odd.
_BLOCK = 'encoder.layers.{stage}.blocks.{}.'
FOREIGN = {
    'patch_embed/kernel': Theirs('embeddings.patch_embeddings.projection.weight', 'w c p q -> (p q c) w'),
    'patch_embed/bias': 'embeddings.patch_embeddings.projection.bias',
    'patch_norm/scale': 'embeddings.norm.weight', 'patch_norm/bias': 'embeddings.norm.bias',
    **{f'stage{{stage}}/blocks/{kind}/{ours}': Theirs(f'{_BLOCK}{theirs}', layers=(first, 2))
       for first, kind in enumerate(('plain', 'shifted')) for ours, theirs in {
        **{f'{ours}/{mine}': f'{theirs}.{other}' for ours, theirs, weight in (
            ('norm1', 'layernorm_before', 'scale'), ('norm2', 'layernorm_after', 'scale'),
            ('attention/query', 'attention.self.query', 'kernel'), ('attention/key', 'attention.self.key', 'kernel'),
            ('attention/value', 'attention.self.value', 'kernel'), ('attention/out', 'attention.output.dense', 'kernel'),
            ('mlp/fc1', 'intermediate.dense', 'kernel'), ('mlp/fc2', 'output.dense', 'kernel'))
           for mine, other in ((weight, 'weight'), ('bias', 'bias'))},
        'attention/position_bias': 'attention.self.relative_position_bias_table'}.items()},
    'merge{stage}/norm/scale': 'encoder.layers.{stage}.downsample.norm.weight',
    'merge{stage}/norm/bias': 'encoder.layers.{stage}.downsample.norm.bias',
    'merge{stage}/reduction/kernel': 'encoder.layers.{stage}.downsample.reduction.weight',
    'norm/scale': 'layernorm.weight', 'norm/bias': 'layernorm.bias',
}


class Block(nn.Module):
    """A pre-norm block whose attention is within windows: [B, H, W, C] -> the same. ``layer`` counts all blocks of the tower."""
    heads: int
    window: int
    shifted: bool
    hidden: int
    activation: str
    norm_eps: float
    dropout: float
    drop_path: float
    last: int
    dtype: Any

    @nn.compact
    def __call__(self, x_BHWC, layer, keys_B):
        norm = functools.partial(nn.LayerNorm, epsilon=self.norm_eps, dtype=self.dtype)

        def add(x_BHWC, branch_BHWC, site):
            branch_BHWC = dropout(branch_BHWC, self.dropout, keys_B, layer * 4 + site)
            if self.drop_path:  # its rate grows linearly with depth
                flat_BLC = rearrange(branch_BHWC, 'b h w c -> b (h w) c')
                flat_BLC = drop_path(flat_BLC, self.drop_path * layer / max(1, self.last), keys_B, layer * 4 + site + 2)
                branch_BHWC = flat_BLC.reshape(branch_BHWC.shape)
            return x_BHWC + branch_BHWC

        attention = WindowAttention(self.heads, self.window, self.shifted, _init, self.dtype, name='attention')
        x_BHWC = add(x_BHWC, attention(norm(name='norm1')(x_BHWC)), 0)
        x_BHWC = checkpoint_name(x_BHWC, 'attended')
        mlp = Mlp(self.hidden, self.activation, _init, _init, self.dtype, name='mlp')
        return add(x_BHWC, mlp(norm(name='norm2')(x_BHWC)), 1)


class Pair(nn.Module):
    """A block, and one whose windows are shifted: what ``nn.scan`` repeats. ``layer`` is the first one's number."""
    block: Callable[..., Block]

    @nn.compact
    def __call__(self, x_BHWC, layer, keys_B):
        x_BHWC = mesh.constrain_batch(x_BHWC)
        for i, name in enumerate(('plain', 'shifted')):
            x_BHWC = self.block(shifted=bool(i), name=name)(x_BHWC, layer + i, keys_B)
        return mesh.constrain_batch(x_BHWC), None


class Stage(nn.Module):
    """``depth`` blocks of one width, scanned in pairs; ``before`` is how many the tower has before them."""
    block: Callable[..., Block]
    depth: int
    before: int
    remat: str
    dtype: Any

    @nn.compact
    def __call__(self, x_BHWC, keys_B):
        pair = used(Pair, self, 'blocks', self.dtype, scanned=True)
        rematerialise, policy = remat_policy(self.remat)
        if rematerialise:
            pair = nn.remat(pair, policy=policy, prevent_cse=False)
        pairs = nn.scan(pair, variable_axes={'params': 0}, split_rngs={'params': True}, in_axes=(0, nn.broadcast), length=self.depth // 2)
        return pairs(self.block, name='blocks')(x_BHWC, self.before + jnp.arange(0, self.depth, 2), keys_B)[0]


class Merge(nn.Module):
    """Each square of four tokens becomes one of twice the width: [B, H, W, C] -> [B, H/2, W/2, 2C]; odd sides get zeros."""
    norm_eps: float
    dtype: Any

    @nn.compact
    def __call__(self, x_BHWC):
        odd = [side % 2 for side in x_BHWC.shape[1:3]]
        x_BHWC = jnp.pad(x_BHWC, ((0, 0), (0, odd[0]), (0, odd[1]), (0, 0)))
        x_BHWC = rearrange(x_BHWC, 'b (h p) (w q) c -> b h w (q p c)', p=2, q=2)  # the official order: down, then across
        x_BHWC = nn.LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, name='norm')(x_BHWC)
        return nn.Dense(x_BHWC.shape[-1] // 2, False, self.dtype, kernel_init=_init, name='reduction')(x_BHWC)


class Swin(nn.Module):
    """uint8 or float images [B, H, W, 3] -> Encoded: tokens of the last stage and their mean; ``layers`` counts stages.

    Fields:
        size: one of SIZES, or '' with ``width``, ``depths``, ``heads`` (per stage) given; those override the size's.
        window: the windows' side in tokens (7 at 224 pixels, 12 at 384). Other images work with the same parameters: grids
            that windows do not divide are padded (nn/windows.py), and so are odd ones before they are halved.
        image, patch: the side of images, for compiling without data, and of patches, which must divide images.
        drop_path: of the last block, growing linearly from 0 at the first; dropout: of what attention and MLP add.
        out_dim: width of a last projection, 0 for none; ``out_bias`` its bias.
        mean, std: normalisation of pixels in [0, 1], done here on the device.
        remat: what a pair of blocks keeps for the backward pass, see transformer.remat_policy.
    """
    size: str = 'T'
    window: int = 7
    image: int = 224
    patch: int = 4
    width: int = 0
    depths: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()
    mlp_ratio: float = 4.
    out_dim: int = 0
    out_bias: bool = True
    activation: str = 'gelu'
    norm_eps: float = 1e-5
    dropout: float = 0.
    drop_path: float = 0.
    mean: tuple[float, ...] = (.485, .456, .406)
    std: tuple[float, ...] = (.229, .224, .225)
    remat: str = transformer.KEPT
    dtype: str = 'bfloat16'

    def dims(self) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
        """(width of the first stage, blocks of each stage, heads of each stage)."""
        width, depths = choose(SIZES, self.size, 'size') if self.size else (0, ())
        width, depths = self.width or width, self.depths or depths
        if not (width and depths):
            raise RecipeError(f'size: give one of {", ".join(SIZES)}, or width and depths')
        return width, depths, self.heads or tuple(width * 2 ** i // HEAD for i in range(len(depths)))

    def check(self) -> None:
        """Raises RecipeError for impossible fields; needs no device."""
        width, depths, heads = self.dims()
        if any(depth < 2 or depth % 2 for depth in depths):
            raise RecipeError(f'depths: {depths} must be even, as every second block has shifted windows')
        if len(heads) != len(depths) or any(n < 1 or width * 2 ** i % n for i, n in enumerate(heads)):
            raise RecipeError(f'heads: {heads} must be one number per stage that divides {[width * 2 ** i for i in range(len(depths))]}')
        if self.window < 2:
            raise RecipeError(f'window: found {self.window}; valid: a side of 2 tokens or more')
        if self.patch < 1 or self.image < self.patch or self.image % self.patch:
            raise RecipeError(f'image: a side of {self.image} is not a multiple of the patch side {self.patch}')
        if len(self.mean) != len(self.std) or 0. in self.std:
            raise RecipeError(f'std: {self.std} must be one number other than 0 per colour of mean, {self.mean}')
        choose(ACTIVATIONS, self.activation, 'activation')
        choose(dict.fromkeys(('bfloat16', 'float16', 'float32', 'float64')), self.dtype, 'dtype')
        remat_policy(self.remat)
        for field in ('dropout', 'drop_path'):
            if not 0. <= getattr(self, field) < 1.:
                raise RecipeError(f'{field}: {getattr(self, field)} is not in [0, 1)')

    def example(self) -> tuple[tuple[int, ...], str]:
        """(shape, dtype) of one input, for compiling without data."""
        return (self.image, self.image, len(self.mean)), 'uint8'

    @nn.compact
    def __call__(self, image_BHWC, *, mask=None, keys_B=None, train=False, layers=()):
        self.check()
        width, depths, heads = self.dims()
        dtype = jnp.dtype(self.dtype)
        keys_B = keys_B if train else None
        x_BHWC = dropout(self.embed(image_BHWC, width, dtype), self.dropout, keys_B, EMBED_PLACE)
        stages = []
        for i, depth in enumerate(depths):
            block = functools.partial(
                Block, heads[i], self.window, hidden=round(width * 2 ** i * self.mlp_ratio), activation=self.activation,
                norm_eps=self.norm_eps, dropout=self.dropout, drop_path=self.drop_path, last=sum(depths) - 1, dtype=dtype)
            x_BHWC = Stage(block, depth, sum(depths[:i]), self.remat, dtype, name=f'stage{i}')(x_BHWC, keys_B)
            stages.append(x_BHWC)
            if i + 1 < len(depths):
                x_BHWC = used(Merge, self, f'merge{i}', dtype)(self.norm_eps, dtype, name=f'merge{i}')(x_BHWC)
        x_BHWC = nn.LayerNorm(epsilon=self.norm_eps, dtype=dtype, name='norm')(x_BHWC)
        pooled_BD = x_BHWC.astype(jnp.float32).mean(axis=(1, 2)).astype(dtype)
        features_BD = pooled_BD
        if self.out_dim:
            pooled_BD = used(nn.Dense, self, 'out', dtype)(self.out_dim, self.out_bias, dtype, kernel_init=_init, name='out')(pooled_BD)
        return Encoded(pooled_BD, _tokens(x_BHWC), None, {i: _tokens(_layer(stages, i)) for i in layers}, features_BD)

    def embed(self, image_BHWC, width: int, dtype):
        """Normalised pixels, cut into patches (a strided convolution written as one matrix product), and their norm."""
        if jnp.issubdtype(image_BHWC.dtype, jnp.integer):
            image_BHWC = image_BHWC.astype(jnp.float32) / 255.
        image_BHWC = (image_BHWC - jnp.asarray(self.mean, jnp.float32)) / jnp.asarray(self.std, jnp.float32)
        sides = image_BHWC.shape[1:3]
        if any(side % self.patch for side in sides):
            raise RecipeError(f'image: images of {sides[0]}×{sides[1]} are not cut evenly by patches of {self.patch}')
        patches_BHWP = rearrange(image_BHWC, 'b (h p) (w q) k -> b h w (p q k)', p=self.patch, q=self.patch)
        x_BHWC = used(nn.Dense, self, 'patch_embed', dtype)(width, dtype=dtype, kernel_init=_init, name='patch_embed')(
            patches_BHWP.astype(dtype))
        return nn.LayerNorm(epsilon=self.norm_eps, dtype=dtype, name='patch_norm')(x_BHWC)


def _tokens(x_BHWC):
    return rearrange(x_BHWC, 'b h w c -> b (h w) c')


def _layer(stages, i: int):
    if not -len(stages) <= i < len(stages):
        raise RecipeError(f'layers: there is no stage {i} among {len(stages)}')
    return stages[i]
