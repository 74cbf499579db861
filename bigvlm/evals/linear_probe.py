"""The linear probe: logistic regression on frozen image features, as CLIP is judged by (arXiv 2103.00020, §3.2).

N examples, D features, C classes.
"""

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.evals import logistic, measures, prompts, tags

log = logging.getLogger('bigvlm.evaluate')

_FIRST_STEP = 2  # decades between the first strengths tried


@dataclasses.dataclass(kw_only=True)
class LinearProbe:
    """Yields ``metric`` on ``data``, and top1, top5 and mean_per_class where they have a meaning; ``lambda``, ``validation`` (the
    metric there, at that λ), ``value`` (the objective's, per example), ``steps`` of L-BFGS, ``n``, ``n_train``, ``top1_chance``.

    The strength λ of the penalty is sought on the validation set, by ``metric``: two decades apart in ``strengths``, then
    around the best at half the distance, until there are ``per_decade`` of them; of equal ones the largest. The final fit
    is on train and validation together, and only then is ``data`` looked at. scikit-learn's C is 1/λ.

    train, data: datasets. val: the validation set; '' holds out the share ``held_out`` of ``train``, drawn by ``seed``.
    classes: names in the order of the labels, tuple or file; '' for the dataset's, and if it has none, as many as the
    largest label says. metric: see ``measures``. tags, sure: keys of several labels per image (see ``tags``), for map11.
    iterations, tolerance: see ``logistic.fit``. limit: at most so many examples of each set (0: all).

    Features are what the objective's embed gives as ``image_features_BD``, the image tower's before any projection; of an
    objective that gives none, its embedding ``image_BD``. Every process holds all of them: 4 N D bytes on the host, 4 N D
    / devices on each device; 1,281,167 × 768 are 3.9 GB.
    """
    train: str = 'probe_train'
    data: str = 'probe_test'
    val: str = ''
    held_out: float = .1
    seed: int = 0
    metric: str = 'top1'
    classes: str | tuple[str, ...] = ''
    tags: str = ''
    sure: str = ''
    strengths: tuple[float, float] = (1e-6, 1e6)
    per_decade: int = 8
    iterations: int = 1000
    tolerance: float = 1e-5
    limit: int = 0
    datasets: Callable

    reads = ('train', 'data', 'val')  # fields that name datasets

    def __post_init__(self):
        measures.check(self.metric, self.tags)
        if not 0. < self.held_out < 1.:
            raise RecipeError(f'held_out: found {self.held_out!r}; valid: above 0 and below 1')
        if len(self.strengths) != 2 or not 0. < self.strengths[0] <= self.strengths[1]:
            raise RecipeError(f'strengths: found {self.strengths!r}; valid: (lowest, highest), above 0')
        if self.per_decade not in (1, 2, 4, 8, 16):
            raise RecipeError(f'per_decade: found {self.per_decade!r}; valid: 1, 2, 4, 8, 16')
        self._classes = prompts.lines(self.classes, 'classes') if self.classes else ()

    def run(self, embedder) -> Iterator[tuple[str, float]]:
        feature_ND, label, is_val_N, names = self._seen(embedder)
        classes = len(names) or int(label.max()) + 1
        rows = logistic.place(feature_ND, label, embedder.mesh)

        def fit(counts_N: np.ndarray, strength: float) -> logistic.Fit:
            return logistic.fit(rows, counts_N, strength, classes, self.iterations, self.tolerance)

        def on_validation(exponent: float) -> float:
            fitted = fit(~is_val_N, 10. ** exponent)
            found = measures.measure(self.metric, logistic.predict(feature_ND[is_val_N], fitted), label[is_val_N])
            log.info('  λ = 1e%+.3f: %s %.4f on validation, %d steps', exponent, self.metric, found, int(fitted.steps))
            return found
        exponent, validation = sweep(on_validation, *map(math.log10, self.strengths), self.per_decade)
        fitted = fit(np.ones(len(label), bool), 10. ** exponent)

        test_ND, test_label = self._read(embedder, self.data, 'data', names)
        if not self.tags and test_label.max() >= classes:
            raise RecipeError(f'data: {self.data!r} has label {test_label.max()}, but {self.train!r} has {classes} classes')
        score_NC = logistic.predict(test_ND, fitted)
        for metric in dict.fromkeys((self.metric, *(() if self.tags else ('top1', 'top5', 'mean_per_class')))):
            yield metric, measures.measure(metric, score_NC, test_label)
        for name, value in (('lambda', 10. ** exponent), ('validation', validation), ('value', fitted.value),
                            ('steps', fitted.steps), ('n', len(test_label)), ('n_train', len(label))):
            yield name, float(value)
        if not self.tags:
            yield 'top1_chance', 1 / classes

    def _seen(self, embedder) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]:
        """Train and validation together: features, labels, which are for validation; and the names of the classes."""
        names = self._classes or tuple(self.datasets(self.train).label_names)
        if self.tags and not names:
            raise RecipeError(f'classes: {self.train!r} has no label names; with tags give them, a tuple or a file')
        feature_ND, label = self._read(embedder, self.train, 'train', names)
        if self.val:
            more_ND, more = self._read(embedder, self.val, 'val', names)
            is_val_N = np.repeat([False, True], [len(label), len(more)])
            feature_ND, label = np.concatenate([feature_ND, more_ND]), np.concatenate([label, more])
        else:
            is_val_N = np.zeros(len(label), bool)
            is_val_N[np.random.default_rng(self.seed).permutation(len(label))[:max(1, round(self.held_out * len(label)))]] = True
        if not self.tags and names and label.max() >= len(names):
            raise RecipeError(f'classes: {self.train!r} has label {label.max()}, but there are {len(names)} names')
        return feature_ND, label, is_val_N, names

    def _read(self, embedder, dataset: str, where: str, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        return tags.embedded(embedder.features, embedder.gather, self.datasets(dataset), names=names, tags=self.tags, sure=self.sure,
                             limit=self.limit, where=where)


def sweep(score: Callable[[float], float], low: float, high: float, per_decade: int) -> tuple[float, float]:
    """(best exponent, its score): two decades apart over [low, high], then at half the distance around the best, and so on."""
    steps = round((high - low) / _FIRST_STEP)
    found = {low + _FIRST_STEP * i: None for i in range(steps + 1)} if steps else {low: None}
    found = {exponent: score(exponent) for exponent in found}

    def best() -> float:
        return max(found, key=lambda exponent: (found[exponent], exponent))
    distance = _FIRST_STEP / 2
    while distance >= 1 / per_decade:
        middle = best()
        for exponent in (middle - distance, middle + distance):
            if low <= exponent <= high and exponent not in found:
                found[exponent] = score(exponent)
        distance /= 2
    return best(), found[best()]
