"""A toy contrast against a queue of earlier texts, a variable collection that ``loss`` writes."""

import jax
import jax.numpy as jnp
from flax import linen as nn


class Queued(nn.Module):
    size: int = 32
    width: int = 16
    weight: float = 1.
    kinds: tuple = ('pairs',)

    def setup(self):
        self.queue = self.variable('queue', 'texts', lambda: jnp.zeros((self.size, self.width)))

    def features(self, encode, batch):
        return dict(image_BD=encode('image', 'image').pooled_BD, text_BD=encode('text', 'text').pooled_BD)

    def loss(self, features, features2=None, teacher=None):
        image_BD, text_BD = features['image_BD'], features['text_BD']
        keys_KD = jnp.concatenate([text_BD, self.queue.value])
        log_p_BK = jax.nn.log_softmax(jnp.einsum('id,kd->ik', image_BD, keys_KD))
        if not self.is_initializing():
            self.queue.value = jnp.concatenate([jax.lax.stop_gradient(text_BD), self.queue.value])[:self.size]
        return -jnp.diagonal(log_p_BK).mean(), {}
