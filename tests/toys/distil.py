"""A toy self-distillation: image features close to those under the EMA parameters."""

import jax.numpy as jnp
from flax import linen as nn


class Distil(nn.Module):
    teacher: str = 'slow'
    weight: float = 1.
    kinds: tuple = ('pairs',)

    def features(self, encode, batch):
        return dict(image_BD=encode('image', 'image').pooled_BD)

    def loss(self, features, features2=None, teacher=None):
        return jnp.square(features['image_BD'] - teacher['image_BD']).mean(), {}
