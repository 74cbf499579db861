"""What classification is measured by: formulas over scores, higher for what is thought more likely.

N: examples, C: classes. Where scores are equal, the first class wins, and the example that comes first.
"""

from collections.abc import Callable

import numpy as np

from bigvlm.core.parts import RecipeError


def top1(score_NC: np.ndarray, label_N: np.ndarray) -> float:
    """The share of examples whose best class is theirs."""
    return _among(score_NC, label_N, 1)


def top5(score_NC: np.ndarray, label_N: np.ndarray) -> float:
    """The share of examples whose class is among their five best."""
    return _among(score_NC, label_N, 5)


def top1_top5(score_NC: np.ndarray, label_N: np.ndarray) -> float:
    """The mean of top-1 and top-5: the measure of Kinetics-700."""
    return (top1(score_NC, label_N) + top5(score_NC, label_N)) / 2


def mean_per_class(score_NC: np.ndarray, label_N: np.ndarray) -> float:
    """The mean over the classes that occur of the share of their examples whose best class is theirs."""
    right_N = score_NC.argmax(axis=1) == label_N
    return float(np.mean([right_N[label_N == c].mean() for c in np.unique(label_N)]))


def roc_auc(score_NC: np.ndarray, label_N: np.ndarray) -> float:
    """Of two classes: the chance that an example of class 1 leans more to class 1 than one of class 0; ties count half.

    Raises RecipeError for other than two classes, or if only one of them occurs.
    """
    if score_NC.shape[1] != 2:
        raise RecipeError(f'metric: roc_auc is of two classes, not of {score_NC.shape[1]}')
    positive_N = label_N == 1
    n = int(positive_N.sum())
    if n in (0, len(label_N)):
        raise RecipeError('metric: roc_auc needs examples of both classes')
    lean_N = score_NC[:, 1].astype(np.float64) - score_NC[:, 0]
    _, place_N, count = np.unique(lean_N, return_inverse=True, return_counts=True)
    rank_N = (np.cumsum(count) - (count - 1) / 2)[place_N]  # of equal ones, the mean rank
    return float((rank_N[positive_N].sum() - n * (n + 1) / 2) / (n * (len(label_N) - n)))


def map11(score_NC: np.ndarray, tag_NC: np.ndarray) -> float:
    """Of several labels per image: the mean over classes of the 11-point average precision of PASCAL VOC 2007.

    ``tag_NC``: 1 present, 0 absent, 2 difficult: left out of that class's ranking. Of a class's images in the order of
    their scores, the average precision is the mean over r = 0, .1, …, 1 of the largest precision at a recall of at least
    r (Everingham et al., IJCV 2010, §4.2). Classes of which no image is present are left out.
    """
    found = [_average_precision(score_NC[tag_NC[:, c] < 2, c], tag_NC[tag_NC[:, c] < 2, c] == 1)
             for c in range(tag_NC.shape[1]) if (tag_NC[:, c] == 1).any()]
    if not found:
        raise RecipeError('metric: map11 needs at least one image with a label')
    return float(np.mean(found))


SINGLE: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {f.__name__: f for f in (top1, top5, top1_top5, mean_per_class, roc_auc)}
MULTI: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {f.__name__: f for f in (map11,)}


def check(metric: str, tags: str) -> None:
    """Raises RecipeError for a metric that is none of SINGLE (one label per image), or of MULTI (several) if the field ``tags`` is set."""
    if metric not in SINGLE | MULTI:
        raise RecipeError(f'metric: found {metric!r}; valid: {", ".join(SINGLE | MULTI)}')
    if bool(tags) != (metric in MULTI):
        raise RecipeError(f'tags: {tags!r} with metric {metric}; valid: {", ".join(MULTI)} with tags, and {", ".join(SINGLE)} without')


def measure(metric: str, score_NC: np.ndarray, label: np.ndarray) -> float:
    """``metric`` of scores and labels: [N], the number of each example's class, or for MULTI tags [N, C]."""
    return (SINGLE | MULTI)[metric](score_NC, label)


def _among(score_NC: np.ndarray, label_N: np.ndarray, k: int) -> float:
    own_N = np.take_along_axis(score_NC, label_N[:, None], axis=1)
    before_NC = (score_NC == own_N) & (np.arange(score_NC.shape[1]) < label_N[:, None])
    ahead_N = ((score_NC > own_N) | before_NC).sum(axis=1)
    return float((ahead_N < k).mean())


def _average_precision(score_N: np.ndarray, present_N: np.ndarray) -> float:
    present_N = present_N[np.argsort(-score_N.astype(np.float64), kind='stable')]
    hits_N = np.cumsum(present_N)
    precision_N, recall_N = hits_N / np.arange(1, len(hits_N) + 1), hits_N / hits_N[-1]
    # Recalls are k / n; 1e-9 lets 3 / 10 reach .3.
    return float(np.mean([precision_N[recall_N >= r / 10 - 1e-9].max() for r in range(11)]))
