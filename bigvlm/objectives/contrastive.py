"""Softmax contrast between images and texts: InfoNCE (CLIP, ALIGN), and UniCL with ``target='labels'``."""

import math
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigvlm.core import pairwise
from bigvlm.objectives import dual_encoder


class Contrastive(nn.Module):
    """Symmetric cross-entropy over the global batch of exp(t)·cosine (arXiv 2103.00020).

    ``image`` and ``text`` are batch keys, and the towers' names unless ``image_tower``, ``text_tower`` are given.
    ``temperature`` is the initial τ of softmax(cosine / τ), t = log(1/τ); ``learned=False`` keeps it (no parameter).
    The upper bound of the scale (100 in CLIP) is not applied here but to the parameter after each update, by the
    recipe's ``clamp`` rule, as open_clip, SLIP and FLAVA do.
    ``target`` says which pairs are positives: ``identity``; ``labels``: those of equal ``label`` >= 0; ``captions``:
    those of equal token ids. ``smoothing``, ``exchange``, ``tile``, ``dtype``, ``wire`` are as in ``pairwise.softmax``.
    """
    image: str = 'image'
    text: str = 'text'
    image_tower: str = ''
    text_tower: str = ''
    weight: float = 1.
    temperature: float = .07
    learned: bool = True
    target: str = 'identity'
    smoothing: float = 0.
    exchange: str = 'auto'
    tile: int = 1024
    dtype: str | None = None
    wire: str | None = None
    kinds: tuple[str, ...] = ('pairs',)

    def __post_init__(self):
        dual_encoder.check(self.target, self.temperature, self.exchange, self.tile, self.dtype, self.wire)
        pairwise.check_smoothing(self.smoothing)
        super().__post_init__()

    def setup(self):
        t = jnp.float32(-math.log(self.temperature))
        self.t = self.param('t', lambda key: t) if self.learned else t

    def _sources(self) -> tuple[tuple[str, str], tuple[str, str]]:
        return (self.image_tower or self.image, self.image), (self.text_tower or self.text, self.text)

    def features(self, encode: Callable, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Per example: unit embeddings ``image_BD``, ``text_BD`` perhaps ``side_B``; RecipeError for a missing key."""
        return dual_encoder.features(encode, batch, *self._sources(), self.target)

    def loss(self, features: Mapping[str, jax.Array], features2=None, teacher=None) -> tuple[jax.Array, dict]:
        """Of the global batch's features: a scalar; ``scale``, ``accuracy``, and ``loss_B`` per example."""
        side = features.get('side_B')
        scale = jnp.exp(self.t)
        loss, metrics = pairwise.softmax(
            features['image_BD'], features['text_BD'], scale, target=dual_encoder.POSITIVES[self.target].target,
            rows_side=side, cols_side=side, smoothing=self.smoothing, exchange=self.exchange, tile=self.tile,
            dtype=self.dtype, wire=self.wire)
        return loss, metrics | {'scale': jax.lax.stop_gradient(scale)}

    def embed(self, encode: Callable, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Unit embeddings of whichever of image and text the batch has."""
        return dual_encoder.embed(encode, batch, *self._sources())

    def score(self, image_MD: jax.Array, text_ND: jax.Array) -> jax.Array:
        """Cosine similarities [M, N]."""
        return dual_encoder.score(image_MD, text_ND)
