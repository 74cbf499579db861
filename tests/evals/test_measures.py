"""Measures against scikit-learn and against loops over what the definitions say."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score, top_k_accuracy_score

from bigvlm.core.parts import RecipeError
from bigvlm.evals import measures

RNG = np.random.default_rng(0)
SCORE_NC = RNG.normal(size=(200, 12)).astype(np.float32)
LABEL_N = np.where(RNG.random(200) < .3, SCORE_NC.argmax(1), RNG.integers(0, 12, 200))


def test_accuracies_equal_scikit_learn():
    k1, k5 = (top_k_accuracy_score(LABEL_N, SCORE_NC, k=k, labels=range(12)) for k in (1, 5))
    assert measures.top1(SCORE_NC, LABEL_N) == pytest.approx(k1)
    assert measures.top5(SCORE_NC, LABEL_N) == pytest.approx(k5) and k5 > k1
    assert measures.measure('top1_top5', SCORE_NC, LABEL_N) == pytest.approx((k1 + k5) / 2)
    some = LABEL_N != 3  # a class that does not occur does not count
    with pytest.warns(UserWarning, match='not in y_true'):
        expected = balanced_accuracy_score(LABEL_N[some], SCORE_NC[some].argmax(1))
    assert measures.mean_per_class(SCORE_NC[some], LABEL_N[some]) == pytest.approx(expected)


def test_of_equal_scores_the_first_class_wins():
    assert measures.top1(np.zeros((3, 4)), np.array([0, 1, 3])) == pytest.approx(1 / 3)
    assert measures.top5(np.zeros((3, 7)), np.array([4, 5, 6])) == pytest.approx(1 / 3)


def test_roc_auc_equals_scikit_learn_with_ties():
    score_N2 = RNG.integers(0, 5, (300, 2)).astype(np.float32)
    label_N = (RNG.random(300) < .4).astype(int)
    expected = roc_auc_score(label_N, score_N2[:, 1] - score_N2[:, 0])
    assert measures.roc_auc(score_N2, label_N) == pytest.approx(expected) != .5


def loops_11_point(score_N, tag_N):
    """One class, by VOC's words: the best precision of any cut of the ranking that recalls at least r."""
    ranking = [i for i in np.argsort(-score_N, kind='stable') if tag_N[i] < 2]
    total, points = sum(tag_N[i] == 1 for i in ranking), []
    for tenth in range(11):
        best = 0.
        for cut in range(1, len(ranking) + 1):
            hits = sum(tag_N[i] == 1 for i in ranking[:cut])
            if 10 * hits >= tenth * total:
                best = max(best, hits / cut)
        points.append(best)
    return sum(points) / 11


def test_11_point_mean_average_precision_leaves_out_what_is_difficult():
    score_NC = RNG.normal(size=(60, 4))
    tag_NC = (RNG.random((60, 4)) < .3 + .2 * (score_NC > .5)).astype(np.int8)
    tag_NC[RNG.random((60, 4)) < .1] = 2
    tag_NC[:, 3] = 0  # no image has it
    expected = np.mean([loops_11_point(score_NC[:, c], tag_NC[:, c]) for c in range(3)])
    assert measures.map11(score_NC, tag_NC) == pytest.approx(expected)
    assert measures.map11(score_NC, np.where(tag_NC == 2, 0, tag_NC)) != pytest.approx(expected, abs=1e-3)
    assert measures.map11(tag_NC[:, :3] == 1, tag_NC[:, :3]) == 1.


@pytest.mark.parametrize('call, message', [
    (lambda: measures.check('top3', ''), "metric: found 'top3'; valid: top1, top5, .*map11"),
    (lambda: measures.check('map11', ''), "tags: '' with metric map11; valid: map11 with tags, and top1, top5, .* without"),
    (lambda: measures.roc_auc(SCORE_NC, LABEL_N), 'metric: roc_auc is of two classes, not of 12'),
    (lambda: measures.roc_auc(SCORE_NC[:, :2], np.zeros(200, int)), 'metric: roc_auc needs examples of both'),
    (lambda: measures.map11(SCORE_NC, np.zeros((200, 12), int)), 'metric: map11 needs at least one image'),
])
def test_errors(call, message):
    with pytest.raises(RecipeError, match=message):
        call()
