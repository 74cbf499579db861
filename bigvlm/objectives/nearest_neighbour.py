"""Images against earlier captions that mean the same: nearest-neighbour supervision (DeCLIP, arXiv 2110.05208).

B batch, D width, Q slots of the queue, T texts of an example.
"""

import math
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from bigvlm.core import pairwise, paths
from bigvlm.core.nearest import nearest
from bigvlm.nn import queue
from bigvlm.objectives import dual_encoder


class NearestNeighbour(nn.Module):
    """Cross-entropy of each image among neighbours of the batch's texts, with the neighbour of its own text as the positive.

    The neighbour of a text is the most similar (cosine) of the last ``size`` examples' texts, all ``texts`` of them; it has no
    gradient. Only images look (DeCLIP): there is no loss of texts. The mean over all ``images`` × ``texts``, which are batch keys
    (views, and captions in several wordings). While nothing has been pushed, the first step that is, a text is its own neighbour.
    ``size`` must be a multiple of the recipe's global batch, ``batch``. ``temperature``, ``learned``: as in ``contrastive``; the
    scale is this objective's own. ``exchange``, ``tile``, ``dtype``, ``wire`` are as in ``pairwise.softmax``.
    ``label``: a batch key (int [B], -1 for none) by which neighbours are judged, besides by their captions; not part of the loss.
    """
    images: tuple[str, ...] = ('image',)
    texts: tuple[str, ...] = ('text',)
    image_tower: str = 'image'
    text_tower: str = 'text'
    weight: float = 1.
    size: int = 65_536
    batch: int = 0
    temperature: float = .07
    learned: bool = True
    label: str = ''
    exchange: str = 'auto'
    tile: int = 1024
    dtype: str | None = None
    wire: str | None = None
    kinds: tuple[str, ...] = ('pairs',)

    def __post_init__(self):
        dual_encoder.check('identity', self.temperature, self.exchange, self.tile, self.dtype, self.wire)
        queue.check(self.size, self.batch)
        super().__post_init__()

    def setup(self):
        t = jnp.float32(-math.log(self.temperature))
        self.t = self.param('t', lambda key: t) if self.learned else t
        self.earlier = queue.Queue(self.size, self.batch)

    def towers(self) -> dict[str, tuple[str, str]]:
        """{batch key: (field that names it, tower)}."""
        images = {key: ('image_tower', self.image_tower) for key in self.images}
        return images | {key: ('text_tower', self.text_tower) for key in self.texts}

    def example(self) -> dict:
        return {self.label: ((), 'int32')} if self.label else {}

    def features(self, encode: Callable, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """Per example: unit embeddings ``image0_BD`` …, ``text0_BD`` …, hashes of the captions, the label if there is a key."""
        found = {f'{kind}{i}_BD': dual_encoder.unit(encode(tower, key).pooled_BD)
                 for kind, tower, keys in (('image', self.image_tower, self.images), ('text', self.text_tower, self.texts))
                 for i, key in enumerate(keys)}
        found['hash_BT2'] = jnp.stack([dual_encoder.caption_hash(paths.look_up(batch, key)) for key in self.texts], axis=1)
        return found | ({'label_B': paths.look_up(batch, self.label)} if self.label else {})

    def loss(self, features: Mapping[str, jax.Array], features2=None, teacher=None) -> tuple[jax.Array, dict]:
        """Of the global batch's features: a scalar, and metrics: ``accuracy``, ``scale``, ``loss_B``; ``filled``, the share of
        the queue in use; of neighbours from the queue, in the mean, their ``similarity``, ``same_caption``, how often one has the
        caption of the text that it replaces, and ``same_label`` (of texts with a label), all 0 while there are none."""
        options = dict(exchange=self.exchange, tile=self.tile, dtype=self.dtype, wire=self.wire)
        scale, keys, filled = jnp.exp(self.t), *self._keys(features)
        losses, metrics = [], []
        for t in range(len(self.texts)):
            found = nearest(features[f'text{t}_BD'], keys, **options)
            known_B1 = found.index[:, None] >= 0
            target_BD = jnp.where(known_B1, found.x, jax.lax.stop_gradient(features[f'text{t}_BD']))
            judged = self._judged(found, features, t)
            for i in range(len(self.images)):
                loss, seen = pairwise.softmax(features[f'image{i}_BD'], target_BD, scale, directions='rows', **options)
                losses.append(loss)
                metrics.append(seen | judged)
        mean = jax.tree.map(lambda *values: jnp.stack(values).mean(0), *metrics)
        return jnp.stack(losses).mean(), mean | {'scale': jax.lax.stop_gradient(scale), 'filled': filled}

    def _keys(self, features) -> tuple[pairwise.Keys, jax.Array]:
        """The queue's texts as keys [Q·T, B, D] with what tells which they were, and how full it is; the batch is pushed."""
        text_BTD = jnp.stack([features[f'text{t}_BD'] for t in range(len(self.texts))], axis=1)
        new = {'text': text_BTD, 'hash': features['hash_BT2']}
        if self.label:
            new['label'] = jnp.stack([features['label_B']] * len(self.texts), axis=1)
        old = self.earlier(new)
        arrays = {name: rearrange(x, 'q b t ... -> (q t) b ...') for name, x in old.arrays.items()}
        return pairwise.Keys(arrays.pop('text'), arrays, jnp.repeat(old.counts_QB, len(self.texts), axis=0)), old.filled

    def _judged(self, found, features, t: int) -> dict[str, jax.Array]:
        known_B = found.index >= 0
        judged = {'similarity': jnp.where(known_B, found.score, 0.).mean(),
                  'same_caption': (known_B & (found.side['hash'] == features['hash_BT2'][:, t]).all(-1)).mean()}
        if self.label:
            has_B = features['label_B'] >= 0
            same_B = known_B & has_B & (found.side['label'] == features['label_B'])
            judged['same_label'] = same_B.sum() / jnp.maximum(has_B.sum(), 1)
        return judged
