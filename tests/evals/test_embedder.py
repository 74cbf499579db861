import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigvlm.core.parts import RecipeError
from bigvlm.evals.embed import Embedder
from bigvlm.evals.examples import Images
from tests.evals.fake import MESHES, FakeDataset, dense, embedder, mesh, tokenize


@pytest.mark.parametrize('on', MESHES)
@pytest.mark.parametrize('n', [1, 16, 33])
def test_every_example_once_in_order(on, n):
    dataset = FakeDataset(n)
    image_ND = embedder(mesh(on)).images(Images(dataset))
    np.testing.assert_allclose(image_ND, dense('image', dataset.images), atol=1e-5)
    assert (dataset.reads == 1).all()


def test_one_compiled_shape_per_kind():
    shapes = []

    def embed(batch):
        shapes.append({key: x.shape for key, x in batch.items()})  # runs when traced
        return {f'{key}_BD': jnp.ones((len(x), 2)) for key, x in batch.items()}
    model = embedder(mesh('8'), batch=12, embed=embed)
    model.images(Images(FakeDataset(40)))
    model.images(Images(FakeDataset(3)))
    model.texts(tokenize(['red cat'] * 5, 4))
    assert shapes == [{'image': (16, 8, 8, 3)}, {'text': (16, 4)}]  # 12 rounded up to fill 8 shards


def test_batches_lie_on_the_whole_mesh():
    seen = []

    def embed(batch):
        seen.append(batch['text'].sharding)
        return dict(text_BD=batch['text'])
    Embedder(embed, None, mesh('4x2'), 16).texts(np.zeros((5, 2), np.int32))
    assert len(seen[0].device_set) == 8 and seen[0].shard_shape((16, 2)) == (2, 2)


@pytest.mark.parametrize('m, n', [(1, 1), (5, 1500), (1030, 3)])
def test_score_is_the_dot_product(m, n):
    rng = np.random.default_rng(0)
    image_MD, text_ND = rng.normal(size=(m, 4)).astype('f'), rng.normal(size=(n, 4)).astype('f')
    np.testing.assert_allclose(embedder().score(image_MD, text_ND), image_MD @ text_ND.T, atol=1e-5)


def test_score_of_the_objective():
    model = Embedder(lambda batch: batch, jax.jit(lambda a, b: -jnp.abs(a[:, None, 0] - b[None, :, 0])))
    np.testing.assert_array_equal(model.score(np.array([[1.], [5.], [7.]]), np.array([[2.], [7.]])),
                                  [[-1, -6], [-3, -2], [-5, 0]])


def test_problems_are_named():
    nan = lambda batch: dict(text_BD=jnp.where(batch['text'] == 3, jnp.nan, 1.))
    with pytest.raises(FloatingPointError, match='1 of 5 text embeddings'):
        embedder(embed=nan).texts(np.arange(5, dtype=np.int32)[:, None])
    with pytest.raises(RecipeError, match="gives no 'image_BD'"):
        embedder(embed=lambda batch: dict(text_BD=batch['image'])).images(Images(FakeDataset(2)))
    with pytest.raises(RecipeError, match='one shape'):
        embedder().images([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)])
    with pytest.raises(RecipeError, match='at least one example'):
        embedder().images([])
