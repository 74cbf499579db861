"""CLOOB: retrieval from Hopfield networks of the batch, then leave-one-out contrast (arXiv 2110.11316).

Shapes: B batch, S states, D width, M images and N texts to score.
"""

import math
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigvlm.core import others, retrieval
from bigvlm.core.parts import RecipeError
from bigvlm.objectives import dual_encoder


class Loob(nn.Module):
    """τ · Σ over both directions of mean_i [ -k_ii + log Σ_{j≠i} exp(k_ij) ], k = x·y / τ: InfoLOOB after Hopfield retrieval.

    The positive is not among the exponentials, so that the loss is not bounded below by 0. With images u and texts v of the
    global batch, each direction compares what both retrieve from one store (as the paper's released code does):
    images stored: x = Hop(state u), y = Hop(state v); texts stored: x = Hop(state v), y = Hop(state u), where Hop(s) =
    Σ_j softmax_j(``hopfield`` · s·m_j) m_j over stored patterns m, scaled to unit length. ``hopfield=0.`` leaves retrieval
    out: InfoLOOB alone, of (u, v) and (v, u).

    ``image`` and ``text`` are batch keys, and the towers' names unless ``image_tower``, ``text_tower`` are given.
    ``temperature`` is τ (paper: 1/30, fixed); ``learned``: whether t = log(1/τ) is a parameter. ``exchange``, ``tile``,
    ``dtype``, ``wire`` are as in ``pairwise.softmax``. Evaluation compares plain embeddings, without retrieval.
    """
    image: str = 'image'
    text: str = 'text'
    image_tower: str = ''
    text_tower: str = ''
    weight: float = 1.
    temperature: float = 1 / 30
    learned: bool = False
    hopfield: float = 8.
    exchange: str = 'auto'
    tile: int = 1024
    dtype: str | None = None
    wire: str | None = None
    kinds: tuple[str, ...] = ('pairs',)

    def __post_init__(self):
        dual_encoder.check('identity', self.temperature, self.exchange, self.tile, self.dtype, self.wire)
        if not self.hopfield >= 0.:
            raise RecipeError(f'hopfield: found {self.hopfield}; valid: a number of at least 0 (0: no retrieval)')
        super().__post_init__()

    def setup(self):
        t = jnp.float32(-math.log(self.temperature))
        self.t = self.param('t', lambda key: t) if self.learned else t

    def _sources(self) -> tuple[tuple[str, str], tuple[str, str]]:
        return (self.image_tower or self.image, self.image), (self.text_tower or self.text, self.text)

    def features(self, encode: Callable, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Per example: unit embeddings ``image_BD``, ``text_BD``; RecipeError for a missing key."""
        return dual_encoder.features(encode, batch, *self._sources(), 'identity')

    def loss(self, features: Mapping[str, jax.Array], features2=None, teacher=None) -> tuple[jax.Array, dict]:
        """Of the global batch's features, at least 2 examples: a scalar; ``scale``, ``positive`` (mean x·y of pairs, both
        directions), and ``loss_B`` per example."""
        image_BD, text_BD = features['image_BD'], features['text_BD']
        options = dict(exchange=self.exchange, tile=self.tile, dtype=self.dtype, wire=self.wire)
        scale = jnp.exp(self.t).astype(jnp.promote_types(jnp.float32, image_BD.dtype))

        def direction(x_BD, y_BD):
            """(mean over examples of τ · (log-sum-exp of the others - k_ii), cosines of the pairs), each example's."""
            positive_B = jnp.einsum('bd,bd->b', x_BD, y_BD, precision=jax.lax.Precision.HIGHEST)
            negative_B = others.logsumexp_of_others(x_BD[:, None], y_BD[:, None], scale, **options)[:, 0]
            return negative_B / scale - positive_B, positive_B

        def retrieved(first_BD, second_BD, stored_BD):
            found_BSD = retrieval.retrieve(jnp.stack([first_BD, second_BD], axis=1), stored_BD, self.hopfield, **options)
            return dual_encoder.unit(found_BSD[:, 0]), dual_encoder.unit(found_BSD[:, 1])

        compared = (image_BD, text_BD), (text_BD, image_BD)
        if self.hopfield:
            compared = retrieved(image_BD, text_BD, image_BD), retrieved(text_BD, image_BD, text_BD)
        losses_B, positives_B = zip(*(direction(x_BD, y_BD) for x_BD, y_BD in compared))
        loss_B = sum(losses_B)
        metrics = {'scale': scale, 'positive': sum(positives_B).mean() / 2, 'loss_B': loss_B}
        return loss_B.mean(), jax.lax.stop_gradient(metrics)

    def embed(self, encode: Callable, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Unit embeddings of whichever of image and text the batch has."""
        return dual_encoder.embed(encode, batch, *self._sources())

    def score(self, image_MD: jax.Array, text_ND: jax.Array) -> jax.Array:
        """Cosine similarities [M, N]."""
        return dual_encoder.score(image_MD, text_ND)
