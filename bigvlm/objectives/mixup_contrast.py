"""Contrast under coin-flip mixup (ZeroVL, arXiv 2112.09331): images are mixed with others, or texts' embeddings are.

Shapes: B batch, D width, H, W pixels.
"""

import math
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigvlm.core import pairwise, paths
from bigvlm.core.parts import RecipeError
from bigvlm.objectives import dual_encoder


class MixupContrast(nn.Module):
    """``contrastive`` where, step by step, either each image is mixed with its partner's, λ·own + (1-λ)·partner's, or each text's
    embedding is, before it is scaled to unit length; both are right to their shares. The partner is the example as far from the
    global batch's end as this one is from its beginning; λ is drawn from Beta(``alpha``, ``alpha``), and images are mixed with the
    chance ``images``. Nothing is mixed in evaluations. Images are mixed as they come from the data: those of ``augment`` cannot be.
    """
    image: str = 'image'
    text: str = 'text'
    image_tower: str = ''
    text_tower: str = ''
    weight: float = 1.
    temperature: float = .07
    learned: bool = True
    alpha: float = .1
    images: float = .5
    exchange: str = 'auto'
    tile: int = 1024
    dtype: str | None = None
    wire: str | None = None
    kinds: tuple[str, ...] = ('pairs',)

    def __post_init__(self):
        dual_encoder.check('identity', self.temperature, self.exchange, self.tile, self.dtype, self.wire)
        if not self.alpha > 0. or not 0. <= self.images <= 1.:
            raise RecipeError(f'alpha, images: found {self.alpha}, {self.images}; valid: alpha > 0, 0 <= images <= 1')
        super().__post_init__()

    def setup(self):
        t = jnp.float32(-math.log(self.temperature))
        self.t = self.param('t', lambda key: t) if self.learned else t

    def _sources(self) -> tuple[tuple[str, str], tuple[str, str]]:
        return (self.image_tower or self.image, self.image), (self.text_tower or self.text, self.text)

    def prepare(self, batch: Mapping[str, jax.Array], key: jax.Array) -> dict[str, jax.Array]:
        """The global batch with mixed images, float32 [B, H, W, 3] in [0, 1], and ``mixup`` [B, 2]: λ, and 1 where texts are mixed."""
        image_BHWC = paths.look_up(batch, self.image)
        if jnp.issubdtype(image_BHWC.dtype, jnp.integer):
            image_BHWC = image_BHWC.astype(jnp.float32) / 255.
        of_share, of_coin = jax.random.split(key)
        share = jax.random.beta(of_share, self.alpha, self.alpha, dtype=jnp.float32)
        mixes_images = jax.random.bernoulli(of_coin, self.images)
        own = jnp.where(mixes_images, share, 1.).astype(image_BHWC.dtype)
        drawn_2 = jnp.stack([share, (~mixes_images).astype(jnp.float32)])
        return {**batch, self.image: own * image_BHWC + (1 - own) * image_BHWC[::-1],
                'mixup': jnp.broadcast_to(drawn_2, (len(image_BHWC), 2))}

    def features(self, encode: Callable, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Per example: unit embeddings ``image_BD``, those of texts as the tower gives them, ``text_BD``, and what ``prepare`` drew,
        ``mixup_B2``."""
        found = dual_encoder.features(encode, batch, *self._sources(), 'identity')
        text_BD = encode(*self._sources()[1]).pooled_BD
        text_BD = text_BD.astype(jnp.promote_types(text_BD.dtype, jnp.float32))
        nothing_B2 = jnp.broadcast_to(jnp.array([1., 0.], jnp.float32), (len(text_BD), 2))
        return found | {'text_BD': text_BD, 'mixup_B2': batch['mixup'] if 'mixup' in batch else nothing_B2}

    def loss(self, features: Mapping[str, jax.Array], features2=None, teacher=None) -> tuple[jax.Array, dict]:
        """Of the global batch's features: a scalar; ``scale``, ``accuracy`` and ``loss_B`` per example."""
        text_BD, (share, mixes_texts), scale = features['text_BD'], features['mixup_B2'][0], jnp.exp(self.t)
        mixed_BD = share * text_BD + (1. - share) * text_BD[::-1]
        size = len(text_BD)
        side = pairwise.Mixed(partner=jnp.arange(size - 1, -1, -1, dtype=jnp.int32), share=jnp.broadcast_to(share, (size,)))
        text_BD = dual_encoder.unit(jnp.where(mixes_texts > 0, mixed_BD, text_BD))
        loss, metrics = pairwise.softmax(
            features['image_BD'], text_BD, scale, target=pairwise.mixed, rows_side=side,
            exchange=self.exchange, tile=self.tile, dtype=self.dtype, wire=self.wire)
        return loss, metrics | {'scale': jax.lax.stop_gradient(scale)}

    def embed(self, encode: Callable, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Unit embeddings of whichever of image and text the batch has."""
        return dual_encoder.embed(encode, batch, *self._sources())

    def score(self, image_MD: jax.Array, text_ND: jax.Array) -> jax.Array:
        """Cosine similarities [M, N]."""
        return dual_encoder.score(image_MD, text_ND)
