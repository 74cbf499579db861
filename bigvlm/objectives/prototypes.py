"""nCLIP: an image and its text should be assigned to the same prototypes, all of which are used; no negatives (arXiv 2210.09304).

Shapes: B batch, W a tower's width, K prototypes, N pieces of P examples, M images and N texts to score.
"""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from bigvlm.core import mesh, paths
from bigvlm.core.parts import RecipeError


class Head(nn.Module):
    """[·, W] -> float32 logits of the prototypes [·, K]; ``hidden`` 0: one dense layer, else a GELU layer of that width before."""
    prototypes: int
    hidden: int

    @nn.compact
    def __call__(self, x_PW):
        x_PW = x_PW.astype(jnp.promote_types(x_PW.dtype, jnp.float32))
        if self.hidden:
            x_PW = nn.gelu(nn.Dense(self.hidden, name='hidden')(x_PW))
        return nn.Dense(self.prototypes, use_bias=False, name='out')(x_PW)


class Prototypes(nn.Module):
    """mean_i ½[CE(p_i, q_i) + CE(q_i, p_i)] + ``sharpness`` · mean_i H(·_i) - ``smoothness`` · H(mean_i ·_i), the entropies H
    averaged over p and q; p and q are softmaxes over prototypes of an image and of its text, from a head for each.

    The three terms and K = 32,768 are the paper's. Its heads, weights and any stop-gradient were not at hand (no code is
    published): here heads are ``Head``, both p and q get gradients in both cross-entropies (``stop_gradient=True``: not as
    targets), and the weights are such that a uniform start is not drawn to one point: to second order, an equal shift of all
    distributions gains 1 + ``sharpness`` from the first terms and loses ``smoothness`` by the last. xCLIP is this objective
    beside ``contrastive`` in one recipe.

    Assignments are made in ``pieces``, anew in the backward pass: seven arrays of 4·K·B/``pieces`` bytes at a time (K = 32,768,
    B = 4,096: 512 MiB each in one piece, 32 MiB in 16), split over the batch's shards; heads run in ``loss``.

    ``image`` and ``text`` are batch keys, and the towers' names unless ``image_tower``, ``text_tower`` are given.
    """
    image: str = 'image'
    text: str = 'text'
    image_tower: str = ''
    text_tower: str = ''
    weight: float = 1.
    prototypes: int = 32768
    hidden: int = 4096
    temperature: float = 1.
    sharpness: float = 1.
    smoothness: float = 3.
    stop_gradient: bool = False
    pieces: int = 1
    kinds: tuple[str, ...] = ('pairs',)

    def __post_init__(self):
        for field, least in (('prototypes', 2), ('hidden', 0), ('pieces', 1)):
            if getattr(self, field) < least:
                raise RecipeError(f'{field}: found {getattr(self, field)}; valid: at least {least}')
        if not self.temperature > 0:
            raise RecipeError(f'temperature: found {self.temperature}; valid: a number above 0')
        super().__post_init__()

    def setup(self):
        self.image_head, self.text_head = Head(self.prototypes, self.hidden), Head(self.prototypes, self.hidden)

    def _sources(self) -> dict[str, tuple[str, str]]:
        return {'image_BW': (self.image_tower or self.image, self.image), 'text_BW': (self.text_tower or self.text, self.text)}

    def features(self, encode: Callable, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Per example: the towers' vectors ``image_BW``, ``text_BW``; RecipeError for a missing key."""
        for _, key in self._sources().values():
            paths.look_up(batch, key)
        return {name: encode(*source).pooled_BD for name, source in self._sources().items()}

    def loss(self, features: Mapping[str, jax.Array], features2=None, teacher=None) -> tuple[jax.Array, dict]:
        """Of the global batch's features: a scalar; ``agreement`` (how often both have the same first prototype), ``entropy``
        (mean of each example's, in nats), ``used`` (the exponential of the mean's entropy: prototypes in use, 1 to K), and
        ``loss_B`` per example, with its share of the last term."""
        image_BW, text_BW = features['image_BW'], features['text_BW']
        batch = len(image_BW)
        pieces = 1 if self.is_initializing() else self.pieces
        if batch % pieces:
            raise RecipeError(f'pieces: {pieces} do not divide {batch} examples; valid: a divisor')
        if self.is_initializing():
            self.image_head(image_BW), self.text_head(text_BW)
        (image_head, image_variables), (text_head, text_variables) = self.image_head.unbind(), self.text_head.unbind()

        @jax.checkpoint
        def of_piece(variables, image_PW, text_PW):
            p_PK, q_PK = (jax.nn.log_softmax(head.apply(v, x) / self.temperature) for head, v, x in
                          zip((image_head, text_head), variables, (image_PW, text_PW)))
            numbers = {'cross': .5 * (self._cross_entropy(p_PK, q_PK) + self._cross_entropy(q_PK, p_PK)),
                       'entropy': .5 * (_entropy(p_PK) + _entropy(q_PK)),
                       'agreement': (p_PK.argmax(-1) == q_PK.argmax(-1)).astype(p_PK.dtype)}
            return jnp.stack([jnp.exp(x_PK).sum(0) for x_PK in (p_PK, q_PK)]), numbers

        def add(sum_2K, piece):
            more_2K, numbers = of_piece((image_variables, text_variables), *piece)
            return sum_2K + more_2K, numbers

        wide = jnp.promote_types(jnp.float32, image_BW.dtype)
        # A piece takes every N-th example, so that each device keeps its own.
        cut = mesh.constrain_batch([rearrange(x, '(p n) w -> n p w', n=pieces) for x in (image_BW, text_BW)], leading=1)
        sum_2K, numbers = jax.lax.scan(add, jnp.zeros((2, self.prototypes), wide), cut)
        cross_B, entropy_B, agreement_B = (rearrange(numbers[k], 'n p -> (p n)') for k in ('cross', 'entropy', 'agreement'))
        spread = _entropy(jnp.log(jnp.maximum(sum_2K / batch, jnp.finfo(wide).tiny))).mean()
        loss_B = cross_B + self.sharpness * entropy_B - self.smoothness * spread
        metrics = {'agreement': agreement_B.mean(), 'entropy': entropy_B.mean(), 'used': jnp.exp(spread), 'loss_B': loss_B}
        return loss_B.mean(), jax.lax.stop_gradient(metrics)

    def _cross_entropy(self, target_PK: jax.Array, log_PK: jax.Array) -> jax.Array:
        """-Σ_k target_k log_k of log-probabilities, [P]."""
        if self.stop_gradient:
            target_PK = jax.lax.stop_gradient(target_PK)
        return -(jnp.exp(target_PK) * log_PK).sum(-1)

    def embed(self, encode: Callable, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Log-probabilities of the prototypes, float32 [B, K], of whichever of image and text the batch has; for probes what the
        image tower had before any projection, ``image_features_BD``."""
        heads, found = {'image_BW': self.image_head, 'text_BW': self.text_head}, {}
        for name, (tower, key) in self._sources().items():
            if paths.find(batch, key) is not None:
                encoded = encode(tower, key)
                found[name.replace('W', 'D')] = jax.nn.log_softmax(heads[name](encoded.pooled_BD) / self.temperature)
                if name == 'image_BW':
                    found['image_features_BD'] = encoded.pooled_BD if encoded.features_BD is None else encoded.features_BD
        return found

    def score(self, image_MD: jax.Array, text_ND: jax.Array) -> jax.Array:
        """-½[CE(p, q) + CE(q, p)] of each image and text, [M, N]; D are the prototypes."""
        def expected(log_a, log_b):
            return jnp.einsum('md,nd->mn', log_a, log_b, precision=jax.lax.Precision.HIGHEST)
        return .5 * (expected(jnp.exp(image_MD), text_ND) + expected(image_MD, jnp.exp(text_ND)))


def _entropy(log_PK: jax.Array) -> jax.Array:
    """Of distributions in logarithms, in nats [P]."""
    return -(jnp.exp(log_PK) * log_PK).sum(-1)
