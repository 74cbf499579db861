"""UniCLIP: all views of images and texts in one space, every pair of one example a positive (arXiv 2209.13430).

Shapes: B batch, W a tower's width, P numbers that describe an augmentation, I image and T text views, V = I + T, D width, M
images and N texts to score.
"""

import math
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigvlm.core import others, paths
from bigvlm.core.parts import RecipeError
from bigvlm.objectives import dual_encoder

TYPES = ('image_image', 'image_text', 'text_text')  # of pairs, in the order of t and b


class Head(nn.Module):
    """[B, W] and, if given, [B, P] -> unit [B, D]: an MLP with one GELU layer on both together; ``hidden`` 0: a dense layer."""
    dim: int
    hidden: int

    @nn.compact
    def __call__(self, x_BW, params_BP=None):
        x_BW = x_BW.astype(jnp.promote_types(x_BW.dtype, jnp.float32))
        if params_BP is not None:
            x_BW = jnp.concatenate([x_BW, params_BP.astype(x_BW.dtype)], axis=-1)
        if self.hidden:
            x_BW = nn.gelu(nn.Dense(self.hidden, name='hidden')(x_BW))
        return dual_encoder.unit(nn.Dense(self.dim, use_bias=False, name='out')(x_BW))


class AllPairs(nn.Module):
    """Σ over the three types of pairs of weight · mean of log(1 + exp(N_ia - s_ab(i, i))): MP-NCE over all ordered pairs a ≠ b
    of views of one example i.

    Each positive competes with the negatives alone, not with other positives: N_ia = log Σ exp(s_ac(i, j)) over all views c
    of all other examples j of the global batch. s_ac = (cosine - b) / τ with a temperature and an offset for each type: image
    and image, image and text, text and text, which have the weights ``image_image``, ``image_text``, ``text_text``. A type
    that no two views of an example make has no loss of its own (one text: no text_text); its negatives count nevertheless.

    Faithful to the paper: one space, the three types, the form of MP-NCE, that similarities differ by type, and a projection
    head that knows the augmentation while the tower does not. Not at hand were the similarities' exact form, the weights,
    initial temperatures and the head's shape: here all weights are 1, τ starts from ``temperature`` and b from 0 for all types,
    and ``Head`` is an MLP.

    ``images`` and ``texts`` are the batch keys of views. With ``params`` > 0 the images' head reads the float [B, P] under
    the view's key and '_params' ('views/0_params'), numbers that describe the view's augmentation, zeros meaning none;
    images to evaluate, under ``image``, have zeros. ``image_tower``, ``text_tower`` default to ``image``, ``text``.
    ``exchange``, ``tile``, ``dtype``, ``wire`` are as in ``pairwise.softmax``; a tile has V times fewer examples.
    """
    images: tuple[str, ...] = ('views/0', 'views/1')
    texts: tuple[str, ...] = ('text',)
    image: str = 'image'
    text: str = 'text'
    image_tower: str = ''
    text_tower: str = ''
    weight: float = 1.
    image_image: float = 1.
    image_text: float = 1.
    text_text: float = 1.
    temperature: float = .07
    params: int = 0
    dim: int = 512
    hidden: int = 2048
    exchange: str = 'auto'
    tile: int = 1024
    dtype: str | None = None
    wire: str | None = None
    kinds: tuple[str, ...] = ('pairs',)

    def __post_init__(self):
        dual_encoder.check('identity', self.temperature, self.exchange, self.tile, self.dtype, self.wire)
        if len(self.images) + len(self.texts) < 2:
            raise RecipeError(f'images: found {self.images} and texts {self.texts}; valid: at least two views together')
        for field, least in (('params', 0), ('dim', 1), ('hidden', 0)):
            if getattr(self, field) < least:
                raise RecipeError(f'{field}: found {getattr(self, field)}; valid: at least {least}')
        super().__post_init__()

    def setup(self):
        self.t = self.param('t', lambda key: jnp.full(len(TYPES), -math.log(self.temperature), jnp.float32))
        self.b = self.param('b', lambda key: jnp.zeros(len(TYPES), jnp.float32))
        self.image_head, self.text_head = Head(self.dim, self.hidden), Head(self.dim, 0)

    def towers(self) -> dict[str, tuple[str, str]]:
        image, text = self.image_tower or self.image, self.text_tower or self.text
        return {key: ('image_tower', image) for key in self.images} | {key: ('text_tower', text) for key in self.texts}

    def example(self) -> dict[str, tuple[tuple[int, ...], str]]:
        return {f'{key}_params': ((self.params,), 'float32') for key in self.images if self.params}

    def features(self, encode: Callable, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Per example: unit embeddings of all views, ``view_BVD``, images first; RecipeError for a missing key."""
        found = [self._image(encode, batch, key, neutral=False) for key in self.images]
        found += [self.text_head(encode(self.text_tower or self.text, key).pooled_BD) for key in self.texts]
        return {'view_BVD': jnp.stack(found, axis=1)}

    def _image(self, encode, batch, key: str, neutral: bool) -> jax.Array:
        image_BW = encode(self.image_tower or self.image, key).pooled_BD
        if not self.params:
            return self.image_head(image_BW)
        params_BP = jnp.zeros((len(image_BW), self.params)) if neutral else paths.look_up(batch, f'{key}_params')
        if params_BP.shape != (len(image_BW), self.params):
            raise RecipeError(f'params: found {params_BP.shape[1:]} numbers under {key}_params; valid: {self.params}, as the field says')
        return self.image_head(image_BW, params_BP)

    def loss(self, features: Mapping[str, jax.Array], features2=None, teacher=None) -> tuple[jax.Array, dict]:
        """Of the global batch's features, at least 2 examples: a scalar; the mean loss of each type of pairs that there is,
        ``scale_TYPE`` = 1/τ and ``offset_TYPE`` = b of each, and ``loss_B`` per example."""
        view_BVD = features['view_BVD']
        is_text_V = np.arange(view_BVD.shape[1]) >= len(self.images)
        type_VV = is_text_V[:, None].astype(int) + is_text_V
        wide = jnp.promote_types(jnp.float32, view_BVD.dtype)
        scale_VV, offset_VV = jnp.exp(self.t).astype(wide)[type_VV], self.b.astype(wide)[type_VV]
        offset_VV = -scale_VV * offset_VV
        negative_BV = others.logsumexp_of_others(view_BVD, view_BVD, scale_VV, offset_VV, exchange=self.exchange, tile=self.tile,
                                                 dtype=self.dtype, wire=self.wire)
        cosine_BVV = jnp.einsum('bvd,bwd->bvw', view_BVD, view_BVD, precision=jax.lax.Precision.HIGHEST)
        pair_BVV = jax.nn.softplus(negative_BV[..., None] - scale_VV * cosine_BVV - offset_VV)

        loss_B, metrics = jnp.zeros(len(view_BVD), wide), {}
        for i, name in enumerate(TYPES):
            of_type = (type_VV == i) & ~np.eye(len(type_VV), dtype=bool)
            metrics |= {f'scale_{name}': jnp.exp(self.t[i]), f'offset_{name}': self.b[i]}
            if of_type.any():
                type_B = pair_BVV[:, of_type].mean(-1)
                loss_B, metrics[name] = loss_B + getattr(self, name) * type_B, type_B.mean()
        return loss_B.mean(), jax.lax.stop_gradient(metrics | {'loss_B': loss_B})

    def embed(self, encode: Callable, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Unit embeddings of whichever of ``image``, without augmentation, and ``text`` the batch has; for probes what the image
        tower had before any projection, ``image_features_BD``."""
        found = {}
        if paths.find(batch, self.image) is not None:
            encoded = encode(self.image_tower or self.image, self.image)
            found = {'image_BD': self._image(encode, batch, self.image, neutral=True),
                     'image_features_BD': encoded.pooled_BD if encoded.features_BD is None else encoded.features_BD}
        if paths.find(batch, self.text) is not None:
            found['text_BD'] = self.text_head(encode(self.text_tower or self.text, self.text).pooled_BD)
        return found

    def score(self, image_MD: jax.Array, text_ND: jax.Array) -> jax.Array:
        """Cosine similarities [M, N]."""
        return dual_encoder.score(image_MD, text_ND)
