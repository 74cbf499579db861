"""Sigmoid contrast between images and texts (SigLIP): every pair is a binary decision of its own."""

import math
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigvlm.core import pairwise
from bigvlm.objectives import dual_encoder


class Sigmoid(nn.Module):
    """-1/B Σ log σ(±(exp(t)·cosine + b)) over all pairs of the global batch (arXiv 2303.15343).

    ``image`` and ``text`` are batch keys, and the towers' names unless ``image_tower``, ``text_tower`` are given.
    ``temperature`` is the initial factor exp(t) (10 in the paper, not its inverse), ``bias`` the initial b: so negative
    that the many negatives weigh little at the start. Bounds on t are the recipe's ``clamp`` rule's, after each update.
    ``target`` says which pairs are positives: ``identity``; ``labels``: those of equal ``label`` >= 0; ``captions``:
    those of equal token ids. ``exchange``, ``tile``, ``dtype``, ``wire`` are as in ``pairwise.sigmoid``.
    """
    image: str = 'image'
    text: str = 'text'
    image_tower: str = ''
    text_tower: str = ''
    weight: float = 1.
    temperature: float = 10.
    bias: float = -10.
    target: str = 'identity'
    exchange: str = 'auto'
    tile: int = 1024
    dtype: str | None = None
    wire: str | None = None
    kinds: tuple[str, ...] = ('pairs',)

    def __post_init__(self):
        dual_encoder.check(self.target, self.temperature, self.exchange, self.tile, self.dtype, self.wire)
        super().__post_init__()

    def setup(self):
        self.t = self.param('t', lambda key: jnp.float32(math.log(self.temperature)))
        self.b = self.param('b', lambda key: jnp.float32(self.bias))

    def _sources(self) -> tuple[tuple[str, str], tuple[str, str]]:
        return (self.image_tower or self.image, self.image), (self.text_tower or self.text, self.text)

    def features(self, encode: Callable, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Per example: unit embeddings ``image_BD``, ``text_BD`` perhaps ``side_B``; RecipeError for a missing key."""
        return dual_encoder.features(encode, batch, *self._sources(), self.target)

    def loss(self, features: Mapping[str, jax.Array], features2=None, teacher=None) -> tuple[jax.Array, dict]:
        """Of the global batch's features: a scalar; ``scale``, ``bias``, the mean logits ``positive``, ``negative``, and
        ``loss_B`` per example."""
        side = features.get('side_B')
        scale = jnp.exp(self.t)
        loss, metrics = pairwise.sigmoid(
            features['image_BD'], features['text_BD'], scale, self.b,
            target=dual_encoder.POSITIVES[self.target].target, rows_side=side, cols_side=side, exchange=self.exchange,
            tile=self.tile, dtype=self.dtype, wire=self.wire)
        return loss, metrics | jax.lax.stop_gradient({'scale': scale, 'bias': self.b})

    def embed(self, encode: Callable, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Unit embeddings of whichever of image and text the batch has."""
        return dual_encoder.embed(encode, batch, *self._sources())

    def score(self, image_MD: jax.Array, text_ND: jax.Array) -> jax.Array:
        """Cosine similarities [M, N]."""
        return dual_encoder.score(image_MD, text_ND)
