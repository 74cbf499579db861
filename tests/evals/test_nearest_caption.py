import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.neighbors import NearestNeighbors

from bigvlm.core.parts import RecipeError
from bigvlm.evals.nearest_caption import Idf, NearestCaption, expected_top1, nearest
from tests.evals.fake import FakeDataset


def build(**fields):
    sets = dict(train=FakeDataset(30, captions=3), test=FakeDataset(12, classes=6, seed=1))
    return sets, NearestCaption(zero_shot='test', retrieval='test', datasets=sets.get, **fields)


def test_copies_of_training_images_are_found():
    sets, part = build(size=8)
    sets['test'].images[:] = sets['train'].images[10:22]
    idf = Idf([c for own in sets['train']._captions for c in own])
    lent = [max(own, key=idf.weight) for own in sets['train']._captions[10:22]]
    sets['test']._captions = [(text,) for text in lent]
    result = dict(part.run())
    assert result['retrieval/image_to_text_r1'] == result['retrieval/text_to_image_r1'] == 1
    assert result['neighbours'].rows[0].items[0].text == lent[0]
    assert 0 <= result['zero_shot/top1'] < 1


def test_nearest_equals_scikit_learn():
    rng = np.random.default_rng(0)
    query, train = rng.normal(size=(40, 6)), rng.normal(size=(70, 6)) + 50
    expected = NearestNeighbors(n_neighbors=1).fit(train).kneighbors(query, return_distance=False)[:, 0]
    np.testing.assert_array_equal(nearest(query, train), expected)


def test_words_are_weighted_as_scikit_learn_does():
    texts = ['a red cat', 'a blue cat', 'a red dog and a red cat', 'boats', 'the dog']
    reference = TfidfVectorizer(binary=True, token_pattern=r'\w+', smooth_idf=True).fit(texts)
    reference.idf_ = reference.idf_ - 1  # scikit-learn adds 1 so that no word weighs nothing
    queries, candidates = ['red dog', 'the cat'], texts
    a, b = Idf(texts).vectors(queries, candidates)
    np.testing.assert_allclose((a @ b.T).toarray(),
                               (reference.transform(queries) @ reference.transform(candidates).T).toarray(), atol=1e-6)


def test_equal_candidates_share_the_chance():
    a, b = Idf(['x', 'y', 'z']).vectors(['x', 'q'], ['x one', 'x one', 'y', 'z'])
    # 'x' is equally like two candidates, one of them right; 'q' is like none, so like all four.
    assert expected_top1(a, b, np.array([0, 2]), np.arange(4)) == pytest.approx((1 / 2 + 1 / 4) / 2)


def test_nothing_to_do_is_an_error():
    with pytest.raises(RecipeError, match='both are empty'):
        NearestCaption(datasets=None)
