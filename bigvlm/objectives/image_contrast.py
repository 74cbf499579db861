"""Contrast between two views of each image: SimCLR (arXiv 2002.05709), as SLIP (arXiv 2112.12750) adds it, and MoCo (1911.05722).

B batch, D width of the tower, E width of the embedding, Q slots of the queue.
"""

from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, reduce

from bigvlm.core import exchange, pairwise
from bigvlm.core.parts import RecipeError
from bigvlm.nn import queue
from bigvlm.nn.norm import BatchNorm
from bigvlm.objectives.dual_encoder import unit


class Head(nn.Module):
    """``depth`` dense layers [B, D] -> [B, E], each but the last followed by batch norm (if ``norm``) and ReLU."""
    hidden: int
    depth: int
    out: int
    norm: bool

    @nn.compact
    def __call__(self, x_BD: jax.Array) -> jax.Array:
        x_BD = x_BD.astype(jnp.promote_types(x_BD.dtype, jnp.float32))
        for i in range(self.depth - 1):
            x_BD = nn.Dense(self.hidden, name=f'layer{i}')(x_BD)
            x_BD = nn.relu(BatchNorm(name=f'norm{i}')(x_BD, train=True) if self.norm else x_BD)
        return nn.Dense(self.out, name=f'layer{self.depth - 1}')(x_BD)


def other_view(row_side, col_side, row_id, col_id) -> jax.Array:
    """Two views of each example one after the other: the positive of 2i is 2i + 1, and the other way round."""
    return (row_id ^ 1)[:, None] == col_id[None, :]


class ImageContrast(nn.Module):
    """Each view of an image finds the other view of it among all views of the global batch: 2B - 1 candidates, of which B - 1
    are of its own kind of view and B of the other (NT-Xent). The mean over both views' cross-entropies of cosine / ``temperature``.

    ``views``: two batch keys, encoded by ``tower``. The projection head is SLIP's: ``depth`` layers, ``hidden`` wide, ``out`` out,
    batch norm over the global batch, of each view by itself. ``pool``: what goes in: '' the tower's pooled embedding, after its
    projection if it has one; 'first' or 'mean' of its tokens, which are before it ('first' of a tower with a class token is SLIP's).

    With ``teacher``, the name of an EMA of the recipe, this is MoCo: each view looks among the teacher's other views instead, which
    get no gradient; B candidates, and with ``queue`` that many more of earlier batches, a multiple of the global batch ``batch``.
    The teacher's head is a part of the average, so that it belongs to the features, where there is no batch norm:
    ``norm=False`` (MoCo v2's head, arXiv 2003.04297: depth 2, hidden 2048, out 128). Unlike MoCo's, the candidates include
    the batch, and both views take both parts. ``exchange``, ``tile``, ``dtype``, ``wire`` are as in ``pairwise.softmax``.
    """
    views: tuple[str, str] = ('views/0', 'views/1')
    tower: str = 'image'
    pool: str = ''
    hidden: int = 4096
    depth: int = 3
    out: int = 256
    norm: bool = True
    weight: float = 1.
    temperature: float = .1
    teacher: str = ''
    queue: int = 0
    batch: int = 0
    exchange: str = 'auto'
    tile: int = 1024
    dtype: str | None = None
    wire: str | None = None
    kinds: tuple[str, ...] = ('pairs',)

    def __post_init__(self):
        exchange.check(self.exchange, self.tile, self.wire)
        if len(self.views) != 2:
            raise RecipeError(f'views: found {self.views}; valid: two batch keys')
        if self.pool not in ('', 'first', 'mean'):
            raise RecipeError(f"pool: found {self.pool!r}; valid: '', first, mean")
        if not self.temperature > 0:
            raise RecipeError(f'temperature: found {self.temperature}; valid: a number above 0')
        if self.depth < 1:
            raise RecipeError(f'depth: found {self.depth}; valid: at least 1')
        if self.teacher and self.norm:
            raise RecipeError('norm: found True with a teacher; valid: False, its head works on one example at a time')
        if self.queue:
            if not self.teacher:
                raise RecipeError('queue: found one without a teacher; valid: 0, or name the EMA that makes the keys')
            queue.check(self.queue, self.batch, 'queue')
        super().__post_init__()

    def setup(self):
        self.head = Head(self.hidden, self.depth, self.out, self.norm)
        if self.queue:
            self.earlier = queue.Queue(self.queue, self.batch)

    def towers(self) -> dict[str, tuple[str, str]]:
        """{batch key: (field that names it, tower)}."""
        return {key: ('tower', self.tower) for key in self.views}

    def features(self, encode: Callable, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Per example: ``view0``, ``view1``: what the head takes [B, D]; with a teacher, unit embeddings [B, E]."""
        taken = {f'view{i}': self._pooled(encode(self.tower, key)) for i, key in enumerate(self.views)}
        return {name: unit(self.head(x_BD)) for name, x_BD in taken.items()} if self.teacher else taken

    def _pooled(self, encoded) -> jax.Array:
        if self.pool == 'first':
            return encoded.tokens_BLD[:, 0]
        return encoded.tokens_BLD.mean(1) if self.pool == 'mean' else encoded.pooled_BD

    def loss(self, features: Mapping[str, jax.Array], features2=None, teacher=None) -> tuple[jax.Array, dict]:
        """Of the global batch's features: a scalar; ``accuracy``, and ``loss_B`` per example; ``filled``, the share of the
        queue in use, if there is one."""
        options = dict(directions='rows', exchange=self.exchange, tile=self.tile, dtype=self.dtype, wire=self.wire)
        if self.teacher:
            return self._among_keys(features, jax.lax.stop_gradient(teacher), options)
        view_BVE = jnp.stack([unit(self.head(features[f'view{i}'])) for i in range(2)], axis=1)
        view_NE = rearrange(view_BVE, 'b v e -> (b v) e')  # side by side: an example's views are on the device that it is on
        loss, metrics = pairwise.softmax(view_NE, view_NE, 1 / self.temperature, target=other_view, exclude=pairwise.identity, **options)
        return loss, metrics | {'loss_B': reduce(metrics['loss_B'], '(b v) -> b', 'mean', v=2)}

    def _among_keys(self, query, key, options) -> tuple[jax.Array, dict]:
        names, more, metrics = ('view0', 'view1'), dict.fromkeys(('view0', 'view1')), {}
        if self.queue:
            old = self.earlier({name: key[name] for name in names})
            more = {name: pairwise.Keys(old.arrays[name], counts=old.counts_QB) for name in names}
            metrics['filled'] = old.filled
        parts = [pairwise.softmax(query[own], key[other], 1 / self.temperature, more_cols=more[other], **options)
                 for own, other in (names, names[::-1])]
        loss, seen = jax.tree.map(lambda a, b: (a + b) / 2, *parts)
        return loss, seen | metrics
