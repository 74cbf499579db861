"""SimSiam: two views of an image predict each other, without negatives (arXiv 2011.10566).

Shapes: B batch, W the tower's width, D the projector's.
"""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from bigvlm.core.parts import RecipeError
from bigvlm.nn.norm import BatchNorm
from bigvlm.objectives.dual_encoder import unit


class SimSiam(nn.Module):
    """-½ (cos(p1, sg z2) + cos(p2, sg z1)), mean over the global batch; z a projection of a view, p a prediction from z.

    Projector: three dense layers, each with batch norm, ReLU after the first two. Predictor: a bottleneck with batch norm
    and ReLU, then a dense layer. ``projector`` and ``bottleneck`` are their widths: 1024 and 512 in DeCLIP (arXiv
    2110.05208), 2048 and 512 in the paper. Each view is normalised by statistics of its own, over ``group`` examples (0: the
    global batch): heads belong to ``loss``, so micro-batches and meshes change nothing.

    ``first`` and ``second`` are the batch keys of the views, ``image_tower`` encodes both.
    """
    first: str = 'views/0'
    second: str = 'views/1'
    image_tower: str = 'image'
    weight: float = 1.
    projector: int = 1024
    bottleneck: int = 512
    group: int = 0
    kinds: tuple[str, ...] = ('pairs',)

    def __post_init__(self):
        for field in ('projector', 'bottleneck'):
            if getattr(self, field) < 1:
                raise RecipeError(f'{field}: found {getattr(self, field)}; valid: a width of at least 1')
        if self.group < 0:
            raise RecipeError(f'group: found {self.group}; valid: 0 (the global batch) or a number of examples')
        super().__post_init__()

    def setup(self):
        # No bias before batch norm, which would take it away again.
        self.project = [nn.Dense(self.projector, use_bias=False) for _ in range(3)]
        self.project_norm = [BatchNorm(group=self.group) for _ in range(3)]
        self.squeeze, self.squeeze_norm = nn.Dense(self.bottleneck, use_bias=False), BatchNorm(group=self.group)
        self.predict = nn.Dense(self.projector)

    def towers(self) -> dict[str, tuple[str, str]]:
        return {key: ('image_tower', self.image_tower) for key in (self.first, self.second)}

    def features(self, encode: Callable, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Per example: the tower's vectors of both views, ``first_BW`` and ``second_BW``; RecipeError for a missing key."""
        return {'first_BW': encode(self.image_tower, self.first).pooled_BD,
                'second_BW': encode(self.image_tower, self.second).pooled_BD}

    def loss(self, features: Mapping[str, jax.Array], features2=None, teacher=None) -> tuple[jax.Array, dict]:
        """Of the global batch's features: a scalar from -1 to 1; ``std``, of a coordinate of the unit projections over the
        batch (mean over coordinates; about 1/√D if they are spread out, 0 if all are one point), and ``loss_B``."""
        z1_BD, p1_BD = self._heads(features['first_BW'])
        z2_BD, p2_BD = self._heads(features['second_BW'])

        def cosine_B(p_BD, z_BD):
            return (unit(p_BD) * unit(jax.lax.stop_gradient(z_BD))).sum(-1)
        loss_B = -.5 * (cosine_B(p1_BD, z2_BD) + cosine_B(p2_BD, z1_BD))
        std = jnp.mean(jnp.stack([unit(z_BD).std(axis=0).mean() for z_BD in (z1_BD, z2_BD)]))
        return loss_B.mean(), jax.lax.stop_gradient({'std': std, 'loss_B': loss_B})

    def _heads(self, x_BW: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(projection, prediction), both [B, D]."""
        z_BD = x_BW.astype(jnp.promote_types(x_BW.dtype, jnp.float32))
        for i, (dense, norm) in enumerate(zip(self.project, self.project_norm)):
            z_BD = norm(dense(z_BD), train=True)
            z_BD = nn.relu(z_BD) if i < 2 else z_BD
        return z_BD, self.predict(nn.relu(self.squeeze_norm(self.squeeze(z_BD), train=True)))
