"""Captioning, matching and masked pairs: against formulas written again, under micro-batches, and step by step with caches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fast
from bigvlm import model as model_lib
from bigvlm.core import decoding, paths, rounds as rounds_lib
from bigvlm.core.parts import RecipeError
from bigvlm.objectives.caption import Caption, predicted
from bigvlm.objectives.matching import Matching

B, L, VOCAB, CODES, BOS, EOT, PAD = 8, 7, 40, 12, 1, 1, 0
SMALL = dict(size='', width=16, depth=1, heads=2, dtype='float64', remat='none')
EXACT = 1e-8  # attention's softmax is float32, whose rounding differs between batches of other sizes


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def spec(pool='cascade', **objectives):
    return dict(
        towers=dict(image=dict(name='vit', patch=8, image=16, pool=pool, queries=3, out_dim=8, mask_token=True, dropout=.1, **SMALL),
                    text=dict(name='text', vocab=VOCAB, length=L, causal=True, class_token=True, pool='last', pad_id=PAD, out_dim=8,
                              mask_padding=True, dropout=.1, **SMALL)),
        fusion=dict(joint=dict(name='merged', width=16, depth=1, heads=2, dtype='float64', remat='none', dropout=.1)),
        decoders=dict(captioner=dict(name='text', vocab=VOCAB, cross_mlp=pool == 'queries', dropout=.1, **SMALL)),
        objectives=objectives)


def batch():
    rng = np.random.default_rng(0)
    text = rng.integers(2, VOCAB, (B, L)).astype(np.int32)
    text[:, 0], text[0, 4], text[0, 5:], text[1, 2], text[1, 3:] = BOS, EOT, PAD, EOT, PAD
    target = np.where(rng.random((B, L)) < .3, text, -1).astype(np.int32)
    return dict(image=rng.integers(0, 256, (B, 16, 16, 3), dtype=np.uint8), text=text, masked_text=np.where(target >= 0, 3, text),
                text_target=target, patch_mask=rng.random((B, 4)) < .5, patch_codes=rng.integers(0, CODES, (B, 4)).astype(np.int32),
                id=np.stack([np.zeros(B), np.arange(B)], 1).astype(np.uint32))


def setting(config):
    model = model_lib.from_config(config)
    variables = fast.jit(lambda key, b: model.init(key, {'pairs': b}, method='init_all'))(jax.random.key(0), batch())
    params = jax.tree.map(lambda x: jnp.float64(x) + .05 * jax.random.normal(jax.random.key(x.size), x.shape), variables['params'])
    return model, params


ALL = dict(caption=dict(name='caption', weight=2., smoothing=.1),
           match=dict(name='matching', tile=4, same='captions'),
           masked=dict(name='masked_pair', image_vocab=CODES, grid=(2, 2), vocab=VOCAB, most=3))


def test_micro_batches_change_nothing():
    model, params = setting(spec(pool='gap', **ALL))
    rounds = model_lib.rounds(model, jax.random.key(7), 'pairs', True)
    found = [fast.jit(lambda p, b, micro=micro: rounds_lib.value_and_grad(rounds, p, {}, b, micro=micro))(params, batch())
             for micro in (1, 2)]
    ((loss, metrics, _), gradient), ((loss_4, metrics_4, _), gradient_4) = found
    assert abs(loss - loss_4) < EXACT
    flat, flat_4 = paths.flatten(gradient), paths.flatten(gradient_4)
    for path, g in flat.items():
        assert float(jnp.abs(g - flat_4[path]).max()) < 10 * EXACT, path
        only_selects = path.split('/')[1] == 'out'  # the towers' projections, by which matching draws its pairs
        assert 'key/bias' in path or only_selects or float(jnp.abs(g).max()) > 0, path
    for name, value in metrics.items():
        np.testing.assert_allclose(value, metrics_4[name], atol=10 * EXACT)


def encode_in(model, params, b, function):
    return model.apply({'params': params}, method=lambda m: function(m, model_lib.Encode(m, b, None, False)))


@pytest.mark.parametrize('pool', ['cascade', 'queries'])
def test_a_caption_s_loss_and_its_steps_with_caches(pool):
    """The loss by loops over the decoder's logits, which are those of the steps."""
    b = batch()
    model, params = setting(spec(pool, caption=dict(name='caption')))
    loss, metrics = fast.jit(lambda p: model.apply({'params': p}, model.apply({'params': p}, b, method='features'), method='loss'))(params)
    def steps(p):
        state, found = encode_in(model, p, b, lambda m, e: m.caption.begin(e, b)), []
        for i in range(L - 1):
            logits_BV, state = encode_in(model, p, b, lambda m, e: m.caption.advance(e, b['text'][:, i], jnp.int32(i), state))
            found.append(logits_BV)
        return jnp.stack(found, 1)
    log_p = np.asarray(jax.nn.log_softmax(fast.jit(steps)(params)))
    total = count = 0
    for text, p in zip(b['text'], log_p):
        for i in range(L - 1):
            total -= p[i, text[i + 1]]
            count += 1
            if text[i + 1] == EOT:
                break
    assert count == 6 * (L - 1) + 4 + 2
    np.testing.assert_allclose(loss, total / count, rtol=1e-5)
    np.testing.assert_allclose(metrics['caption/loss_B'].mean(), loss, rtol=1e-12)
    assert np.abs(log_p).max() > 1.  # not a constant


