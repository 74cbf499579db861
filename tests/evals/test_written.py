"""Captions that a model wrote, and an objective's held-out loss: what is counted, by a stand-in for the model."""

import numpy as np
import pytest

from tests.evals import fake
from bigvlm.core.parts import RecipeError
from bigvlm.evals.captions import Captions, f1
from bigvlm.evals.held_out import HeldOut


class Tokenizer:
    """Words of fake.WORDS as numbers from 2; 1 begins and ends."""
    bos_id = eot_id = 1

    def decode(self, ids):
        found = []
        for i in ids[1:]:
            if i == 1:
                break
            found.append(fake.WORDS[i - 2] if i - 2 < len(fake.WORDS) else '?')
        return ' '.join(found)


class Dataset(fake.FakeDataset):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._captions = [tuple(' '.join(text.split()[:3]) for text in texts) for texts in self._captions]


class Writer:
    """Writes the first caption of every second image, and another text for the rest."""
    batch = 4

    def __init__(self, dataset):
        self.dataset, self.asked = dataset, None

    def generate(self, images, how, **options):
        self.asked = how, options
        ids_NL = np.ones((len(images), options['length']), np.int32)
        for i in range(len(images)):
            assert images[i].shape == (8, 8, 3)
            words = self.dataset.captions(i)[0].split() if i % 2 == 0 else ['tree', 'boat']
            ids_NL[i, 1:1 + len(words)] = [fake.WORDS.index(word) + 2 for word in words]
        return ids_NL

    def gather(self, values_N):
        return values_N

    def measure(self, examples):
        for start in range(0, len(examples), self.batch):
            batch = [examples[i] for i in range(start, start + self.batch)]
            assert all(set(row) == {'image', 'id'} for row in batch)  # texts stay on the host
            yield dict(loss=float(np.mean([row['id'][1] for row in batch])), accuracy=.5)


def captions(**fields):
    dataset = Dataset(7, captions=2)
    evaluator = Captions(datasets=lambda name: dataset, tokenizers={'text': Tokenizer()}, length=8, examples=3, **fields)
    return dataset, evaluator, Writer(dataset)


@pytest.mark.parametrize('how, options', [('greedy', {}), ('beam', dict(beams=4, penalty=1.)), ('sample', dict(p=.9, seed=0))])
def test_exact_captions_and_common_words(how, options):
    dataset, evaluator, writer = captions(how=how)
    found = dict(evaluator.run(writer))
    assert writer.asked == (how, dict(length=8, bos_id=1, eot_id=1, **options))
    wrong = [max(f1('tree boat', text) for text in dataset.captions(i)) for i in range(1, 7, 2)]
    assert found['n'] == 7 and found['exact'] == pytest.approx(4 / 7)
    assert found['words'] == pytest.approx((4 + sum(wrong)) / 7)
    assert len(found['examples'].rows) == 3


def test_f1_counts_words_as_often_as_they_stand():
    assert f1('a red red boat', 'A red  boat') == pytest.approx(2 * 3 / 7)
    assert f1('', 'a') == 0. and f1('a', 'a') == 1.


def test_a_tokenizer_must_mark_the_beginning():
    tokenizer = Tokenizer()
    tokenizer.bos_id = None
    with pytest.raises(RecipeError, match="give it bos='yes' or bos='eos'"):
        Captions(datasets=lambda name: None, tokenizers={'text': tokenizer})
    for fields in (dict(how='guess'), dict(beams=0), dict(p=0.)):
        with pytest.raises(RecipeError, match=next(iter(fields))):
            captions(**fields)


def test_held_out_averages_whole_batches():
    dataset = Dataset(11)
    found = dict(HeldOut(datasets=lambda name: dataset, limit=10).run(Writer(dataset)))
    assert found == dict(loss=3.5, accuracy=.5, n=8.)
    with pytest.raises(RecipeError, match='limit: 3 examples are less than one batch of 4'):
        list(HeldOut(datasets=lambda name: dataset, limit=3).run(Writer(dataset)))
