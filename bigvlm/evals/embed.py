"""What evaluators see of a model: images in, embeddings out; each example once, whatever the mesh.

B: global batch, N, M: examples, L: tokens, H, W: pixels, D: width.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from bigvlm.core.mesh import batch_shards, process_rows, put_batch
from bigvlm.core.parts import RecipeError

_TILE = 1024  # largest side of one score matrix


@jax.jit
def dot(image_MD, text_ND):
    """The default score. Full float32 precision: ranks should not depend on the accelerator's fast matmul."""
    return jnp.einsum('md,nd->mn', image_MD, text_ND, precision='highest')


class Embedder:
    """Embeds sequences of any length with one compiled shape per kind, sharded over the mesh and over processes.

    embed_fn: jitted, ``{'image': uint8 [B,H,W,3]}`` or ``{'text': int32 [B,L]}`` -> dict with ``image_BD`` or
    ``text_BD``.
    score_fn: jitted, ``(image [M,D], text [N,D]) -> [M,N]``, higher is more alike; None is the dot product.
    mesh: None runs on the default device. batch: global batch size, rounded up to fill the mesh.
    image_key, text_key: the batch keys that the objective reads. model: what else it can be asked for (functions.Functions).
    """

    def __init__(self, embed_fn: Callable[[dict], Mapping[str, jax.Array]], score_fn: Callable | None = None,
                 mesh: Mesh | None = None, batch: int = 64, *, image_key: str = 'image', text_key: str = 'text',
                 model: Any = None, workers: int = 8):
        shards = 1 if mesh is None else batch_shards(mesh)
        self.batch = -(-batch // shards) * shards
        self.mesh, self.workers = mesh, workers
        self.image_key, self.text_key, self._model = image_key, text_key, model
        self.average_scores = getattr(getattr(model, 'objective', None), 'average_scores', False)
        self._embed_fn, self._score_fn = embed_fn, dot if score_fn is None else score_fn
        self._own = np.arange(self.batch) if mesh is None else process_rows(mesh, self.batch)

    def images(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """uint8 [H,W,3] images of one size -> float32 [N,D]. Reads lazily, in threads, only this process's share."""
        return self._embed(self.image_key, ('image_BD',), images)

    def features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """As ``images``: the features for probes, ``image_features_BD`` if the embed_fn gives them, else its embeddings."""
        return self._embed(self.image_key, ('image_features_BD', 'image_BD'), images)

    def texts(self, texts_NL: np.ndarray) -> np.ndarray:
        """int32 [N,L] -> float32 [N,D]."""
        return self._embed(self.text_key, ('text_BD',), texts_NL)

    def score(self, image_MD: np.ndarray, text_ND: np.ndarray) -> np.ndarray:
        """[M,D], [N,D] -> float32 [M,N], tile by tile; few compiled shapes, since sides are padded to powers of two."""
        m, n = len(image_MD), len(text_ND)
        scores_MN = np.empty((m, n), np.float32)
        for i in range(0, m, _TILE):
            for j in range(0, n, _TILE):
                image, text = image_MD[i:i + _TILE], text_ND[j:j + _TILE]
                tile = _host(self._score_fn(_pad(image), _pad(text)))
                scores_MN[i:i + len(image), j:j + len(text)] = tile[:len(image), :len(text)]
        return scores_MN

    def measure(self, examples: Sequence[Mapping[str, np.ndarray]]) -> Iterator[dict[str, float]]:
        """The objective's loss and metrics of each whole batch of examples, in order; those per example are averaged."""
        with self._on_mesh():
            for batch in self._batches(examples, _stack_all):
                metrics = self._model.measure(self._put(batch))
                yield {name.removesuffix('_B'): float(_host(value).mean()) for name, value in metrics.items()}

    def call(self, method: str, examples: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """What the objective's ``method(encode, batch)`` gives for examples, each array [N, …]."""
        found: dict[str, list[np.ndarray]] = {}
        with self._on_mesh():
            for batch in self._batches(examples, _stack_all):
                for name, value in self._model.call(self._put(batch), method).items():
                    found.setdefault(name, []).append(_host(value))
        return {name: np.concatenate(values)[:len(examples)] for name, values in found.items()}

    def generate(self, images: Sequence[np.ndarray], how: str, **options) -> np.ndarray:
        """int32 [N, L]: a text for each image; ``how`` and ``options``: a function of core/decoding.py and its arguments."""
        ids = []
        with self._on_mesh():
            for batch in self._batches(images):
                ids.append(_host(self._model.generate(self._put({self.image_key: batch}), how, tuple(sorted(options.items())))))
        return np.concatenate(ids)[:len(images)]

    def _on_mesh(self):
        return nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def _put(self, batch: Mapping[str, np.ndarray]):
        return batch if self.mesh is None else put_batch(batch, self.mesh, self.batch)

    def gather(self, values_N: np.ndarray) -> np.ndarray:
        """The elementwise maximum over processes: completes what each process noted while reading its share."""
        if self.mesh is None or jax.process_count() == 1:
            return values_N
        return np.asarray(multihost_utils.process_allgather(values_N)).max(axis=0)

    def _embed(self, key: str, results: tuple[str, ...], rows: Sequence[np.ndarray]) -> np.ndarray:
        if not len(rows):
            raise RecipeError(f'data: nothing to embed as {key!r}; the evaluator needs at least one example')
        outputs, running = [], None
        with self._on_mesh():
            for batch in self._batches(rows):
                features = self._embed_fn(self._put({key: batch}))
                result = next((name for name in results if name in features), None)
                if result is None:
                    raise RecipeError(f'objective: its embed gives no {results[-1]!r} for {key!r}, but {sorted(features)}')
                if running is not None:  # fetched after the next batch is dispatched: reading and computing overlap
                    outputs.append(_host(running))
                running = features[result]
            outputs.append(_host(running))
        features_ND = np.concatenate(outputs)[:len(rows)].astype(np.float32)
        finite_N = np.isfinite(features_ND).reshape(len(rows), -1).all(axis=1)
        if not finite_N.all():
            raise FloatingPointError(f'{(~finite_N).sum()} of {len(rows)} {key} embeddings hold NaN or Inf: '
                                     'so do the parameters being evaluated, or the tower overflows')
        return features_ND

    def _batches(self, rows: Sequence, stack: Callable | None = None) -> Iterator:
        """This process's rows of each global batch, the last filled up with the last example. Reads one batch ahead."""
        n = len(rows)

        def submit(start: int) -> list[Future]:
            wanted = [min(start + i, n - 1) for i in self._own.tolist()]
            futures = {i: pool.submit(rows.__getitem__, i) for i in dict.fromkeys(wanted)}
            return [futures[i] for i in wanted]

        with ThreadPoolExecutor(self.workers) as pool:
            ahead = submit(0)
            for start in range(0, n, self.batch):
                batch = [future.result() for future in ahead]
                ahead = submit(start + self.batch) if start + self.batch < n else []
                yield (stack or _stack)(batch)


def _stack_all(rows: list[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {key: _stack([row[key] for row in rows]) for key in rows[0]}


def _stack(rows: list[np.ndarray]) -> np.ndarray:
    shapes = {np.shape(row) for row in rows}
    if len(shapes) > 1:
        raise RecipeError(f'data: an evaluator needs examples of one shape, not {sorted(shapes)[:3]}; add a resize op')
    return np.stack(rows)


def _pad(rows_ND: np.ndarray) -> np.ndarray:
    size = 1 << (len(rows_ND) - 1).bit_length()
    return np.pad(rows_ND, [(0, size - len(rows_ND))] + [(0, 0)] * (rows_ND.ndim - 1), mode='edge')


def _host(array: jax.Array) -> np.ndarray:
    """The global value, on every process."""
    if getattr(array, 'is_fully_addressable', True) or array.is_fully_replicated:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
