"""A tiny dataset and model for the evaluators' tests."""

import jax
import jax.numpy as jnp
import numpy as np

from bigvlm.core.mesh import make_mesh
from bigvlm.evals.embed import Embedder

WORDS = ('red', 'blue', 'green', 'small', 'large', 'round', 'striped', 'plain', 'cat', 'dog', 'boat', 'tree')
MESHES = {'none': None, '1': dict(data=1), '8': dict(data=8), '4x2': dict(data=4, fsdp=2)}


def mesh(name):
    spec = MESHES[name]
    return spec and make_mesh(spec, jax.devices()[:int(np.prod(list(spec.values())))])


def tokenize(texts, length):
    """Words as numbers from 1; unknown words by their letters."""
    ids = np.zeros((len(texts), length), np.int32)
    for row, text in zip(ids, texts):
        for i, word in enumerate(text.split()[:length]):
            row[i] = WORDS.index(word) + 1 if word in WORDS else 13 + sum(map(ord, word)) % 50
    return ids


class FakeDataset:
    """Images of noise with a signature of their index; captions of random words; some read count of each item."""

    def __init__(self, n, captions=1, classes=0, seed=0, substitute=()):
        rng = np.random.default_rng(seed)
        self.images = rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
        counts = rng.integers(1, captions + 1, n) if captions > 1 else np.ones(n, int)
        self._captions = [tuple(' '.join(rng.choice(WORDS, 4)) + f' {i}x{k}' for k in range(count))
                          for i, count in enumerate(counts)]
        self.labels = rng.integers(0, classes, n).astype(np.int32) if classes else None
        self.label_names = tuple(f'{WORDS[c % 12]} {WORDS[c // 12]}' for c in range(classes))
        self.substitute = dict(substitute)
        self.reads = np.zeros(n, int)

    def __len__(self):
        return len(self.images)

    def example(self, index, epoch=0):
        self.reads[index] += 1
        index = self.substitute.get(index, index)
        example = dict(image=self.images[index], id=np.array([0, index], np.uint32), captions=self._captions[index])
        return example if self.labels is None else dict(example, label=self.labels[index])

    def captions(self, index):
        return self._captions[index]


def project(batch):
    """A fixed random projection in place of a model; unit norm."""
    out = {}
    if 'image' in batch:
        weight = jax.random.normal(jax.random.key(0), (8 * 8 * 3, 16))
        out['image_BD'] = (batch['image'].reshape(len(batch['image']), -1) / 255. - .5) @ weight
    if 'text' in batch:
        out['text_BD'] = jax.random.normal(jax.random.key(1), (80, 16))[batch['text']].sum(1)
    return {k: x / jnp.linalg.norm(x, axis=-1, keepdims=True) for k, x in out.items()}


def embedder(on=None, batch=16, embed=project):
    return Embedder(jax.jit(embed), None, on, batch)


def dense(key, rows):
    """The same projection, all at once, without an Embedder."""
    return np.asarray(next(iter(project({key: jnp.asarray(rows)}).values())))
