"""The linear probe against scikit-learn on the same features, on one device and on eight."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from bigvlm.core.parts import RecipeError
from bigvlm.evals import linear_probe, logistic, measures
from bigvlm.evals.linear_probe import LinearProbe
from tests.evals.fake import FakeDataset, dense, embedder, mesh, project

RNG = np.random.default_rng(0)
N, D, C = 150, 6, 4
FEATURE_ND = RNG.normal(size=(N, D)).astype(np.float32) * [3., 1., 1., .3, 1., 1.]
LABEL_N = (FEATURE_ND @ RNG.normal(size=(D, C)) + 2 * RNG.gumbel(size=(N, C))).argmax(1).astype(np.int32)
ALL = np.ones(N, bool)


def sklearn_fit(feature_ND, label_N, penalty):
    return LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=10_000).fit(feature_ND.astype(np.float64), label_N)


def objective(kernel_DC, bias_C, penalty, feature_ND=FEATURE_ND, label_N=LABEL_N):
    score_NC = feature_ND.astype(np.float64) @ kernel_DC + bias_C
    loss_N = np.log(np.exp(score_NC).sum(1)) - score_NC[np.arange(len(label_N)), label_N]
    return (loss_N.sum() + penalty / 2 * (kernel_DC ** 2).sum()) / len(label_N)


@pytest.mark.parametrize('penalty', [.01, 10.])
def test_fits_as_scikit_learn(penalty):
    fitted = logistic.fit(logistic.place(FEATURE_ND, LABEL_N, mesh('8'), tile=64), ALL, penalty, C)
    theirs = sklearn_fit(FEATURE_ND, LABEL_N, penalty)
    best = objective(theirs.coef_.T, theirs.intercept_, penalty)
    kernel_DC, bias_C = np.float64(fitted.kernel_DC), np.float64(fitted.bias_C)
    assert objective(kernel_DC, bias_C, penalty) == pytest.approx(best, rel=1e-6)
    assert float(fitted.value) == pytest.approx(best, rel=1e-5) and int(fitted.steps) < 100
    np.testing.assert_allclose(kernel_DC, theirs.coef_.T - theirs.coef_.T.mean(1, keepdims=True), atol=5e-3)
    np.testing.assert_allclose(bias_C, theirs.intercept_ - theirs.intercept_.mean(), atol=5e-3)
    score_NC = logistic.predict(FEATURE_ND, fitted)
    assert measures.top1(score_NC, LABEL_N) == theirs.score(FEATURE_ND, LABEL_N)
    assert np.abs(kernel_DC.sum(1)).max() < 1e-4 and abs(bias_C.sum()) < 1e-4


def test_rows_that_do_not_count_do_not_count():
    some = RNG.random(N) < .6
    fitted = logistic.fit(logistic.place(FEATURE_ND, LABEL_N, mesh('8'), tile=64), some, 1., C)
    theirs = sklearn_fit(FEATURE_ND[some], LABEL_N[some], 1.)
    best = objective(theirs.coef_.T, theirs.intercept_, 1., FEATURE_ND[some], LABEL_N[some])
    assert float(fitted.value) == pytest.approx(best, rel=1e-5)
    assert float(fitted.value) != pytest.approx(objective(theirs.coef_.T, theirs.intercept_, 1.), rel=1e-3)


def test_tags_are_one_regression_for_each_class_without_what_is_difficult():
    tag_NC = (FEATURE_ND @ RNG.normal(size=(D, 3)) + RNG.logistic(size=(N, 3)) > 1).astype(np.int8)
    tag_NC[RNG.random((N, 3)) < .2] = 2
    fitted = logistic.fit(logistic.place(FEATURE_ND, tag_NC, mesh('8'), tile=64), ALL, 2., 3, tolerance=1e-6)
    for c in range(3):
        known = tag_NC[:, c] < 2
        theirs = sklearn_fit(FEATURE_ND[known], tag_NC[known, c], 2.)
        np.testing.assert_allclose(fitted.kernel_DC[:, c], theirs.coef_[0], atol=2e-3)
        np.testing.assert_allclose(fitted.bias_C[c], theirs.intercept_[0], atol=2e-3)


def test_the_sweep_narrows_in_on_the_best_and_prefers_the_stronger_penalty():
    tried = []

    def score(exponent):
        tried.append(exponent)
        return -round(abs(exponent - 1.3), 3)
    assert linear_probe.sweep(score, -6., 6., 8) == (1.25, -.05)
    assert tried == [-6., -4., -2., 0., 2., 4., 6., 1., 3., .5, 1.5, 1.25, 1.75, 1.125, 1.375]
    assert linear_probe.sweep(lambda exponent: 1., -6., 6., 2) == (6., 1.)
    assert linear_probe.sweep(lambda exponent: exponent, 0., 0., 8) == (0., 0.)


def learnable(n, seed):
    """Labels that the fake model's features tell, mostly."""
    dataset, weight = FakeDataset(n, classes=5, seed=seed), np.random.default_rng(7).normal(size=(16, 5))
    score_NC = dense('image', dataset.images) @ weight
    dataset.labels = (score_NC - score_NC.mean(0) + .1 * np.random.default_rng(seed).gumbel(size=(n, 5))).argmax(1).astype(np.int32)
    return dataset


def evaluate(sets, model, **fields):
    return dict(LinearProbe(train='a', data='b', datasets=sets.__getitem__, **fields).run(model))


