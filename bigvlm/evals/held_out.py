"""An objective's own loss and metrics on data that it was not trained on.

B: examples of a batch, N: examples.
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from bigvlm.core.parts import RecipeError


@dataclasses.dataclass(kw_only=True)
class HeldOut:
    """Yields the mean over batches of each metric that the objective's loss gives, and of the ``loss`` itself; ``n`` examples.

    data: a dataset whose ops give what the objective reads (masks too: each example's are always the same). limit: at most so
    many examples. Only whole batches of the evaluator's ``batch`` count: what contrasts examples depends on how many they are.
    Nothing is drawn but what the ops draw, batch statistics are the batch's own, and queues and teachers are as they are.
    """
    data: str = 'val'
    limit: int = 512
    datasets: Callable

    reads = ('data',)  # fields that name datasets
    needs = 'features'  # of the objective

    def sample(self) -> dict[str, np.ndarray]:
        """One example, as they will be: what the objective can do with such is tried before the run."""
        return _Examples(self.datasets(self.data), 1)[0]

    def run(self, embedder) -> Iterator[tuple[str, float]]:
        dataset = self.datasets(self.data)
        n = min(len(dataset), self.limit)
        if n < embedder.batch:
            raise RecipeError(f'limit: {n} examples are less than one batch of {embedder.batch}')
        sums: dict[str, float] = {}
        batches = n // embedder.batch
        for metrics in embedder.measure(_Examples(dataset, batches * embedder.batch)):
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.) + value
        for name, total in sums.items():
            yield name, total / batches
        yield 'n', float(batches * embedder.batch)


class _Examples:
    """The arrays of the first ``n`` examples of a dataset."""

    def __init__(self, dataset, n: int):
        self._dataset, self._n = dataset, n

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {key: np.asarray(value) for key, value in self._dataset.example(index).items()
                if isinstance(value, (np.ndarray, np.generic, int, float))}
