"""What objectives over pairs of one image and one text embedding share (not itself an objective).

Shapes: B batch, D width, L text length, M images and N texts to score.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bigvlm.core import exchange, pairwise, paths
from bigvlm.core.bits import mix
from bigvlm.core.parts import RecipeError


class Positives(NamedTuple):
    """Which pairs of a batch are positives: a target function of a per-example array that features carry."""
    target: pairwise.Target
    side: Callable[[Mapping[str, jax.Array], str], jax.Array] | None   # of (batch, text key)


def unit(x_BD: jax.Array) -> jax.Array:
    """Rows scaled to length 1, in float32 (float64 stays); a zero row stays zero, with a finite gradient."""
    x_BD = x_BD.astype(jnp.promote_types(x_BD.dtype, jnp.float32))
    squared = jnp.sum(x_BD * x_BD, axis=-1, keepdims=True)
    return x_BD * jax.lax.rsqrt(jnp.where(squared > 0, squared, 1.))


def caption_hash(ids_BL: jax.Array) -> jax.Array:
    """Two 32-bit hashes of each row of token ids, uint32 [B, 2]: equal captions have equal hashes.

    A sum over positions of well mixed (position, id) pairs; two different captions of a batch agree in both words with
    a chance of about 2^-64, and never if they differ in one token only.
    """
    ids_BL = ids_BL.astype(jnp.uint32)
    position_L = jnp.arange(ids_BL.shape[1], dtype=jnp.uint32)
    words = [mix(ids_BL ^ mix(2 * position_L + jnp.uint32(seed))).sum(1, dtype=jnp.uint32) for seed in (0, 1)]
    return jnp.stack(words, axis=1)


POSITIVES = {
    'identity': Positives(pairwise.identity, None),
    'labels': Positives(pairwise.equal_labels, lambda batch, text: paths.look_up(batch, 'label')),
    'captions': Positives(pairwise.equal_hashes, lambda batch, text: caption_hash(paths.look_up(batch, text))),
}


def check(target: str, temperature: float, exchange_name: str, tile: int, dtype: Any, wire: Any) -> None:
    """Raises RecipeError for fields that no run could use."""
    if target not in POSITIVES:
        raise RecipeError(f'target: found {target!r}; valid: {", ".join(POSITIVES)}')
    if not temperature > 0:
        raise RecipeError(f'temperature: found {temperature}; valid: a number above 0')
    exchange.check(exchange_name, tile, wire)
    if dtype is not None and dtype not in ('float32', 'bfloat16'):
        raise RecipeError(f'dtype: found {dtype!r}; valid: float32, bfloat16 or None (the embeddings\')')


def embed(encode: Callable, batch: Mapping[str, jax.Array], image: tuple[str, str], text: tuple[str, str]) -> dict:
    """Unit embeddings ``image_BD``, ``text_BD`` of what the batch has; ``image``, ``text``: (tower, batch key). Beside an image's,
    ``image_features_BD``, what the tower had before its projection, for probes."""
    sources = {'image_BD': image, 'text_BD': text}
    encoded = {name: encode(tower, key) for name, (tower, key) in sources.items() if paths.find(batch, key) is not None}
    found = {name: unit(one.pooled_BD) for name, one in encoded.items()}
    features_BD = getattr(encoded.get('image_BD'), 'features_BD', None)
    return found if features_BD is None else found | {'image_features_BD': features_BD}


def features(encode: Callable, batch: Mapping[str, jax.Array], image: tuple[str, str], text: tuple[str, str],
             target: str) -> dict:
    """Both embeddings and, where ``target`` needs one, the side array ``side_B``."""
    for _, key in (image, text):
        paths.look_up(batch, key)
    found = {name: x for name, x in embed(encode, batch, image, text).items() if name != 'image_features_BD'}
    side = POSITIVES[target].side
    return found if side is None else found | {'side_B': side(batch, text[1])}


def score(image_MD: jax.Array, text_ND: jax.Array) -> jax.Array:
    """Cosine similarities [M, N] of unit embeddings, in float32."""
    return jnp.einsum('md,nd->mn', image_MD, text_ND, precision=jax.lax.Precision.HIGHEST,
                      preferred_element_type=jnp.float32)
