"""A tower for tests of masked images: patches of 4 pixels, a class token before them, and what they are told of each other."""

import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from flax import linen as nn

from bigvlm.core.paths import look_up
from bigvlm.nn.encoded import Encoded

PATCH, WIDTH = 4, 12


class Tower(nn.Module):
    """``masked``: bool [B, L], replaced by a token; ``kept``: int32 [B, K], all that is looked at. ``cls``: a class token comes first;
    ``blind``: it takes masks of any length."""
    cls: bool = True
    blind: bool = False

    @nn.compact
    def __call__(self, image_BHWC, masked=None, kept=None):
        pixel_BLP = rearrange(image_BHWC.astype(jnp.float32) / 255., 'b (r p) (c q) k -> b (r c) (p q k)', p=PATCH, q=PATCH)
        x_BLW = nn.Dense(WIDTH, name='patch')(pixel_BLP)
        token_W = self.param('mask_token', nn.initializers.normal(1.), (WIDTH,))
        if masked is not None and not self.blind:
            x_BLW = jnp.where(masked[..., None], token_W, x_BLW)
        x_BLW = x_BLW + self.param('position', nn.initializers.normal(1.), (x_BLW.shape[1], WIDTH))
        if kept is not None:
            x_BLW = jnp.take_along_axis(x_BLW, kept[..., None], axis=1)
        if self.cls:
            x_BLW = jnp.concatenate([repeat(token_W, 'w -> b 1 w', b=len(x_BLW)), x_BLW], axis=1)
        x_BLW = jnp.tanh(x_BLW + nn.Dense(WIDTH, name='mix')(x_BLW.mean(axis=1, keepdims=True)))
        return Encoded(x_BLW.mean(axis=1), x_BLW)


class Both(nn.Module):
    """The tower and an objective, as a model has them."""
    tower: nn.Module
    objective: nn.Module

    def _encode(self, batch):
        def encode(tower, key, **options):
            assert tower == 'image'
            return self.tower(look_up(batch, key), **{name: look_up(batch, value) for name, value in options.items()})
        return encode

    def features(self, batch):
        return self.objective.features(self._encode(batch), batch)

    def loss(self, features):
        return self.objective.loss(features)

    def reconstruct(self, batch):
        return self.objective.reconstruct(self._encode(batch), batch)

    def __call__(self, batch):
        return self.loss(self.features(batch))


def images(count=8, rows=3, columns=4, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, rows * PATCH, columns * PATCH, 3), dtype=np.uint8)


def patches(image_BHWC, mean, std):
    """[B, L, D] by loops."""
    scaled = (image_BHWC.astype(np.float64) / 255 - np.array(mean)) / np.array(std)
    return np.array([[one[top:top + PATCH, left:left + PATCH].reshape(-1)
                      for top in range(0, one.shape[0], PATCH) for left in range(0, one.shape[1], PATCH)] for one in scaled])


def tokens(image_BHWC, p, masked=None, kept=None, cls=True):
    """The tower in NumPy, float64."""
    found = []
    for b, pixel_LP in enumerate(patches(image_BHWC, (0., 0., 0.), (1., 1., 1.))):
        x = pixel_LP @ p['patch']['kernel'] + p['patch']['bias']
        if masked is not None:
            x = np.array([p['mask_token'] if hidden else row for row, hidden in zip(x, masked[b])])
        x = x + p['position']
        if kept is not None:
            x = x[kept[b]]
        if cls:
            x = np.concatenate([p['mask_token'][None], x])
        found.append(np.tanh(x + x.mean(0) @ p['mix']['kernel'] + p['mix']['bias']))
    return np.array(found)
