"""Masked autoencoding: a light decoder paints the patches that the encoder was not given (MAE, arXiv 2111.06377).

Shapes: B batch, L patches, K patches that the encoder is given, W token width, D numbers of a patch.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from einops import repeat
from flax import linen as nn

from bigvlm.core import paths
from bigvlm.core.parts import RecipeError
from bigvlm.nn import patches, positions, transformer
from bigvlm.nn.transformer import Transformer, used
from bigvlm.objectives.masked_image import masked_mean, pasted


class MaskedAutoencoder(nn.Module):
    """The mean squared error of the pixels of all patches of the global batch that are not in ``kept``.

    ``image`` and ``kept`` (int32 [B, K]: the patches that the encoder sees, as ``random_patch_mask(kept='kept')`` writes them) are
    batch keys; ``image_tower`` is the key's name if not given, and takes ``kept=``.

    Fields:
        patch: the side of a patch; ``mean``, ``std`` scale pixels in [0, 1], and ``normalize`` then each patch by its own mean and
            spread (MAE's better variant: with it an error of 1 is what predicting 0 gives).
        width, depth, heads, mlp_ratio: of the decoder; MAE's are the defaults. Its positions are fixed sines, as MAE's (in MoCo v3's
            frequencies); a class token, if the tower has one, goes through it without a position.
        remat, dtype, attention: as of towers. grid, ratio: rows and columns of patches and the share that is hidden, for compiling
            without data.
    """
    image: str = 'image'
    image_tower: str = ''
    kept: str = 'kept'
    patch: int = 16
    normalize: bool = True
    mean: tuple[float, ...] = (.485, .456, .406)
    std: tuple[float, ...] = (.229, .224, .225)
    width: int = 512
    depth: int = 8
    heads: int = 16
    mlp_ratio: float = 4.
    remat: str = transformer.KEPT
    dtype: str = 'bfloat16'
    attention: str = 'auto'
    grid: tuple[int, int] = (14, 14)
    ratio: float = .75
    weight: float = 1.
    kinds: tuple[str, ...] = ('images',)

    def __post_init__(self):
        patches.check(self.patch, self.mean, self.std)
        positions.check_sincos2d(self.width)
        if self.depth < 1 or self.heads < 1 or self.width % self.heads:
            raise RecipeError(f'heads: found {self.heads} of width {self.width}, depth {self.depth}; valid: heads that divide the width, '
                              'depth from 1')
        super().__post_init__()

    def example(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """What is read besides images."""
        length = self.grid[0] * self.grid[1]
        return {self.kept: ((length - round(self.ratio * length),), 'int32')}

    def features(self, encode: Callable, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Per example: ``error_B``, the squared errors' means summed over its hidden patches, and ``count_B`` of them."""
        true_BLD, predicted_BLD, hidden_BL = self._painted(encode, batch)
        if self.normalize:
            mean_BL1, spread_BL1 = patches.statistics(true_BLD)
            true_BLD = (true_BLD - mean_BL1) / spread_BL1
        error_BL = jnp.square(predicted_BLD.astype(jnp.float32) - true_BLD).mean(axis=-1)
        return {'error_B': jnp.where(hidden_BL, error_BL, 0.).sum(axis=1), 'count_B': hidden_BL.astype(jnp.float32).sum(axis=1)}

    def loss(self, features: Mapping[str, jax.Array], features2=None, teacher=None) -> tuple[jax.Array, dict]:
        """Mean error of the global batch's hidden patches; ``error``, the same, ``masked`` patches of an image, and ``loss_B``."""
        return masked_mean(features)

    def reconstruct(self, encode: Callable, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """For figures: ``masked_BL`` and ``image_BHWC`` in [0, 1], the image with its hidden patches as predicted (normalised ones
        scaled back by the true patch's own mean and spread)."""
        true_BLD, predicted_BLD, hidden_BL = self._painted(encode, batch)
        image_BHWC = paths.look_up(batch, self.image)
        return {'masked_BL': hidden_BL, 'image_BHWC': pasted(true_BLD, predicted_BLD, hidden_BL, image_BHWC, self)}

    def _painted(self, encode: Callable, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(true patches [B, L, D], predicted ones, which are hidden [B, L])."""
        image_BHWC, kept_BK = paths.look_up(batch, self.image), paths.look_up(batch, self.kept)
        true_BLD = patches.cut(image_BHWC, self.patch, self.mean, self.std)
        grid = image_BHWC.shape[1] // self.patch, image_BHWC.shape[2] // self.patch
        if kept_BK.shape[1] > grid[0] * grid[1]:
            raise RecipeError(f'kept: found {kept_BK.shape[1]} patches; valid: at most the {grid[0] * grid[1]} of the image')
        return true_BLD, self.decode(encode, kept_BK, grid), patches.hidden(kept_BK, grid[0] * grid[1])

    @nn.compact
    def decode(self, encode: Callable, kept_BK: jax.Array, grid: tuple[int, int]) -> jax.Array:
        """[B, L, D] from the tokens of the patches ``kept_BK``; mask tokens stand where there are none."""
        dtype, length = jnp.dtype(self.dtype), grid[0] * grid[1]
        tokens_BKW = encode(self.image_tower or self.image, self.image, kept=self.kept).tokens_BLD
        extra = tokens_BKW.shape[1] - kept_BK.shape[1]
        if extra < 0:
            raise RecipeError(f'kept: found {kept_BK.shape[1]} patches but {tokens_BKW.shape[1]} tokens; valid: a tower that takes kept=')
        embed = used(nn.Dense, self, 'embed', dtype)
        x_BKW = embed(self.width, dtype=dtype, kernel_init=nn.initializers.xavier_uniform(), name='embed')(tokens_BKW.astype(dtype))
        token_W = self.param('mask_token', nn.initializers.normal(.02), (self.width,)).astype(dtype)
        x_BLW = patches.put(x_BKW[:, extra:], kept_BK, repeat(token_W, 'w -> b l w', b=len(kept_BK), l=length))
        x_BLW = x_BLW + positions.sincos2d(grid, self.width).astype(dtype)
        x_BLW = jnp.concatenate([x_BKW[:, :extra], x_BLW], axis=1)
        x_BLW, _ = Transformer(self.depth, self.heads, mlp_ratio=self.mlp_ratio, remat=self.remat, dtype=dtype,
                               implementation=self.attention, name='decoder')(x_BLW)
        head = used(nn.Dense, self, 'head', dtype)
        size = self.patch ** 2 * len(self.mean)
        return head(size, dtype=dtype, kernel_init=nn.initializers.xavier_uniform(), name='head')(x_BLW[:, extra:])
