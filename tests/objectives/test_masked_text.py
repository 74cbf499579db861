"""Masked language modelling: the formula in NumPy, its gradients, texts with nothing or too much masked, meshes, micro-batches."""

from types import SimpleNamespace

import fast
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import torch_models

from bigvlm import model
from bigvlm.core import layout, rounds
from bigvlm.core import mesh as meshes
from bigvlm.core.parts import RecipeError
from bigvlm.data.ops.mask_tokens import mask_tokens
from bigvlm.model import Model
from bigvlm.nn.encoded import Encoded
from bigvlm.objectives.masked_text import MaskedText
from bigvlm.towers.bert import Bert

B, L, W, V = 8, 10, 6, 9
RNG = np.random.default_rng(0)
TOKENS = RNG.normal(size=(B, L, W)).astype(np.float32)
TABLE = RNG.normal(size=(V, W)).astype(np.float32)
TARGET = np.full((B, L), -1, np.int32)
for b, places in enumerate([(1,), (2, 5, 7), (), (0, 9), (3, 4, 5, 6), (8,), (), (1, 2)]):
    TARGET[b, list(places)] = RNG.integers(0, V, len(places))
BATCH = dict(masked_text=jnp.zeros((B, L), jnp.int32), text_target=jnp.asarray(TARGET))


class Encode:
    """The tokens above for any tower; ``model.text`` has a table."""
    model = SimpleNamespace(text=SimpleNamespace(table=lambda: jnp.asarray(TABLE)))

    def __init__(self, tokens=TOKENS):
        self.tokens = tokens

    def __call__(self, tower, key):
        assert (tower, key) == ('text', 'masked_text')
        return Encoded(self.tokens[:, 0], self.tokens)


def params(**fields):
    objective = MaskedText(vocab=V, **fields)
    shapes = jax.eval_shape(lambda: objective.init(jax.random.key(0), Encode(), BATCH, method='features'))['params']
    return objective, reference.randomise(shapes)


def by_loops(p, tokens=TOKENS, target=TARGET, most=None, eps=1e-12):
    """(sum of cross-entropies, how many, how many right, how many beyond ``most``) of each text, token by token."""
    found = []
    for text, wanted in zip(tokens, target):
        places = [at for at, token in enumerate(wanted) if token >= 0]
        total, right = 0., 0
        for at in places[:most]:
            hidden = reference.gelu(reference.dense(text[at].astype(np.float64), p['dense']))
            hidden = reference.layer_norm(hidden, p['norm'], eps)
            logits = hidden @ (p['vocabulary']['kernel'] if 'vocabulary' in p else TABLE.T) + p['bias']
            total += np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[wanted[at]]
            right += logits.argmax() == wanted[at]
        kept = len(places[:most])
        found.append((total, kept, right, len(places) - kept))
    return np.array(found).T


def run(objective, p, batch=BATCH, tokens=TOKENS, promotion='strict'):
    def loss(p, tokens):
        features = objective.apply({'params': p}, Encode(tokens), batch, method='features')
        value, metrics = objective.apply({'params': p}, features, method='loss')
        return value, (features, metrics)
    with jax.numpy_dtype_promotion(promotion):  # Flax's norms need the standard one for bfloat16
        (value, (features, metrics)), gradient = fast.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(p, tokens)
    return value, features, metrics, gradient


