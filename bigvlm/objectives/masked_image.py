"""Masked image modelling: codes of the masked patches (BEiT, arXiv 2106.08254; FLAVA, 2112.04482) or their pixels (SimMIM, 2111.09886).

Shapes: B batch, L patches, K patches that are predicted, W token width, V codes, D numbers of a patch.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import linen as nn

from bigvlm.core import paths
from bigvlm.core.parts import RecipeError
from bigvlm.nn import patches
from bigvlm.nn.transformer import used


class Target(NamedTuple):
    """What is predicted of a patch: numbers per patch, and the error of each prediction, float32 [B, K] (with what else is told)."""
    size: Callable[['MaskedImage'], int]
    wanted: Callable[['MaskedImage', Mapping, jax.Array], jax.Array]      # of (objective, batch, image) -> [B, L, …]
    error: Callable[['MaskedImage', jax.Array, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


def _code_error(objective, logit_BKV, code_BK):
    logit_BKV = logit_BKV.astype(jnp.promote_types(logit_BKV.dtype, jnp.float32))
    right_BK = jnp.take_along_axis(logit_BKV, code_BK[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logit_BKV, axis=-1) - right_BK, {'right': jnp.argmax(logit_BKV, axis=-1) == code_BK}


def _pixel_error(objective, predicted_BKD, pixel_BKD):
    return NORMS[objective.norm](predicted_BKD.astype(jnp.float32) - pixel_BKD).mean(axis=-1), {}


NORMS = {'l1': jnp.abs, 'l2': jnp.square}
TARGETS = {
    'codes': Target(lambda objective: objective.vocab,
                    lambda objective, batch, image_BHWC: paths.look_up(batch, objective.codes), _code_error),
    'pixels': Target(lambda objective: objective.patch ** 2 * len(objective.mean),
                     lambda objective, batch, image_BHWC: objective.pixels(image_BHWC), _pixel_error)}


class MaskedImage(nn.Module):
    """Predicts the patches that a tower did not see, of which it saw a learned mask token instead.

    ``image`` and ``mask`` (bool [B, L]: the masked patches) are batch keys; ``image_tower`` is the key's name if not given, and takes
    ``masked=`` (ViT: ``mask_token=True``). The loss is the mean over all masked patches of the global batch.

    Fields:
        target: 'codes', cross-entropy with the int32 [B, L] at ``codes``, of ``vocab`` (a codebook's, or codes made beforehand); or
            'pixels', the mean error (``norm``: 'l1' or 'l2') of a patch's pixels, scaled by ``mean`` and ``std`` and, if
            ``normalize``, by each patch's own mean and spread, so that an error of 'l2' is 1 where only 0 is predicted.
        patch: the side of a patch, for pixels; for codes only to draw them.
        count: how many patches are masked, if all masks have as many (``block_patch_mask``'s count): the head then runs on these
            alone. 0: on all, whatever the masks are. Masked patches beyond ``count`` would not be predicted.
        transform: whether a dense layer, GELU and a norm (of ``norm_eps``) come before the last layer (FLAVA's head) or not (BEiT's,
            SimMIM's).
        grid: rows and columns of patches, for compiling without data.
    """
    image: str = 'image'
    image_tower: str = ''
    mask: str = 'patch_mask'
    target: str = 'codes'
    codes: str = 'patch_codes'
    vocab: int = 8192
    patch: int = 16
    norm: str = 'l1'
    normalize: bool = False
    mean: tuple[float, ...] = (.5, .5, .5)
    std: tuple[float, ...] = (.5, .5, .5)
    count: int = 0
    transform: bool = False
    norm_eps: float = 1e-5
    grid: tuple[int, int] = (14, 14)
    weight: float = 1.
    kinds: tuple[str, ...] = ('images',)

    def __post_init__(self):
        for field, valid in (('target', TARGETS), ('norm', NORMS)):
            if getattr(self, field) not in valid:
                raise RecipeError(f'{field}: found {getattr(self, field)!r}; valid: {", ".join(valid)}')
        for field, least in (('vocab', 2), ('count', 0)):
            if not isinstance(getattr(self, field), int) or getattr(self, field) < least:
                raise RecipeError(f'{field}: found {getattr(self, field)!r}; valid: a whole number from {least}')
        patches.check(self.patch, self.mean, self.std)
        super().__post_init__()

    def example(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """What is read besides images."""
        length = self.grid[0] * self.grid[1]
        return {self.mask: ((length,), 'bool')} | ({self.codes: ((length,), 'int32')} if self.target == 'codes' else {})

    def features(self, encode: Callable, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Per example: ``error_B``, summed over its masked patches, ``count_B`` of them, and for codes ``right_B`` of them."""
        mask_BL = paths.look_up(batch, self.mask)
        index_BK = self._predicted(mask_BL)
        predicted_BKV = self.predict(encode, index_BK, mask_BL.shape[1])
        target = TARGETS[self.target]
        wanted_BL = target.wanted(self, batch, paths.look_up(batch, self.image))
        if wanted_BL.shape[1] != mask_BL.shape[1]:
            raise RecipeError(f'{self.target}: found {wanted_BL.shape[1]} patches; valid: as many as {self.mask} has, {mask_BL.shape[1]}')
        error_BK, told = target.error(self, predicted_BKV, _take(wanted_BL, index_BK))
        counts_BK = _take(mask_BL, index_BK)
        def total(x_BK):
            return jnp.where(counts_BK, x_BK.astype(jnp.float32), 0.).sum(axis=1)
        return {'error_B': total(error_BK), 'count_B': counts_BK.astype(jnp.float32).sum(axis=1),
                **{f'{name}_B': total(value_BK) for name, value_BK in told.items()}}

    def loss(self, features: Mapping[str, jax.Array], features2=None, teacher=None) -> tuple[jax.Array, dict]:
        """Mean error of the global batch's masked patches; ``accuracy`` (codes) or ``error`` (pixels), ``masked`` patches of an
        image, and ``loss_B``, each example's share, whose mean is the loss."""
        return masked_mean(features)

    def reconstruct(self, encode: Callable, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """For figures: ``masked_BL``, and ``codes_BL`` (int32, the likeliest of each patch) or ``image_BHWC`` in [0, 1], the image
        with its masked patches as predicted (normalised ones scaled back by the true patch's own mean and spread)."""
        mask_BL, image_BHWC = paths.look_up(batch, self.mask), paths.look_up(batch, self.image)
        every_BL = repeat(jnp.arange(mask_BL.shape[1], dtype=jnp.int32), 'l -> b l', b=len(mask_BL))
        predicted_BLV = self.predict(encode, every_BL, mask_BL.shape[1])
        if self.target == 'codes':
            return {'masked_BL': mask_BL, 'codes_BL': jnp.argmax(predicted_BLV, axis=-1).astype(jnp.int32)}
        true_BLD = patches.cut(image_BHWC, self.patch, self.mean, self.std)
        return {'masked_BL': mask_BL, 'image_BHWC': pasted(true_BLD, predicted_BLV, mask_BL, image_BHWC, self)}

    @nn.compact
    def predict(self, encode: Callable, index_BK: jax.Array, length: int) -> jax.Array:
        """[B, K, V] of the patches ``index_BK`` of the tower's last ``length`` tokens (before them may be a class token)."""
        tokens_BLW = encode(self.image_tower or self.image, self.image, masked=self.mask).tokens_BLD
        if tokens_BLW.shape[1] < length:
            raise RecipeError(f'mask: found {length} patches in {self.mask!r}; valid: as many as the tower has, {tokens_BLW.shape[1]}')
        x_BKW = _take(tokens_BLW[:, tokens_BLW.shape[1] - length:], index_BK)
        dtype = x_BKW.dtype
        if self.transform:
            x_BKW = used(nn.Dense, self, 'transform', dtype)(x_BKW.shape[-1], dtype=dtype, name='transform')(x_BKW)
            x_BKW = nn.LayerNorm(epsilon=self.norm_eps, dtype=dtype, name='norm')(nn.gelu(x_BKW, approximate=False))
        return used(nn.Dense, self, 'head', dtype)(TARGETS[self.target].size(self), dtype=dtype, name='head')(x_BKW)

    def pixels(self, image_BHWC: jax.Array) -> jax.Array:
        """What is to be predicted of each patch, float32 [B, L, D]."""
        patch_BLD = patches.cut(image_BHWC, self.patch, self.mean, self.std)
        if not self.normalize:
            return patch_BLD
        mean_BL1, spread_BL1 = patches.statistics(patch_BLD)
        return (patch_BLD - mean_BL1) / spread_BL1

    def _predicted(self, mask_BL: jax.Array) -> jax.Array:
        """int32 [B, K]: the masked patches in order, then, where there are fewer, others, which do not count."""
        length = mask_BL.shape[1]
        if self.count > length:
            raise RecipeError(f'count: found {self.count}; valid: at most the {length} patches of {self.mask!r}')
        return jnp.argsort(~mask_BL, axis=1, stable=True)[:, :self.count or length].astype(jnp.int32)


def masked_mean(features: Mapping[str, jax.Array]) -> tuple[jax.Array, dict]:
    """Σ error / Σ count over the global batch, and its metrics. Without a masked patch it is 0."""
    error_B, count_B = features['error_B'], features['count_B']
    total = jnp.maximum(count_B.sum(), 1.)
    loss = error_B.sum() / total
    metrics = {'masked': count_B.mean(), 'loss_B': error_B * (len(error_B) / total)}
    return loss, metrics | ({'accuracy': features['right_B'].sum() / total} if 'right_B' in features else {'error': loss})


def pasted(true_BLD: jax.Array, predicted_BLD: jax.Array, masked_BL: jax.Array, image_BHWC: jax.Array, fields) -> jax.Array:
    """Images [B, H, W, C] in [0, 1] whose masked patches are predicted ones; ``fields`` has patch, mean, std and normalize."""
    predicted_BLD = predicted_BLD.astype(jnp.float32)
    if fields.normalize:
        mean_BL1, spread_BL1 = patches.statistics(true_BLD)
        predicted_BLD = predicted_BLD * spread_BL1 + mean_BL1
    shown_BLD = jnp.where(masked_BL[..., None], predicted_BLD, true_BLD)
    shown_BHWC = patches.paste(shown_BLD, image_BHWC.shape[1] // fields.patch, fields.patch, fields.mean, fields.std)
    return jnp.clip(shown_BHWC, 0., 1.)


def _take(x_BL, index_BK):
    """``x_BL`` [B, L, …] at ``index_BK`` -> [B, K, …]."""
    return jnp.take_along_axis(x_BL, rearrange(index_BK, f'b k -> b k {"1 " * (x_BL.ndim - 2)}'), axis=1)
