"""Zero-shot classification: the class whose prompts are nearest to the image (CLIP, arXiv 2103.00020 §3.1.4).

N: images, n of them at once, C: classes, T: templates, D: width, K: kept predictions.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from einops import rearrange

from bigvlm.core.parts import RecipeError
from bigvlm.evals import measures, prompts, tags
from bigvlm.evals.examples import Images, spread
from bigvlm.figures import Confusion, Gallery, Item, Row

_ROWS = 4096  # images whose scores over all classes are held at once


@dataclasses.dataclass(kw_only=True)
class ZeroShot:
    """Yields top1, top5, mean_per_class (fractions), their ``_chance``, n, and figures ``confusion`` and ``examples``.

    data: dataset with ``label``. tokenizer, length: how prompts become tokens. templates: a tuple, a built-in set or a
    file (see ``prompts.templates``). classes: names in the order of the labels, tuple or file; '' for the dataset's.
    canonicalize: lower-case and strip punctuation, as SigLIP. limit: at most so many images (0: all).
    A class embedding is the normalised mean of its normalised prompt embeddings; where the objective's ``average_scores`` is
    true (embeddings are not vectors: FILIP's tokens) a class's score is the mean of its prompts'. Of equal scores the first
    class wins. metric: one more of ``measures``, by its name. tags, sure: keys of several labels per image (see ``tags``):
    then map11 and n are all there is.
    """
    data: str = 'zero_shot'
    tokenizer: str = 'text'
    length: int = 64
    templates: str | tuple[str, ...] = 'photo'
    classes: str | tuple[str, ...] = ''
    canonicalize: bool = False
    limit: int = 0
    metric: str = 'top1'
    tags: str = ''
    sure: str = ''
    examples: int = 8
    datasets: Callable
    tokenizers: Mapping

    reads = ('data',)  # fields that name datasets

    def __post_init__(self):
        measures.check(self.metric, self.tags)
        self._templates = prompts.templates(self.templates)
        self._classes = prompts.lines(self.classes, 'classes') if self.classes else ()

    def run(self, embedder) -> Iterator[tuple[str, float | Confusion | Gallery]]:
        dataset = self.datasets(self.data)
        names = self._classes or tuple(dataset.label_names)
        if not names:
            raise RecipeError(f'data: dataset {self.data!r} has no label names; give classes, a tuple or a file')
        score = class_scorer(embedder, self.prompt_embeddings(embedder, names), len(self._templates))
        if self.tags:
            image_ND, tag_NC = tags.embedded(embedder.images, embedder.gather, dataset, names=names, tags=self.tags, sure=self.sure,
                                             limit=self.limit)
            yield self.metric, measures.measure(self.metric, score(image_ND), tag_NC)
            yield 'n', float(len(tag_NC))
            return
        images = Images(dataset, self.limit)
        image_ND = embedder.images(images)
        real_N = embedder.gather(images.real_N).astype(bool)
        label_N, index_N = embedder.gather(images.label_N)[real_N], np.flatnonzero(real_N)
        self._check(label_N, names)
        top_NK, score_NK = self._top(score, image_ND[real_N])

        right_NK = top_NK == label_N[:, None]
        yield 'top1', float(right_NK[:, 0].mean())
        yield 'top5', float(right_NK.any(axis=1).mean())
        yield 'mean_per_class', float(np.mean([right_NK[label_N == c, 0].mean() for c in np.unique(label_N)]))
        if self.metric not in ('top1', 'top5', 'mean_per_class'):
            yield self.metric, measures.measure(self.metric, score(image_ND[real_N]), label_N)
        yield 'n', float(len(label_N))
        for key, k in (('top1', 1), ('top5', top_NK.shape[1]), ('mean_per_class', 1)):
            yield f'{key}_chance', k / len(names)
        yield 'confusion', Confusion.count(label_N, top_NK[:, 0], names)
        yield 'examples', Gallery('Zero-shot predictions', tuple(
            Row(Item(text=names[label_N[i]], image=images[int(index_N[i])]),
                tuple(Item(text=names[c], right=bool(c == label_N[i]), value=float(s))
                      for c, s in zip(top_NK[i], score_NK[i])))
            for i in spread(len(label_N), self.examples)))

    def prompt_embeddings(self, embedder, names: tuple[str, ...]) -> np.ndarray:
        """float32 [C·T,D], class by class."""
        texts = [template.replace('{}', name) for name in names for template in self._templates]
        return embedder.texts(prompts.tokens(self.tokenizers, self.tokenizer, texts, self.length, self.canonicalize))

    def _top(self, score: Callable[[np.ndarray], np.ndarray], image_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The five best classes of each image, best first, and their scores: both [N, min(5, C)]."""
        best, scores = [], []
        for start in range(0, len(image_ND), _ROWS):
            score_nC = score(image_ND[start:start + _ROWS])
            best.append(np.argsort(-score_nC, axis=1, kind='stable')[:, :5])
            scores.append(np.take_along_axis(score_nC, best[-1], axis=1))
        return np.concatenate(best), np.concatenate(scores)

    def _check(self, label_N: np.ndarray, names: tuple[str, ...]) -> None:
        if not len(label_N):
            raise RecipeError(f'data: no image of dataset {self.data!r} could be read')
        if label_N.min() < 0:
            raise RecipeError(f'data: {int((label_N < 0).sum())} of {len(label_N)} examples of {self.data!r} have no '
                              'label; zero_shot needs one per image')
        if label_N.max() >= len(names):
            raise RecipeError(f'classes: {self.data!r} has label {label_N.max()}, but there are {len(names)} names')


def class_scorer(embedder, text_PD: np.ndarray, templates: int) -> Callable[[np.ndarray], np.ndarray]:
    """A function of images [n,D] that gives their scores for all classes [n,C]. ``text_PD``: of ``templates`` prompts for each."""
    if embedder.average_scores:
        return lambda image_nD: rearrange(embedder.score(image_nD, text_PD), 'n (c t) -> n c t', t=templates).mean(axis=2)
    class_CD = _unit(_unit(rearrange(text_PD, '(c t) d -> c t d', t=templates)).mean(axis=1))
    return lambda image_nD: embedder.score(image_nD, class_CD)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
