"""A toy image-text matching objective: the hardest negative text of the global batch, judged in a second round."""

import jax
import jax.numpy as jnp
from flax import linen as nn


class Matching(nn.Module):
    weight: float = 1.
    kinds: tuple = ('pairs',)

    def setup(self):
        self.judge = nn.Dense(1)

    def features(self, encode, batch):
        return dict(image_BD=encode('image', 'image').pooled_BD, text_BD=encode('text', 'text').pooled_BD)

    def select(self, features):
        similarity_BB = jnp.einsum('id,jd->ij', features['image_BD'], features['text_BD'])
        return jnp.argmax(similarity_BB - 1e9 * jnp.eye(len(similarity_BB)), axis=1)

    def pairs(self, features, selection):
        image_BD, text_BD = features['image_BD'], features['text_BD']
        is_pair_P = jnp.repeat(jnp.array([1, 0]), len(image_BD))
        return dict(image_PD=jnp.concatenate([image_BD, image_BD]), text_PD=jnp.concatenate([text_BD, text_BD[selection]]),
                    is_pair_P=is_pair_P)

    def features2(self, encode, pairs):
        joint_PD = jnp.concatenate([pairs['image_PD'], pairs['text_PD'], pairs['image_PD'] * pairs['text_PD']], axis=1)
        return dict(logit_P=self.judge(jnp.tanh(joint_PD))[:, 0], is_pair_P=pairs['is_pair_P'])

    def loss(self, features, features2=None, teacher=None):
        logit_P, is_pair_P = features2['logit_P'], features2['is_pair_P']
        if self.is_initializing():
            self.judge(jnp.zeros((1, 3 * features['image_BD'].shape[1])))
        loss = jax.nn.softplus(jnp.where(is_pair_P == 1, -logit_P, logit_P)).mean()
        return loss, dict(accuracy=((logit_P > 0) == (is_pair_P == 1)).mean())
