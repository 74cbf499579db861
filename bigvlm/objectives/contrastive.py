"""Softmax contrast between images and texts: InfoNCE (CLIP, ALIGN), and UniCL with ``target='labels'``."""

import functools
import math
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigvlm.core import pairwise
from bigvlm.core.parts import RecipeError
from bigvlm.nn import queue
from bigvlm.nn.noise import Noise
from bigvlm.objectives import dual_encoder


class Contrastive(nn.Module):
    """Symmetric cross-entropy over the global batch of exp(t)·cosine (arXiv 2103.00020).

    ``image`` and ``text`` are batch keys, and the towers' names unless ``image_tower``, ``text_tower`` are given.
    ``temperature`` is the initial τ of softmax(cosine / τ), t = log(1/τ); ``learned=False`` keeps it (no parameter).
    The upper bound of the scale (100 in CLIP) is not applied here but to the parameter after each update, by the
    recipe's ``clamp`` rule, as open_clip, SLIP and FLAVA do.
    ``target`` says which pairs are positives: ``identity``; ``labels``: those of equal ``label`` >= 0; ``captions``:
    those of equal token ids. ``smoothing``, ``exchange``, ``tile``, ``dtype``, ``wire`` are as in ``pairwise.softmax``.

    ``queue``: each also looks among so many embeddings of the other kind from earlier batches, which get no gradient (0: none);
    negatives, unless ``target`` finds them positive. ``noise``: the smoothing of a pair that is noise for certain, from where it
    falls to ``smoothing`` by the probability that its loss is of the higher of two normal distributions, fitted to the last
    ``history`` losses (``nn/noise``; NLIP, arXiv 2212.07086); 0 is off. Both numbers of examples must be multiples of the
    recipe's global batch, ``batch``.
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
    queue: int = 0
    noise: float = 0.
    history: int = 0
    batch: int = 0
    exchange: str = 'auto'
    tile: int = 1024
    dtype: str | None = None
    wire: str | None = None
    kinds: tuple[str, ...] = ('pairs',)

    def __post_init__(self):
        dual_encoder.check(self.target, self.temperature, self.exchange, self.tile, self.dtype, self.wire)
        pairwise.check_smoothing(self.smoothing)
        if self.noise and not self.smoothing < self.noise < 1.:
            raise RecipeError(f'noise: found {self.noise}; valid: 0, or above the smoothing {self.smoothing} and below 1')
        for field in ('queue',) * (self.queue != 0) + ('history',) * (self.noise != 0):
            queue.check(getattr(self, field), self.batch, field)
        super().__post_init__()

    def setup(self):
        t = jnp.float32(-math.log(self.temperature))
        self.t = self.param('t', lambda key: t) if self.learned else t
        if self.queue:
            self.earlier = queue.Queue(self.queue, self.batch)
        if self.noise:
            self.suspicion = Noise(self.history, self.batch)

    def _sources(self) -> tuple[tuple[str, str], tuple[str, str]]:
        return (self.image_tower or self.image, self.image), (self.text_tower or self.text, self.text)

    def features(self, encode: Callable, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Per example: unit embeddings ``image_BD``, ``text_BD`` perhaps ``side_B``; RecipeError for a missing key."""
        return dual_encoder.features(encode, batch, *self._sources(), self.target)

    def loss(self, features: Mapping[str, jax.Array], features2=None, teacher=None) -> tuple[jax.Array, dict]:
        """Of the global batch's features: a scalar; ``scale``, ``accuracy``, and ``loss_B`` per example; with a queue ``filled``,
        the share of it in use; with ``noise`` the mean probability of that, and ``noise_B`` per example."""
        image_BD, text_BD, side, scale = features['image_BD'], features['text_BD'], features.get('side_B'), jnp.exp(self.t)
        further, seen = self._further(features) if self.queue else ({}, {})
        contrast = functools.partial(
            pairwise.softmax, target=dual_encoder.POSITIVES[self.target].target, rows_side=side, cols_side=side,
            exchange=self.exchange, tile=self.tile, dtype=self.dtype, wire=self.wire, **further)
        smoothing = self.smoothing
        if self.noise:
            _, plain = contrast(*jax.lax.stop_gradient((image_BD, text_BD, scale)))  # before noise has changed what a loss means
            noise_B = self.suspicion(plain['loss_B'])
            smoothing = self.smoothing + (self.noise - self.smoothing) * noise_B
            seen |= {'noise': noise_B.mean(), 'noise_B': noise_B}
        loss, metrics = contrast(image_BD, text_BD, scale, smoothing=smoothing)
        return loss, metrics | seen | {'scale': jax.lax.stop_gradient(scale)}

    def _further(self, features) -> tuple[dict[str, pairwise.Keys], dict[str, jax.Array]]:
        """What was pushed before, as keys for both directions, and how full the queue is; the batch is pushed."""
        old = self.earlier({name: features[name] for name in ('image_BD', 'text_BD', 'side_B') if name in features})
        image, text = (pairwise.Keys(old.arrays[name], old.arrays.get('side_B'), old.counts_QB) for name in ('image_BD', 'text_BD'))
        return dict(more_cols=text, more_rows=image), {'filled': old.filled}

    def embed(self, encode: Callable, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Unit embeddings of whichever of image and text the batch has."""
        return dual_encoder.embed(encode, batch, *self._sources())

    def score(self, image_MD: jax.Array, text_ND: jax.Array) -> jax.Array:
        """Cosine similarities [M, N]."""
        return dual_encoder.score(image_MD, text_ND)
