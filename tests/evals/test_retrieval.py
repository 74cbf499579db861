import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import top_k_accuracy_score

from bigvlm.core.parts import RecipeError
from bigvlm.evals import retrieval
from bigvlm.evals.retrieval import Retrieval, ranks
from bigvlm.figures import Gallery
from tests.evals.fake import MESHES, FakeDataset, dense, embedder, mesh, tokenize

LENGTH = 6


def evaluate(dataset, model, **fields):
    part = Retrieval(data='val', length=LENGTH, datasets=lambda name: {'val': dataset}[name],
                     tokenizers={'text': tokenize}, **fields)
    return dict(part.run(model))


def brute_force(score_NM, owner_M, k):
    """R@k by sorting whole rows; for data without ties."""
    text_to_image = np.mean([owner in np.argsort(-column)[:k] for column, owner in zip(score_NM.T, owner_M)])
    image_to_text = np.mean([i in owner_M[np.argsort(-row)[:k]] for i, row in enumerate(score_NM)])
    return image_to_text, text_to_image


def dense_scores(dataset):
    captions = [c for own in dataset._captions for c in own]
    owner_M = np.repeat(np.arange(len(dataset)), [len(own) for own in dataset._captions])
    return dense('image', dataset.images) @ dense('text', tokenize(captions, LENGTH)).T, owner_M


@pytest.mark.parametrize('on', MESHES)
def test_recall_equals_brute_force_on_every_mesh(on):
    dataset = FakeDataset(37, captions=4)  # 37 is no multiple of the batch, nor of 8
    result = evaluate(dataset, embedder(mesh(on)))
    score_NM, owner_M = dense_scores(dataset)
    for k in (1, 5, 10):
        image_to_text, text_to_image = brute_force(score_NM, owner_M, k)
        assert result[f'image_to_text_r{k}'] == pytest.approx(image_to_text, abs=1e-12)
        assert result[f'text_to_image_r{k}'] == pytest.approx(text_to_image, abs=1e-12)
        assert result[f'text_to_image_r{k}'] == pytest.approx(
            top_k_accuracy_score(owner_M, score_NM.T, k=k, labels=range(37)), abs=1e-12)
    assert result['n'] == 37 and result['captions'] == len(owner_M)
    ranks_M = 1 + (score_NM > score_NM[owner_M, np.arange(len(owner_M))]).sum(axis=0)
    assert result['text_to_image_median_rank'] == np.median(ranks_M)
    assert 0 < result['text_to_image_r5'] < 1  # the numbers can be wrong


def test_chunks_do_not_change_ranks():
    rng = np.random.default_rng(0)
    image_ND, owner_M = rng.normal(size=(50, 8)), np.sort(np.concatenate([np.arange(50), rng.integers(0, 50, 71)]))
    text_MD = image_ND[owner_M] + rng.normal(size=(121, 8))
    score = lambda a, b: a @ b.T
    whole = ranks(score, image_ND, text_MD, owner_M)
    for chunk in (1, 7, 50, 121):
        for a, b in zip(whole, ranks(score, image_ND, text_MD, owner_M, chunk)):
            np.testing.assert_array_equal(a, b)
    score_NM = score(image_ND, text_MD)
    best = [max(score_NM[i, owner_M == i]) for i in range(50)]
    np.testing.assert_array_equal(whole[0], [1 + (score_NM[i, owner_M != i] >= best[i]).sum() for i in range(50)])


def test_ties_count_against_the_query():
    owner_M = np.array([0, 0, 1, 2])
    constant = lambda a, b: np.ones((len(a), len(b)), np.float32)
    rank_N, rank_M = ranks(constant, np.zeros((3, 2)), np.zeros((4, 2)), owner_M)
    assert rank_N.tolist() == [3, 4, 4]  # an image's other caption does not count against it
    assert rank_M.tolist() == [3, 3, 3, 3]
    nan = lambda a, b: np.full((len(a), len(b)), np.nan, np.float32)
    assert ranks(nan, np.zeros((3, 2)), np.zeros((4, 2)), owner_M)[1].tolist() == [3, 3, 3, 3]


