import io
import itertools
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageFilter

from bigvlm.core.parts import RecipeError
from bigvlm.data.pipeline import Datasets, Draws, Stream, build_tokenizers
from bigvlm.data.scenes import builder, grammar, layout, render
from bigvlm.data.scenes.grammar import Group, Kind
from bigvlm.data.sources.tfds import Tfds

SMALL = builder.SceneConfig(name='test', size=48, train=0, val=0, zero_shot=0)


def rng(seed):
    return np.random.default_rng(seed)


def examples(split, count, config=SMALL):
    taken = set()
    return [builder.example(config, split, i, taken) for i in range(count)]


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """The 'tiny' data set, built once; a source for a split and fields."""
    folder = str(tmp_path_factory.mktemp('scenes'))
    return lambda split, **fields: Tfds('bigvlm_scenes/tiny', split, data_dir=folder, **fields)


def test_enough_is_held_out_and_nothing_is_rare():
    assert len(grammar.HELD_OUT) >= 64 and len(grammar.HELD_OUT) + len(grammar.SEEN) == len(grammar.COMBINATIONS)
    assert len(set(map(grammar.name, grammar.COMBINATIONS))) == len(grammar.COMBINATIONS)
    for place, values in enumerate((grammar.SHAPES, grammar.COLORS, grammar.TEXTURES)):
        seen = Counter(c[place] for c in grammar.SEEN)
        assert len(values) == len(seen) and min(seen.values()) >= .7 * len(grammar.COMBINATIONS) / len(values)
    for pair in itertools.combinations(range(3), 2):
        seen = {tuple(c[place] for place in pair) for c in grammar.SEEN}
        assert seen == {tuple(c[place] for place in pair) for c in grammar.COMBINATIONS}, 'any two attributes meet in training'


def test_training_never_shows_what_is_held_out():
    held_out = set(grammar.HELD_OUT)
    shown = Counter()
    for seed in range(600):
        scene = layout.scene(rng(seed))
        looks = {(t.kind.shape, t.kind.color, t.kind.texture) for t in scene.objects}
        assert not looks & held_out
        shown.update(itertools.chain(*looks))
        assert not any(grammar.name(c) in caption.text for c in looks & held_out for caption in scene.captions())
    assert all(shown[value] > 60 for value in grammar.SHAPES + grammar.COLORS + grammar.TEXTURES)


def test_zero_shot_images_show_their_label():
    for example in examples('zero_shot', 80):
        shape, color, texture = grammar.HELD_OUT[example['label']]
        assert (example['shapes'], example['colors'], example['textures']) == ([shape], [color], [texture])
        assert example['captions'][1].split(' ', 1)[1] == grammar.name((shape, color, texture))


def test_validation_captions_belong_to_one_image():
    captions = [c for example in examples('val', 200) for c in example['captions']]
    assert len(captions) == 400 == len(set(captions))


def test_the_same_seed_draws_the_same_bytes():
    def bytes_(seed):
        drawn = builder.example(builder.SceneConfig(name='test', size=32, seed=seed), 'train', 5, set())
        return drawn['image'].getvalue() + drawn['segmentation'].getvalue() + '|'.join(drawn['captions']).encode()
    assert bytes_(0) == bytes_(0) != bytes_(1)
    images = [e['image'].getvalue() for split in ('train', 'val', 'zero_shot') for e in examples(split, 30)]
    assert len(set(images)) == 90


def test_boxes_and_masks_agree_with_the_pixels():
    for seed in range(40):
        scene = layout.scene(rng(seed))
        image, mask = render.draw(scene, 64, rng(seed))
        assert set(np.unique(mask)) == set(range(len(scene.objects) + 1))
        ground = np.median(image[mask == 0], axis=0)
        for number, (thing, box) in enumerate(zip(scene.objects, render.boxes(mask, len(scene.objects))), start=1):
            inside = mask == number
            assert np.abs(image[inside].astype(int) - ground).sum(-1).mean() > 40  # it is visible where the mask says
            top, left, bottom, right = (box * 64).astype(int)
            assert inside.sum() == inside[top:bottom, left:right].sum()
            assert inside[[top, bottom - 1]].any(1).all() and inside[:, [left, right - 1]].any(0).all()
            assert abs((left + right) / 128 - thing.x) < .1 and abs((top + bottom) / 128 - thing.y) < .1
            if thing.kind.texture == 'solid':
                ink = np.median(image[inside], axis=0)
                nearest = min(grammar.COLORS, key=lambda c: np.linalg.norm(ink - render._RGB[c]))
                assert nearest == thing.kind.color
        near = np.asarray(Image.fromarray(mask).filter(ImageFilter.MaxFilter(3))) > 0
        assert np.abs(image[~near].astype(int) - ground).max() <= 1  # nothing is drawn elsewhere


def test_textures_cover_part_of_the_object():
    """Solid ink everywhere; the others leave a good part of the paper free, each at least two pixels wide."""
    shares = {'solid': (0, .02), 'striped': (.25, .65), 'dotted': (.12, .45), 'checkered': (.25, .65)}
    for texture, (least, most) in shares.items():
        for seed in range(5):
            scene = layout.single(rng(seed), ('square', 'blue', texture), 'medium')
            image, mask = render.draw(scene, 64, rng(seed))
            paper = (image[mask == 1].astype(int).sum(-1) > 560).mean()
            assert least <= paper <= most, (texture, paper)


