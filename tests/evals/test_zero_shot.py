import json

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, confusion_matrix, roc_auc_score, top_k_accuracy_score

from bigvlm.core.parts import RecipeError
from bigvlm.evals import measures, prompts
from bigvlm.evals.zero_shot import ZeroShot
from bigvlm.figures import Confusion
from tests.evals.fake import MESHES, FakeDataset, dense, embedder, mesh, tokenize

LENGTH = 12


def evaluate(dataset, model, **fields):
    part = ZeroShot(data='test', length=LENGTH, datasets=lambda name: {'test': dataset}[name],
                    tokenizers={'text': tokenize}, **fields)
    return dict(part.run(model))


def dense_scores(dataset, templates):
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
    classes = []
    for name in dataset.label_names:
        texts = tokenize([t.format(name) for t in templates], LENGTH)
        classes.append(unit(unit(dense('text', texts)).mean(0)))
    return dense('image', dataset.images) @ np.stack(classes).T


@pytest.mark.parametrize('on', MESHES)
def test_accuracies_equal_scikit_learn_on_every_mesh(on):
    dataset = FakeDataset(61, classes=9)
    dataset.labels[dataset.labels == 4] = 5  # class 4 has a name but no example
    templates = ('a {} here', 'the {}', '{}')
    result = evaluate(dataset, embedder(mesh(on)), templates=templates)
    score_NC = dense_scores(dataset, templates)
    predicted_N, label_N = score_NC.argmax(1), dataset.labels
    assert result['top1'] == pytest.approx(top_k_accuracy_score(label_N, score_NC, k=1, labels=range(9)))
    assert result['top5'] == pytest.approx(top_k_accuracy_score(label_N, score_NC, k=5, labels=range(9)))
    with pytest.warns(UserWarning, match='not in y_true'):  # class 4 is predicted but never right
        assert result['mean_per_class'] == pytest.approx(balanced_accuracy_score(label_N, predicted_N))
    assert result['n'] == 61 and result['top1_chance'] == pytest.approx(1 / 9)
    assert result['top5'] > result['top1'] > 0
    occurring = np.union1d(label_N, predicted_N)
    expected_CC = confusion_matrix(label_N, predicted_N, labels=occurring)
    np.testing.assert_array_equal(result['confusion'].counts_CC, expected_CC)
    assert result['confusion'].names == tuple(dataset.label_names[c] for c in occurring)
    assert (dataset.reads > 0).all() and dataset.reads.sum() == 61 + 8  # each once, and the pictures shown


def test_an_objective_may_average_the_scores_of_prompts():
    dataset, model, templates = FakeDataset(61, classes=9), embedder(), ('a {} here', 'the {}', '{}')
    model.average_scores = True
    prompts_TCL = [tokenize([t.format(name) for name in dataset.label_names], LENGTH) for t in templates]
    scores_NCT = np.stack([dense('image', dataset.images) @ dense('text', prompts_CL).T for prompts_CL in prompts_TCL], axis=2)
    result = evaluate(dataset, model, templates=templates)
    assert result['top1'] == pytest.approx((scores_NCT.mean(2).argmax(1) == dataset.labels).mean())
    assert result['examples'].rows[0].items[0].value == pytest.approx(scores_NCT.mean(2)[0].max())


def test_a_substituted_item_is_left_out():
    dataset = FakeDataset(30, classes=5, substitute={3: 4})
    result = evaluate(dataset, embedder(), templates='plain')
    score_NC, keep = dense_scores(FakeDataset(30, classes=5), ('{}',)), np.arange(30) != 3
    assert result['n'] == 29
    assert result['top1'] == pytest.approx((score_NC.argmax(1) == dataset.labels)[keep].mean())


def test_few_classes_and_examples():
    result = evaluate(FakeDataset(3, classes=2), embedder(), templates='photo')
    assert result['top5'] == result['top5_chance'] == 1
    assert len(result['examples'].rows) == 3


def test_most_confused_pairs():
    figure = Confusion.count(np.array([0, 0, 0, 2, 2]), np.array([2, 2, 0, 2, 0]), ('a', 'b', 'c'))
    assert figure.names == ('a', 'c')
    assert figure.pairs == (('a', 'c', 2, 3), ('c', 'a', 1, 2))


def test_many_classes_are_pooled():
    label_N = np.arange(1000)
    figure = Confusion.count(label_N, label_N[::-1], tuple(map(str, label_N)))
    assert figure.counts_CC.shape == (125, 125) and figure.counts_CC.sum() == 1000
    assert figure.names[0] == '0 … 7' and figure.counts_CC[0, -1] == 8


def test_templates_from_files(tmp_path):
    (tmp_path / 'a.json').write_text(json.dumps(['a {c}', 'the {c}']))
    (tmp_path / 'b.json').write_text(json.dumps({'cifar10': ['see {c}'], 'food101': ['eat {c}']}))
    (tmp_path / 'c.txt').write_text('one {}\n\ntwo {}\n')
    assert prompts.templates(str(tmp_path / 'a.json')) == ('a {}', 'the {}')
    assert prompts.templates(f'{tmp_path}/b.json#food101') == ('eat {}',)
    assert prompts.templates(str(tmp_path / 'c.txt')) == ('one {}', 'two {}')
    with pytest.raises(RecipeError, match='cifar10'):
        prompts.templates(str(tmp_path / 'b.json'))


def test_canonicalize():
    assert prompts.canonicalize("A Photo_of  the 'Great-White' Shark!") == 'a photo of the greatwhite shark'


def test_wrong_fields_are_named():
    with pytest.raises(RecipeError, match="templates: found 'clipp'; valid: a name .*ensemble"):
        evaluate(FakeDataset(4, classes=2), None, templates='clipp')
    with pytest.raises(RecipeError, match="'a photo' must hold"):
        evaluate(FakeDataset(4, classes=2), None, templates=('a photo',))
    with pytest.raises(RecipeError, match="'test' has no label names"):
        evaluate(FakeDataset(4), embedder())
    with pytest.raises(RecipeError, match='4 of 4 examples .* have no label'):
        evaluate(FakeDataset(4), embedder(), classes=('a', 'b'))
    with pytest.raises(RecipeError, match='there are 1 names'):
        evaluate(FakeDataset(9, classes=2), embedder(), classes=('a',))

def test_roc_auc_and_several_tags():
    dataset = FakeDataset(50, classes=2)
    score_NC = dense_scores(dataset, ('{}',))
    result = evaluate(dataset, embedder(mesh('4x2')), templates='plain', metric='roc_auc')
    assert result['roc_auc'] == pytest.approx(roc_auc_score(dataset.labels, score_NC[:, 1] - score_NC[:, 0]))
    assert result['top1'] == pytest.approx((score_NC.argmax(1) == dataset.labels).mean())

    class Tagged(FakeDataset):
        def example(self, index, epoch=0):
            return super().example(index) | {'labels': np.flatnonzero([True, index % 3 == 0]),
                                             'sure': np.array([index % 2])[:index % 3 == 0]}
    several = Tagged(50, classes=2)
    tag_NC = np.array([[1 if i % 6 == 0 else 2, 1 if i % 6 == 3 else 2 if i % 3 == 0 else 0] for i in range(50)])
    result = evaluate(several, embedder(mesh('8')), templates='plain', metric='map11', tags='labels', sure='sure')
    assert result == {'map11': pytest.approx(measures.map11(score_NC, tag_NC)), 'n': 50.}
    with pytest.raises(RecipeError, match="tags: '' with metric map11"):
        evaluate(several, embedder(), metric='map11')