def test_what_is_predicted():
    ids = jnp.array([[1, 5, 6, 1, 0, 0], [1, 5, 6, 7, 8, 9], [1, 1, 1, 1, 1, 1]])
    np.testing.assert_array_equal(predicted(ids, 1), [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])


def test_generation_through_the_model_is_greedy_on_the_whole_text():
    b = batch()
    config = spec(caption=dict(name='caption'))
    config['towers']['text'] |= dict(pad_id=-1)  # what is written may hold the padding's id, and steps see what they wrote
    model, params = setting(config)
    def advance(ids, index, state):
        return encode_in(model, params, b, lambda m, e: m.caption.advance(e, ids, index, state))
    def written(p):
        return decoding.greedy(advance, encode_in(model, p, b, lambda m, e: m.caption.begin(e, b)), B, L, BOS, EOT)
    ids = np.asarray(fast.jit(written)(params))
    def logits(m, e):
        return m.captioner(e('text', 'text').layers[-1][:, :L - 1], e('image', 'image').tokens_BLD)
    whole = np.asarray(fast.jit(lambda p: encode_in(model, p, b | dict(text=ids), logits))(params)).argmax(2)
    for text, likeliest in zip(ids, whole):
        stop = next((i for i in range(1, L) if text[i] == EOT), L - 1)
        np.testing.assert_array_equal(text[1:stop + 1], likeliest[:stop])


def test_matching_judges_right_and_wrong_pairs():
    b = batch()
    model, params = setting(spec('gap', match=dict(name='matching', tile=4)))
    features = fast.jit(lambda p: model.apply({'params': p}, b, method='features'))(params)
    f = features['match']
    selection = fast.jit(lambda p: model.apply({'params': p}, features, method='select'))(params)
    assert (selection['match']['text_B'] != np.arange(B)).all() and (selection['match']['image_B'] != np.arange(B)).all()
    def rest(p):
        pairs = model.apply({'params': p}, features, selection, method='pairs')
        features2 = model.apply({'params': p}, pairs, None, 'pairs', False, method='features2')
        return pairs, features2, model.apply({'params': p}, features, features2, method='loss')
    pairs, features2, (loss, metrics) = fast.jit(rest)(params)
    np.testing.assert_array_equal(pairs['match']['image_PMV'][B:2 * B], f['image_BMV'])
    np.testing.assert_array_equal(pairs['match']['text_PNT'][B:2 * B], np.asarray(f['text_BNT'])[selection['match']['text_B']])
    np.testing.assert_array_equal(pairs['match']['image_PMV'][2 * B:], np.asarray(f['image_BMV'])[selection['match']['image_B']])
    logits = np.asarray(features2['match']['logits_P2'], np.float64)
    right = np.arange(3 * B) < B
    chosen = np.where(right, logits[:, 1], logits[:, 0])
    np.testing.assert_allclose(loss, (np.log(np.exp(logits).sum(1)) - chosen).mean(), rtol=1e-6)
    hit = (logits[:, 1] > logits[:, 0]) == right
    np.testing.assert_allclose(metrics['match/balanced'], .5 * (hit[right].mean() + hit[~right].mean()), rtol=1e-6)


def test_random_wrong_pairs_take_the_place_of_right_ones():
    objective = Matching(negatives='random', wrong=.5)
    seed_B = jnp.asarray(np.random.default_rng(1).integers(0, 2 ** 32, B), jnp.uint32)
    tokens = jnp.arange(B, dtype=jnp.float32)[:, None, None]
    features = dict(image_BMV=tokens, text_BNT=tokens, text_mask_BN=jnp.ones((B, 1), bool), seed_B=seed_B, image_BD=tokens[:, 0],
                    pooled_BD=tokens[:, 0])
    pairs = objective.pairs(features, objective.select(features))
    same = np.asarray(pairs['image_PMV'] == pairs['text_PNT'])[:, 0, 0]
    np.testing.assert_array_equal(same, pairs['right_P'])
    assert len(same) == B and 0 < same.sum() < B


def test_impossible_fields_are_named():
    for field, make in (('negatives', lambda: Matching(negatives='worst')), ('same', lambda: Matching(same='alike')),
                        ('wrong', lambda: Matching(wrong=0.)), ('smoothing', lambda: Caption(smoothing=1.))):
        with pytest.raises(RecipeError, match=field):
            make()
    config = spec(caption=dict(name='caption', decoder='writer'))
    with pytest.raises(RecipeError, match="no fusion or decoder 'writer'"):
        setting(config)
