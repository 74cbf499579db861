"""Captioning: the likelihood of each next token of the text, given the image (CoCa, arXiv 2205.01917, equation 3).

Shapes: B batch, L text length, S image tokens, W width, V vocabulary.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigvlm.core import paths
from bigvlm.core.parts import RecipeError


class Caption(nn.Module):
    """Cross-entropy of the next token, averaged over all tokens of the global batch that a text has, its end included.

    The causal text tower reads the text without the image (CoCa's unimodal half: the same forward pass as a contrastive
    objective's), the recipe's ``decoder`` reads its tokens and the image tower's. The first token of a text is not predicted:
    give the tokenizer a ``bos``. ``eot_id`` ends a text: it is predicted once, and nothing after it. ``smoothing``: the share
    of the target that is spread over the vocabulary.
    """
    image: str = 'image'
    text: str = 'text'
    image_tower: str = ''
    text_tower: str = ''
    decoder: str = 'captioner'
    eot_id: int = 1
    weight: float = 1.
    smoothing: float = 0.
    kinds: tuple[str, ...] = ('pairs',)

    def __post_init__(self):
        if not 0. <= self.smoothing < 1.:
            raise RecipeError(f'smoothing: found {self.smoothing}; valid: 0 <= smoothing < 1')
        super().__post_init__()

    def features(self, encode: Callable, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Per example: the summed cross-entropy ``sum_B`` over ``count_B`` tokens, of which ``right_B`` had the largest logit."""
        ids_BL = paths.look_up(batch, self.text)
        image_BSW = encode(self.image_tower or self.image, self.image).tokens_BLD
        text_BLW = encode(self.text_tower or self.text, self.text).layers[-1][:, :ids_BL.shape[1] - 1]
        logits_BLV = encode.part(self.decoder)(text_BLW, image_BSW, keys_B=encode.keys(f'{self.decoder}/{self.text}'))
        next_BL, real_BL = ids_BL[:, 1:], predicted(ids_BL, self.eot_id)
        log_p_BLV = jax.nn.log_softmax(logits_BLV)
        loss_BL = -jnp.take_along_axis(log_p_BLV, next_BL[:, :, None], axis=2)[:, :, 0]
        if self.smoothing:
            loss_BL = (1. - self.smoothing) * loss_BL - self.smoothing * log_p_BLV.mean(axis=2)
        right_BL = logits_BLV.argmax(axis=2) == next_BL
        def total(x_BL):
            return jnp.where(real_BL, x_BL, 0.).sum(axis=1)
        return dict(sum_B=total(loss_BL), count_B=total(1.), right_B=total(right_BL.astype(jnp.float32)))

    def loss(self, features: Mapping[str, jax.Array], features2=None, teacher=None) -> tuple[jax.Array, dict]:
        """Over the global batch's tokens: a scalar; ``accuracy`` of next tokens, and ``loss_B``, each example's part of the mean."""
        count = jnp.maximum(features['count_B'].sum(), 1.)
        loss_B = features['sum_B'] * (len(features['sum_B']) / count)
        return loss_B.mean(), jax.lax.stop_gradient({'accuracy': features['right_B'].sum() / count, 'loss_B': loss_B})

    # What a generation needs (core/decoding.py): the state after no token, on which axes it has the texts, and one token more.

    state_axes = {'image_BSW': 0, 'text': 1, 'decoder': 1}

    def begin(self, encode: Callable, batch: Mapping[str, jax.Array]) -> dict[str, Any]:
        """The state of a generation for each image of the batch: image tokens, and the caches of tower and decoder."""
        image_BSW = encode(self.image_tower or self.image, self.image).tokens_BLD
        tower, size = encode.tower(self.text_tower or self.text), len(image_BSW)
        if not tower.causal:
            raise RecipeError(f'text_tower: captions need a causal tower; {self.text_tower or self.text!r} is not')
        return dict(image_BSW=image_BSW, text=tower.cache(size), decoder=encode.part(self.decoder).cache(size, tower.length))

    def advance(self, encode: Callable, ids_B: jax.Array, index: jax.Array, state: Mapping[str, Any]) -> tuple[jax.Array, dict]:
        """(logits [B, V] of the token after ``ids_B``, which is number ``index`` of its text; the new state)."""
        tower = encode.tower(self.text_tower or self.text)
        encoded, text = tower(ids_B[:, None], cache=state['text'], index=index)
        logits_B1V, decoder = encode.part(self.decoder)(encoded.layers[-1], state['image_BSW'], cache=state['decoder'], index=index)
        return logits_B1V[:, 0], dict(image_BSW=state['image_BSW'], text=text, decoder=decoder)


def predicted(ids_BL: jax.Array, eot_id: int) -> jax.Array:
    """bool [B, L-1]: whether the token after each one is the text's: all up to the first ``eot_id``, which may also begin it."""
    ended_BL = jnp.cumsum(ids_BL[:, 1:] == eot_id, axis=1) > 0
    return ~jnp.pad(ended_BL[:, :-1], ((0, 0), (1, 0)))