@pytest.mark.parametrize('fields', [dict(most=4), dict(most=2), dict(most=4, tied=True)], ids=str)
def test_value_and_gradient_equal_the_formula(fields):
    objective, p = params(**fields)
    assert ('vocabulary' in p['head']) != objective.tied
    value, features, metrics, gradient = run(objective, p)
    total, count, right, left = by_loops(reference.float64(p)['head'], most=objective.most)
    assert left.sum() == (3 if objective.most == 2 else 0)
    for name, wanted in dict(sum_B=total, count_B=count, right_B=right, left_B=left).items():
        np.testing.assert_allclose(features[name], wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(value, total.sum() / count.sum(), rtol=1e-5)
    wanted = dict(accuracy=right.sum() / count.sum(), masked=count.mean(), left_out=left.mean())
    np.testing.assert_allclose([metrics[key] for key in wanted], [*wanted.values()], rtol=1e-6)
    np.testing.assert_allclose(metrics['loss_B'].mean(), value, rtol=1e-6)
    assert metrics['loss_B'][2] == 0

    def loss(both):
        total, count, *_ = by_loops(both['p']['head'], both['tokens'], most=objective.most)
        return total.sum() / count.sum()
    errors = reference.slope_errors(loss, {'p': p, 'tokens': TOKENS}, {'p': gradient[0], 'tokens': gradient[1]})
    assert max(errors.values()) < 2e-5, errors
    assert not np.asarray(gradient[1])[TARGET < 0].any(), 'a token that is not predicted has a gradient'


def test_bfloat16_tokens_have_float32_logits():
    objective, p = params(most=4)
    value, features, _, gradient = run(objective, p, tokens=jnp.asarray(TOKENS, jnp.bfloat16), promotion='standard')
    exact = by_loops(reference.float64(p)['head'])[0]
    assert reference.relative(features['sum_B'], exact) < .02
    assert value.dtype == jnp.float32 and {leaf.dtype for leaf in jax.tree.leaves(gradient[0])} == {jnp.dtype('float32')}


def test_nothing_masked_is_no_loss_and_no_gradient():
    objective, p = params(most=4)
    value, _, metrics, gradient = run(objective, p, BATCH | dict(text_target=jnp.full((B, L), -1)))
    assert value == metrics['accuracy'] == 0 and not any(np.asarray(g).any() for g in jax.tree.leaves(gradient))


def test_how_many_are_predicted_by_default_and_by_positions():
    """The op's own bound, and the op's positions: the same loss from either form of what it writes."""
    class Letters:
        special, size, mask_id = np.arange(V) == 0, V, V - 1
    given = RNG.integers(1, V, (B, 40)).astype(np.int32)
    given[1, 5:], given[2] = 0, 0
    whole, placed = ([mask_tokens({'text': Letters}, **fields)({'text': text}, np.random.default_rng(b)) for b, text in enumerate(given)]
                     for fields in ({}, dict(positions='places')))
    tokens = RNG.normal(size=(B, 40, W)).astype(np.float32)
    default, p = params()
    value, features, _, _ = run(default, p, {key: np.stack([e[key] for e in whole]) for key in whole[0]}, tokens)
    assert features['count_B'].tolist() == [6, 1, 0, 6, 6, 6, 6, 6] and not features['left_B'].any()
    by_place = MaskedText(vocab=V, positions='places', most=6)
    assert by_place.example() == {'places': ((6,), 'int32'), 'text_target': ((6,), 'int32')} and by_place.towers().keys() == {'masked_text'}
    assert default.example() == {} and default.towers().keys() == {'masked_text', 'text_target'}
    again, other, _, _ = run(by_place, p, {key: np.stack([e[key] for e in placed]) for key in placed[0]}, tokens)
    np.testing.assert_allclose(again, value, rtol=1e-6)
    np.testing.assert_allclose(other['sum_B'], features['sum_B'], rtol=1e-5, atol=1e-6)


def test_a_target_beyond_the_vocabulary_shows():
    objective, p = params(most=4)
    value, *_ = run(objective, p, BATCH | dict(text_target=jnp.where(TARGET >= 0, V, -1)))
    assert np.isnan(value)


MODEL = Model(
    {'text': lambda: Bert(size='', width=8, depth=1, heads=2, vocab=V, length=L, dtype='float32', dropout=.2)},
    {'words': lambda: MaskedText(vocab=V, most=3), 'tied': lambda: MaskedText(vocab=V, most=3, tied=True, weight=.5)})


def test_micro_batches_on_a_mesh_have_the_same_gradient():
    """Two objectives, one encoding; the parameters stored in parts. Texts have different numbers of masked tokens, so means of
    micro-batches' means would differ; and with a head, or a table, that was gathered wrongly its gradient would."""
    batch = dict(masked_text=RNG.integers(1, V, (B, L)).astype(np.int32), text_target=TARGET,
                 id=np.stack([np.zeros(B), np.arange(B)], axis=1).astype(np.uint32))
    shapes = jax.eval_shape(lambda: MODEL.init(jax.random.key(0), {'pairs': batch}, method='init_all'))['params']
    p, rules = reference.randomise(shapes), model.rounds(MODEL, jax.random.key(7), 'pairs', second=False)

    def run(micro):
        return fast.jit(lambda p, batch: rounds.value_and_grad(rules, p, {}, batch, micro=micro))
    (value, metrics, _), gradient = run(1)(p, batch)
    np.testing.assert_allclose(value, metrics['words/loss'] + .5 * metrics['tied/loss'], rtol=1e-6)
    mesh = meshes.make_mesh(dict(data=1, fsdp=2), jax.devices()[:2])
    stored = layout.make((('.*', 'fsdp'),), reference.flat(shapes), mesh)
    assert stored.specs['text/embed/embedding'][1] == stored.specs['words/head/dense/kernel'][0] == 'fsdp'
    with jax.set_mesh(mesh), layout.activate(stored):
        placed = reference.nested({path: jax.device_put(leaf, sharding) for (path, leaf), sharding in zip(
            reference.flat(p).items(), stored.shardings(mesh, reference.flat(p)).values())})
        (again, metrics_2, _), gradient_2 = run(2)(placed, jax.device_put(batch, meshes.batch_sharding(mesh)))
    np.testing.assert_allclose(again, value, rtol=1e-5)
    np.testing.assert_allclose(metrics_2['words/loss_B'], metrics['words/loss_B'], rtol=1e-4, atol=1e-6)
    gradient, gradient_2 = reference.flat(gradient), reference.flat(gradient_2)
    whole = max(np.abs(leaf).max() for leaf in gradient.values())
    for path, leaf in gradient.items():
        assert np.abs(gradient_2[path] - leaf).max() < 2e-5 * whole, path


def test_impossible_recipes_are_refused():
    with pytest.raises(RecipeError, match="no 'text_target' .*it has: masked_text"):
        MaskedText(vocab=V).init(jax.random.key(0), Encode(), dict(masked_text=BATCH['masked_text']), method='features')
    with pytest.raises(RecipeError, match='most: found 0; valid: the length of positions'):
        MaskedText(positions='places')
    with pytest.raises(RecipeError, match='most: found -1'):
        MaskedText(most=-1)
    with pytest.raises(RecipeError, match='vocab: found 0'):
        MaskedText(vocab=0)
    encode = Encode()
    encode.model = SimpleNamespace(text=SimpleNamespace())
    with pytest.raises(RecipeError, match='tied: towers.text has no table'):
        MaskedText(tied=True).init(jax.random.key(0), encode, BATCH, method='features')


@pytest.mark.parity
def test_equals_transformers_masked_language_model():
    """BertForMaskedLM, whose prediction is tied to the table: its mean cross-entropy, of random weights."""
    torch = pytest.importorskip('torch')
    transformers = torch_models.transformers()
    from bigvlm.towers.bert import FOREIGN
    torch.manual_seed(0)
    other = transformers.BertForMaskedLM(transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=12,
        hidden_dropout_prob=0., attention_probs_dropout_prob=0.)).eval()
    with torch.no_grad():
        for weight in other.parameters():
            weight.copy_(.3 * torch.randn(weight.shape))
    weights = {key.removeprefix('bert.'): value.numpy() for key, value in other.state_dict().items()}
    found = {}
    for path, theirs in FOREIGN.items():
        if path.startswith('pooler'):
            continue
        arrays = [weights[theirs.format(i)] for i in range(2 if '{}' in theirs else 1)]
        found[path] = np.stack([a.T if path.endswith('kernel') else a for a in arrays]) if '{}' in theirs else arrays[0]
    of_head = {'dense/kernel': 'transform.dense.weight', 'dense/bias': 'transform.dense.bias', 'norm/scale': 'transform.LayerNorm.weight',
               'norm/bias': 'transform.LayerNorm.bias', 'bias': 'bias'}
    head = {path: weights[f'cls.predictions.{name}'].T for path, name in of_head.items()}
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 40, (3, 10))
    target = np.where(rng.random((3, 10)) < .3, ids, -1)
    with torch.no_grad():
        theirs = other(torch.tensor(ids), labels=torch.tensor(np.where(target < 0, -100, target))).loss.item()
    tower = Bert(size='', width=16, depth=2, heads=2, mlp_dim=32, vocab=40, length=12, dtype='float32')
    bound = tower.bind({'params': reference.nested(found)})

    class Run(Encode):
        model = SimpleNamespace(text=bound)

        def __call__(self, tower, key):
            return bound(jnp.asarray(ids, jnp.int32))
    objective = MaskedText(vocab=40, tied=True, most=10)
    variables = {'params': {'head': reference.nested(head)}}
    features = objective.apply(variables, Run(), dict(masked_text=ids, text_target=jnp.asarray(target, jnp.int32)), method='features')
    assert abs(float(objective.apply(variables, features, method='loss')[0]) - theirs) < 1e-5