def test_probes_the_model_s_features():
    sets = {'a': learnable(160, 1), 'b': learnable(90, 2), 'v': learnable(40, 3)}
    sets['b'].substitute = {4: 5}  # is left out
    found = evaluate(sets, embedder(mesh('4x2')), val='v', metric='mean_per_class', strengths=(1e-3, 1e1), per_decade=1)
    assert all((s.reads == 1).all() for s in sets.values()), 'every image is embedded once'
    train = np.concatenate([sets['a'].images, sets['v'].images]), np.concatenate([sets['a'].labels, sets['v'].labels])
    feature_ND, test_ND = dense('image', train[0]), dense('image', sets['b'].images)
    theirs, keep = sklearn_fit(feature_ND, train[1], found['lambda']), np.arange(90) != 4
    assert found['value'] == pytest.approx(objective(theirs.coef_.T, theirs.intercept_, found['lambda'], feature_ND, train[1]), rel=1e-5)
    assert found['top1'] == pytest.approx(theirs.score(test_ND[keep], sets['b'].labels[keep]))
    assert found['top1'] > .6 > found['top1_chance'] == .2 and found['n'] == 89 and found['n_train'] == 200
    assert list(found)[0] == 'mean_per_class'
    at = {exponent: measures.mean_per_class(f.decision_function(feature_ND[160:]), train[1][160:]) for exponent in (-3., -1., 1., 0., -2.)
          for f in [sklearn_fit(feature_ND[:160], train[1][:160], 10 ** exponent)]}
    assert found['validation'] == pytest.approx(at[round(np.log10(found['lambda']))])


def test_features_before_the_projection_and_a_held_out_share():
    def both(batch):
        found = project(batch)
        return found | {'image_features_BD': 3 * found['image_BD']} if 'image' in batch else found
    sets = {'a': learnable(200, 1), 'b': learnable(30, 2)}  # as many as above: one compiled program
    held = evaluate(sets, embedder(mesh('4x2'), embed=both), strengths=(.1, .1), held_out=.25)
    theirs = sklearn_fit(3 * dense('image', sets['a'].images), sets['a'].labels, .1)
    assert held['top1'] == pytest.approx(theirs.score(3 * dense('image', sets['b'].images), sets['b'].labels))
    assert held['n_train'] == 200 and held['lambda'] == pytest.approx(.1) and (sets['a'].reads == 1).all()


class Several(FakeDataset):
    """Images with several tags, those whose number is 0 modulo 4 with a difficult one."""

    def example(self, index, epoch=0):
        example = super().example(index)
        present = np.flatnonzero(self.tag_NC[index])
        return example | {'labels': present, 'sure': present[1:] if index % 4 == 0 else present}


def several(n, seed):
    dataset = Several(n, seed=seed)
    dataset.tag_NC = dense('image', dataset.images) @ np.random.default_rng(5).normal(size=(16, 3)) > .3
    return dataset


def test_several_tags_per_image():
    sets = {'a': several(120, 1), 'b': several(60, 2)}
    fields = dict(metric='map11', tags='labels', sure='sure', classes=('cat', 'dog', 'boat'), strengths=(.01, .01))
    found = evaluate(sets, embedder(mesh('4x2')), **fields)
    assert found['map11'] > .8 and 'top1' not in found and found['n'] == 60
    tag_NC = sets['b'].tag_NC.astype(int)
    for i in range(0, 60, 4):
        tag_NC[i, np.flatnonzero(tag_NC[i])[:1]] = 2
    assert np.mean(tag_NC == 2) > .02
    with pytest.raises(RecipeError, match=r"tags: its examples have no 'tag'; they hold: captions, id, image, labels, sure"):
        evaluate(sets, embedder(), **{**fields, 'tags': 'tag'})
    with pytest.raises(RecipeError, match=r'tags: example \d+ has tag 2, but there are 2 classes'):
        evaluate(sets, embedder(), **{**fields, 'classes': ('cat', 'dog')})


@pytest.mark.parametrize('fields, message', [
    (dict(metric='top2'), "metric: found 'top2'; valid: top1"),
    (dict(metric='map11'), "tags: '' with metric map11; valid: map11 with tags"),
    (dict(tags='labels'), "tags: 'labels' with metric top1"), (dict(held_out=1.), 'held_out: found 1.0'),
    (dict(strengths=(0., 1.)), r'strengths: found \(0.0, 1.0\)'), (dict(per_decade=3), 'per_decade: found 3'),
    (dict(metric='map11', tags='labels'), "classes: 'a' has no label names"), (dict(), 'train: 9 of 9 examples have no label'),
    (dict(classes=('x',)), 'train: 9 of 9'),
])
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(RecipeError, match=message):
        evaluate({'a': FakeDataset(9), 'b': FakeDataset(4)}, embedder(), **fields)


PROCESS = '''
import json, sys
import jax
jax.distributed.initialize(f'localhost:{sys.argv[2]}', 2, int(sys.argv[1]))
from bigvlm.core.mesh import make_mesh
from tests.evals.fake import embedder
from tests.evals.test_linear_probe import small_probe
print(json.dumps(small_probe(embedder(make_mesh(dict(data=2, fsdp=2)), 8))))
'''


def small_probe(model):
    found = evaluate({'a': learnable(60, 1), 'b': learnable(31, 2)}, model, strengths=(.1, 10.), per_decade=1)
    return found | {'steps': 0}  # which sums are rounded differently


@pytest.mark.multiprocess
def test_two_processes_agree():
    with socket.socket() as probe:
        probe.bind(('localhost', 0))
        port = probe.getsockname()[1]
    root = Path(__file__).parents[2]
    environment = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': '--xla_force_host_platform_device_count=2', 'PYTHONPATH': str(root)}
    processes = [subprocess.Popen([sys.executable, '-c', PROCESS, str(i), str(port)], cwd=root, env=environment, text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE) for i in range(2)]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [p.returncode for p in processes] == [0, 0], outputs
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in outputs)
    assert first == second == pytest.approx(small_probe(embedder()), rel=1e-4)
