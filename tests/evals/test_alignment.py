"""Alignment of words and patches: against hand-made tokens whose most similar patch is known."""

import numpy as np
import pytest

from bigvlm.core.parts import RecipeError
from bigvlm.evals.alignment import Alignment, patches

SIDE, LENGTH, WIDTH = 4, 10, 16
VOCABULARY = ['<bos>', '<eos>', '<pad>', 'a', 'red', 'star', 'and', 'two', 'blue', 'ring', 's']


def tokenize(texts, length):
    """A beginning, words (a plural is two tokens), an end, padding; cut at the length."""
    found = np.full((len(texts), length), 2, np.int32)
    for row, text in zip(found, texts):
        words = [piece for word in text.split() for piece in ((word[:-1], 's') if word.endswith('s') else (word,))]
        ids = [0, *map(VOCABULARY.index, words), 1][:length]
        row[:len(ids)] = ids
    return found


class Scenes:
    """Two images of 16 patches, each with a star at the top left and two rings."""
    captions = ('a star', 'a red star and two blue rings')
    spans = np.array([(0, 0, 0, 6), (1, 0, 0, 10), (1, 1, 15, 29), (1, 2, 15, 29)])
    boxes = np.array([(0., 0., .25, .25), (.5, .5, .75, .75), (.75, 0., 1., .5)], np.float32)

    def __len__(self):
        return 2

    def example(self, index):
        image = np.full((8, 8, 3), index, np.uint8)
        return dict(image=image, id=np.array([0, index]), captions=self.captions, boxes=self.boxes, spans=self.spans)


class Tokens:
    """An embedder: patch p is the p-th unit vector; a word's token points at the patch that ``at`` says for its image."""

    def __init__(self, at):
        self.at = at

    def gather(self, x):
        return x

    def images(self, images):
        for i in range(len(images)):
            images[i]
        one = np.concatenate([np.eye(SIDE * SIDE, WIDTH) * 3., np.ones((SIDE * SIDE, 1))], 1)
        return np.stack([one.ravel()] * len(images)).astype(np.float32)

    def texts(self, ids_NL):
        found = np.zeros((*ids_NL.shape, WIDTH + 1), np.float32)
        for n, ids in enumerate(ids_NL):
            for place, i in enumerate(ids):
                found[n, place, self.at[n].get(VOCABULARY[i], 7)] = 2.
                found[n, place, WIDTH] = i != 2
        return found.reshape(len(ids_NL), -1)


def evaluate(at, dataset=None, **fields):
    part = Alignment(**dict(data='test', length=LENGTH, width=WIDTH) | fields, datasets=lambda name: dataset or Scenes(),
                     tokenizers={'text': tokenize})
    return dict(part.run(Tokens(at)))


RIGHT = dict(red=0, star=0, two=10, blue=12, ring=13, s=13)   # patches 0; 10; 12 and 13


def test_words_at_their_boxes_are_counted():
    found = evaluate([RIGHT, RIGHT | dict(red=1, blue=0)])
    assert found['n'] == 10 and found['hit'] == pytest.approx(.8)   # red, star, two, blue, rings of two images; 'a', 'and' do not count
    assert found['hit_chance'] == pytest.approx((2 * 1 + 3 * 3) / 5 / 16)
    assert len(found['examples'].rows) == 6


def test_a_word_is_the_mean_of_all_of_its_tokens():
    # The pieces of 'rings' are equally long: where they differ the mean lies between, and the first patch wins.
    assert evaluate([RIGHT | dict(ring=0, s=13), RIGHT])['hit'] == pytest.approx(.9)
    assert evaluate([RIGHT | dict(ring=12, s=15), RIGHT])['hit'] == 1.


def test_words_beyond_the_length_do_not_count():
    found = evaluate([RIGHT, RIGHT], length=6)   # <bos> a red star and two
    assert found['n'] == 6 and found['hit'] == 1.


def test_patches_of_a_box():
    assert np.flatnonzero(patches([(.5, .5, .75, .75)], 4)).tolist() == [10]
    assert np.flatnonzero(patches([(.2, .2, .3, .3)], 4)).tolist() == [0, 1, 4, 5]       # none is full, all are as good
    assert np.flatnonzero(patches([(0., 0., .25, .3)], 4)).tolist() == [0]                 # a fifth of the next one is not enough
    assert np.flatnonzero(patches([(0., 0., .25, .25), (.75, .75, 1., 1.)], 4)).tolist() == [0, 15]


def test_errors_say_what_is_missing():
    with pytest.raises(RecipeError, match='width: found 17'):
        evaluate([RIGHT, RIGHT], width=17)
    class Plain(Scenes):
        def example(self, index):
            return dict(image=np.zeros((8, 8, 3), np.uint8), captions=('a',))
    with pytest.raises(RecipeError, match="data: examples of 'test' have no boxes, spans"):
        evaluate([RIGHT, RIGHT], Plain())