def test_relations_and_places_are_true():
    seen = Counter()
    for seed in range(400):
        scene = layout.scene(rng(seed))
        for group in scene.groups:
            if group.place:
                thing = scene.objects[group.members[0]]
                assert group.place == (int(thing.y * 3), int(thing.x * 3))
        if scene.relation:
            a, b = scene.objects[scene.groups[0].members[0]], scene.objects[scene.groups[1].members[0]]
            assert {'left of': a.x < b.x, 'right of': a.x > b.x, 'above': a.y < b.y, 'below': a.y > b.y}[scene.relation]
            seen[scene.relation] += 1
        for a, b in itertools.combinations(scene.objects, 2):
            assert np.hypot(a.x - b.x, a.y - b.y) > (a.diameter + b.diameter) / 2
    assert min(seen[r] for r in grammar.RELATIONS) > 5


def test_what_is_said_in_both_languages():
    star, crosses = Kind('star', 'orange', 'striped', 'small'), Kind('cross', 'red', 'solid', 'large')
    groups = (Group(star, (0,), (0, 0)), Group(crosses, (1, 2)))
    assert [c.text for c in grammar.captions(groups, 'gray')] == [
        'an orange star and two red crosses', 'an orange striped star and two red solid crosses',
        'a small orange striped star in the top left and two large red solid crosses on a gray background',
        'there is a small orange striped star in the top left and two large red solid crosses']
    assert [c.text for c in grammar.captions(groups, 'gray', 'left of')][3] == (
        'a small orange striped star left of two large red solid crosses')
    german = [c.text for c in grammar.captions(groups, 'gray', 'left of', 'de')]
    assert german[2:] == [
        'ein kleiner orangefarbener gestreifter Stern oben links und zwei große rote einfarbige Kreuze '
        'auf grauem Hintergrund',
        'ein kleiner orangefarbener gestreifter Stern links von zwei großen roten einfarbigen Kreuzen']


def test_spans_are_the_words_that_name_the_boxes():
    german = {shape: noun[0] for shape, noun in grammar._NOUNS_DE.items()}
    for example in examples('train', 60):
        for language, nouns in (('', {s: s for s in grammar.SHAPES}), ('_de', german)):
            captions, spans = example[f'captions{language}'], example['spans' + language]
            assert {(c, o) for c, o, _, _ in spans} == set(itertools.product(range(4), range(len(example['shapes']))))
            for caption, thing, first, stop in spans:
                words = captions[caption][first:stop]
                assert nouns[example['shapes'][thing]] in words and words == words.strip() and ' and ' not in words


def test_built_through_tfds(built):
    train = built('train', extra=('boxes', 'segmentation', 'spans', 'captions_de'))
    assert len(train) == 96 and train.label_names == ()
    example = train[7]
    assert Image.open(io.BytesIO(example['image'])).size == (32, 32)
    assert len(example['captions']) == 4 and all(isinstance(c, str) for c in example['captions'])
    mask = np.asarray(Image.open(io.BytesIO(example['segmentation'])))
    assert np.allclose(render.boxes(mask, len(example['boxes'])), np.stack(example['boxes']))
    zero_shot = built('zero_shot', label='label')
    assert zero_shot.label_names == tuple(map(grammar.name, grammar.HELD_OUT))
    assert sorted(zero_shot[i]['label'] for i in range(len(zero_shot))) == list(range(len(grammar.HELD_OUT)))
    assert train.fingerprint == built('train', extra=('boxes', 'segmentation', 'spans', 'captions_de')).fingerprint
    assert train.fingerprint != built('val').fingerprint
    assert len(built('train[:50%]')) == 48


def test_from_recipe_to_batch():
    """The default data set's whole way: built in the cache, decoded, tokenised, batched."""
    data = dict(train=dict(source=dict(name='tfds', dataset='bigvlm_scenes/tiny', split='train'), ops=(
        dict(name='decode'), dict(name='tokenize', length=16))))
    tokenizers = build_tokenizers({'text': dict(name='sentencepiece', train_on='train', vocab=256)}, data)
    draws = Draws([Datasets(dict(data=data, seed=0), tokenizers)], 'train', 16)
    stream = Stream(draws, 16, workers=2)
    batch = next(stream)
    stream.close()
    assert {k: (v.dtype, v.shape) for k, v in batch.items()} == {
        'image': (np.uint8, (16, 32, 32, 3)), 'text': (np.int32, (16, 16)), 'id': (np.uint32, (16, 2))}
    for ids, (_, index) in zip(batch['text'], batch['id']):
        said = tokenizers['text'].decode(ids)
        assert any(caption.startswith(said) for caption in draws.datasets['train'].captions(index))


@pytest.mark.parametrize('split, fields, message', [
    ('test', {}, "no split 'test'.*train"), ('train', dict(captions='text'), "no feature 'text'.*captions_de")])
def test_wrong_fields(built, split, fields, message):
    with pytest.raises(RecipeError, match=message):
        built(split, **fields)


def test_unknown_data_sets():
    with pytest.raises(RecipeError, match='no_such_data'):
        Tfds('no_such_data', 'train')
    with pytest.raises(RecipeError, match='bigvlm_scenes/huge'):
        Tfds('bigvlm_scenes/huge', 'train')