def test_a_model_that_sees_nothing_scores_zero():
    constant = lambda batch: {f'{key}_BD': jnp.ones((len(x), 4)) / 2 for key, x in batch.items()}
    result = evaluate(FakeDataset(20, captions=2), embedder(embed=constant))
    assert result['image_to_text_r10'] == result['text_to_image_r10'] == 0


def test_chance_is_that_of_random_scores():
    rng = np.random.default_rng(1)
    owner_M = np.repeat(np.arange(12), rng.integers(1, 6, 12))
    hits = {1: [], 5: []}
    for _ in range(400):
        for k in hits:
            hits[k].append(brute_force(rng.normal(size=(12, len(owner_M))), owner_M, k)[0])
    for k, found in hits.items():
        assert np.mean(found) == pytest.approx(retrieval.image_to_text_chance(np.bincount(owner_M), k), abs=.02)


def test_a_substituted_item_is_left_out():
    whole, damaged = FakeDataset(20), FakeDataset(20, substitute={7: 8})
    result = evaluate(damaged, embedder())
    assert result['n'] == result['captions'] == 19
    keep = np.arange(20) != 7
    score_NM = dense_scores(whole)[0][keep][:, keep]
    assert result['text_to_image_r5'] == brute_force(score_NM, np.arange(19), 5)[1]


def test_an_image_without_caption_is_left_out_and_told():
    dataset = FakeDataset(20, captions=2)
    score_NM, owner_M = dense_scores(dataset)
    dataset._captions[5] = ()
    result = evaluate(dataset, embedder())
    assert result['n'] == 19 and result['without_caption'] == 1
    score_NM, owner_M = np.delete(score_NM[:, owner_M != 5], 5, axis=0), owner_M[owner_M != 5]
    assert (result['image_to_text_r5'], result['text_to_image_r5']) == brute_force(score_NM, owner_M - (owner_M > 5), 5)


def test_captions_and_limit():
    dataset = FakeDataset(20, captions=5)
    result = evaluate(dataset, embedder(), captions=1, limit=10)
    assert result['n'] == result['captions'] == 10
    assert (result['text_to_image_r1_chance'], result['image_to_text_r1_chance']) == pytest.approx((.1, .1))
    assert dataset.reads[10:].sum() == 0


def test_galleries_mark_the_right_ones():
    dataset = FakeDataset(20, captions=3)
    result = evaluate(dataset, embedder())
    score_NM, owner_M = dense_scores(dataset)
    gallery = result['image_to_text']
    assert isinstance(gallery, Gallery) and len(gallery.rows) == 4
    first = gallery.rows[0]
    np.testing.assert_array_equal(first.query.image, dataset.images[0])
    best = np.argsort(-score_NM[0])[:5]
    captions = [c for own in dataset._captions for c in own]
    assert [item.text for item in first.items] == [captions[j] for j in best]
    assert [item.right for item in first.items] == [owner_M[j] == 0 for j in best]
    row = result['text_to_image'].rows[-1]
    assert row.query.text == dataset._captions[19][0]
    shown = [(item.image == dataset.images[19]).all() for item in row.items]
    assert [item.right for item in row.items] == shown


def test_wrong_fields_are_named():
    with pytest.raises(RecipeError, match='ks'):
        evaluate(FakeDataset(4), None, ks=(0,))
    with pytest.raises(RecipeError, match=r"tokenizer: no tokenizer 'txt'.*text"):
        evaluate(FakeDataset(4), embedder(), tokenizer='txt')
    empty = FakeDataset(4)
    empty._captions = [()] * 4
    with pytest.raises(RecipeError, match="none of the 4 readable items of dataset 'val'"):
        evaluate(empty, embedder())
