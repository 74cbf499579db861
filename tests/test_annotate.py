"""tools/annotate.py as a user types it, and the rules and files behind it."""
import json
import re
from pathlib import Path

import numpy as np
import pytest

from bigvlm.core import parts
from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample
from bigvlm.data.ops import _codebook
from bigvlm.data.ops.pick_caption import pick_caption
from bigvlm.data.prepare import annotators, codebook as learning
from bigvlm.data.prepare.annotate import annotate
from bigvlm.data.prepare.keyed import KeyedLines
from bigvlm.data.prepare.nouns import Lexicon, Vocabulary, singulars, words
from tests.data.fakes import encoded, picture, sample, write_tar
from tools import annotate as tool

TARS = ('--source', 'webdataset,files=a-*.tar')
OF = dict(name='webdataset', files='a-*.tar')


@pytest.fixture(autouse=True)
def tars(tmp_path, monkeypatch):
    """Twelve samples in two tars; 5 has no caption, 8 is a truncated image."""
    monkeypatch.setenv('BIGVLM_CACHE', str(tmp_path / 'cache'))
    monkeypatch.chdir(tmp_path)
    texts = ['two dogs and a hot dog', 'A RED fire engine', 'nothing here', 'women on horses', 'a glass bus', 'x']
    samples = {f'{i:04d}': sample(i, jpg=encoded(pixels=picture(48, 40, seed=i)), json=None, txt=texts[i % 6].encode()) for i in range(12)}
    samples['0005'] = sample(5, txt=None, json=None)
    samples['0008']['jpg'] = samples['0008']['jpg'][:-100]
    write_tar(tmp_path / 'a-0.tar', dict(list(samples.items())[:6]))
    write_tar(tmp_path / 'a-1.tar', dict(list(samples.items())[6:]))


def run(capsys, *arguments, code=0):
    assert tool.main(list(map(str, arguments))) == code
    said = capsys.readouterr()
    return said.err if code else said.out


def annotated(file, **fields):
    return parts.build('bigvlm.data.sources', dict(name='annotated', source=OF, file=file, **fields), 'source')


def lines(name, *records):
    Path(name).write_text(''.join(json.dumps(record) + '\n' for record in records))
    return name


def test_nouns_of_a_vocabulary(capsys):
    Path('words.txt').write_text('dog\nHot  Dog\nfire engine\nwoman\nhorse\nglass\nbus\n\n')
    said = run(capsys, 'nouns', *TARS, '--vocabulary', 'words.txt', '--most', 3, '--shard', 5, '--out', 'n')
    source = annotated('n')
    assert [source[i]['nouns'] for i in (0, 1, 2, 3, 4)] == [('dog', 'hot dog'), ('fire engine',), (), ('woman', 'horse'), ('glass', 'bus')]
    assert source[0]['noun_ids'].tolist() == [0, 1, -1] and source[2]['noun_ids'].tolist() == [-1, -1, -1]
    assert source[3]['noun_ids'].dtype == np.int32 and re.search(r'7 different ones .*; 4 examples have none', said)
    assert "source       dict(name='annotated', source=…, file='n')" in said
    with pytest.raises(BadExample, match='no caption'):
        source[5]


def test_nouns_of_a_lexicon(capsys):
    Path('tags.tsv').write_text('dog\tNN\nhot\tJJ,NN\nred\tADJ\nfire\tn,v\nengine\tnoun\nhorse\tNN\nride\tVB,NN\nbus\tNN\n'
                                'glass\tNN\nglasses\tNNS\n')
    run(capsys, 'nouns', *TARS, '--lexicon', 'tags.tsv', '--phrases', '--out', 'n')
    source = annotated('n')
    assert [source[i]['nouns'] for i in (0, 1, 3, 4)] == [('dog', 'hot dog'), ('red fire engine',), ('horse',), ('glass bus',)]
    assert 'noun_ids' not in source[0]
    plain = Lexicon(Path('tags.tsv'))
    assert plain(['a hot ride of RED fire-engines', 'hot, red', 'dogs dog']) == ('dogs dog',)
    assert plain(['new glasses; his glass']) == ('glass',)


def test_words_and_plurals():
    assert words("The dog's re-used, blue_ball №1") == ['the', "dog's", 're-used', 'blue', 'ball', '1']
    plurals = dict(dogs='dog', berries='berry', cookies='cookie', boxes='box', buses='bus', horses='horse', potatoes='potato', men='man')
    assert all(single in singulars(word) for word, single in plurals.items())
    assert not any(map(singulars, ('glass', 'bus', 'tennis', 'dog', 'gas')))
    for name, text in (('--vocabulary', ''), ('--vocabulary', 'dog\ndog'), ('--lexicon', 'dog NN'), ('--lexicon', 'run\tVB')):
        Path('bad.txt').write_text(text)
        with pytest.raises(RecipeError, match=name):
            (Vocabulary if name == '--vocabulary' else Lexicon)(Path('bad.txt'))


def test_rewrites_from_a_file_by_name_and_by_index(capsys):
    lines('r.jsonl', dict(name='a-0.tar:0001', rewrites=['one', '  two  lines ']), dict(name='a-1.tar:0006', rewrites='three'),
          dict(name='other', rewrites=[]))
    said = run(capsys, 'rewrites', *TARS, '--file', 'r.jsonl', '--by', 'name', '--out', 'r')
    source = annotated('r')
    assert [source[i]['rewrites'] for i in (0, 1, 6)] == [(), ('one', 'two lines'), ('three',)]
    assert 'lines        1 of 3' in said
    pick = pick_caption({'captions': .5, 'rewrites': .5})
    assert {pick(source[6], np.random.default_rng(seed))['caption'] for seed in range(20)} == {'three', *source[6]['captions']}
    lines('k.jsonl', dict(index=2, gloss='emptiness'))
    run(capsys, 'rewrites', *TARS, '--file', 'k.jsonl', '--field', 'knowledge', '--key', 'gloss', '--out', 'k')
    both = annotated(('r', 'k'))
    assert both[2]['knowledge'] == ('emptiness',) and both[2]['rewrites'] == ()


def test_rewrites_by_a_function(capsys):
    Path('mine_rewrites.py').write_text('def upper(captions):\n    return [[text.upper() for text in texts] for texts in captions]\n'
                                        'def few(captions):\n    return captions[:1]\n'
                                        'def text(captions):\n    return ["x"] * len(captions)\n')
    run(capsys, 'rewrites', *TARS, '--rewrite', 'mine_rewrites:upper', '--together', 5, '--out', 'u')
    assert annotated('u')[0]['rewrites'] == ('TWO DOGS AND A HOT DOG',)
    said = run(capsys, 'rewrites', *TARS, '--rewrite', 'mine_rewrites:few', '--together', 5, '--out', 'f', code=2)
    assert 'found 1 results for 5' in said
    assert "gave 'x'" in run(capsys, 'rewrites', *TARS, '--rewrite', 'mine_rewrites:text', '--out', 't', code=2)
    assert 'MODULE:FUNCTION' in run(capsys, 'rewrites', *TARS, '--rewrite', 'mine_rewrites:none', '--out', 'n', code=2)


def test_regions(capsys):
    Path('names.txt').write_text('dog\ncat\n')
    three = dict(boxes=[[.1, .2, .3, .4], [0, 0, 1, 1], [.5, .5, .6, .9]], labels=['cat', 'cow', 'dog'], scores=[.5, .9, .2])
    lines('b.jsonl', dict(index=1, **three),
          dict(index=2, boxes=[[10, 24, 20, 48]], size=[40, 48], labels=[7]), dict(index=3, boxes=[]))
    run(capsys, 'regions', *TARS, '--file', 'b.jsonl', '--most', 3, '--least', .3, '--labels', 'names.txt', '--out', 'b')
    source = annotated('b')
    one, two, none = source[1], source[2], source[3]
    np.testing.assert_allclose(one['region_boxes'], np.float32([[0, 0, 1, 1], [.2, .1, .4, .3], [0] * 4]))
    assert one['region_labels'].tolist() == [-1, 1, -1] and one['region_names'] == ('cow', 'cat') and one['region_count'] == 2
    np.testing.assert_allclose(one['region_scores'], np.float32([.9, .5, 0]))
    np.testing.assert_allclose(two['region_boxes'][0], [.5, .25, 1, .5])
    assert two['region_labels'].tolist() == [7, -1, -1] and two['region_scores'][0] == 1
    assert none['region_count'] == 0 and source[4]['region_boxes'].shape == (3, 4)
    for record in (dict(boxes=[[0, 0, 2, 1]]), dict(boxes=[[.5, 0, .2, 1]]), dict(boxes=[[0, 0, 1]]),
                   dict(boxes=[[0, 0, 1, 1]], scores=[])):
        lines('w.jsonl', dict(index=0, **record))
        assert "w.jsonl: index 0: found" in run(capsys, 'regions', *TARS, '--file', 'w.jsonl', '--out', f'w{len(str(record))}', code=2)


def test_fields_of_yours(capsys):
    lines('s.jsonl', *(dict(name=f'a-{i // 6}.tar:{i:04d}', clip_score=i / 4, boxes=[[1, 2]], words=['a', 'b'], lang='en')
                       for i in range(11)))
    said = run(capsys, 'fields', *TARS, '--file', 's.jsonl', '--by', 'name', '--fields', 'clip_score,boxes,words,lang', '--out', 's')
    example = annotated('s')[6]
    assert example['clip_score'] == np.float32(1.5) and example['boxes'].tolist() == [[1, 2]] and example['boxes'].dtype == np.int32
    assert example['words'] == ('a', 'b') and example['lang'] == 'en' and re.search('no line in s.jsonl +1 examples', said)
    with pytest.raises(BadExample, match='no clip_score'):
        annotated('s', fields=('clip_score',))[11]
    np.save('d.npy', np.arange(24).reshape(12, 2))
    run(capsys, 'fields', *TARS, '--file', 'd.npy', '--fields', 'patch_codes', '--out', 'd')
    assert annotated('d')[4]['patch_codes'].tolist() == [8, 9]
    np.save('e.npy', np.arange(24).reshape(6, 4))
    assert 'a row for each of the 12' in run(capsys, 'fields', *TARS, '--file', 'e.npy', '--fields', 'c', '--out', 'e', code=2)
    assert "has no 'age'" in run(capsys, 'fields', *TARS, '--file', 's.jsonl', '--by', 'name', '--fields', 'age', '--out', 'g', code=2)


def test_keyed_lines():
    path = Path(lines('l.jsonl', *({'index': i, 'text': 'ä' * (i % 7) * 20_000} for i in range(100))))
    found = KeyedLines(path)
    assert len(found) == 100 and all(len(found.get(i)['text']) == i % 7 * 20_000 for i in (0, 5, 99)) and found.get(100) is None
    assert found.unused == 97
    for text, said in (('{"index": 1}\n{"index": 1}\n', 'two lines of index 1'), ('{"index": 1}\nx\n', 'line 2: no JSON'),
                       ('{"name": 1}\n', "line 1: found no 'index'")):
        path.write_text(text)
        with pytest.raises(RecipeError, match=said):
            KeyedLines(path)


def codebook():
    patch = np.concatenate([_codebook.cut(picture(40, 40, seed=i), 8) for i in range(12)])
    book = learning.learn(patch, learning.Settings(codes=9, patch=8, features=8, epochs=2))
    book.save(Path('c.npz'))
    return book


def test_codes_of_images_that_do_not_change(capsys):
    book = codebook()
    run(capsys, 'codes', *TARS, '--codebook', 'c.npz', '--size', 40, '--out', 'c')
    op = parts.build('bigvlm.data.ops', dict(name='patch_codes', codebook='c.npz'), 'op')
    source = annotated('c')
    from bigvlm.data.ops.decode import decode
    from bigvlm.data.ops.resize import resize
    example = source[3]
    for step in (decode(), resize(size=40)):
        example = step(example, None)
    np.testing.assert_array_equal(op({'image': example['image']}, None)['patch_codes'], example['patch_codes'])
    assert example['patch_codes'].shape == (25,) and example['patch_codes'].max() < len(book)
    with pytest.raises(BadExample, match='no patch_codes'):
        source[8]  # a truncated image
    assert '--size: patches of 8' in run(capsys, 'codes', *TARS, '--codebook', 'c.npz', '--size', 41, '--out', 'd', code=2)


def test_codes_of_random_crops_are_refused(capsys):
    codebook()
    Path('recipe.py').write_text('''
from bigvlm import recipe

def get_config(arg=None):
    c = recipe.new()
    c.batch, c.steps = 4, '10 steps'
    crop = dict(name='random_resized_crop', size=40, area=(.3, .6))
    source = dict(name='webdataset', files='a-*.tar')
    c.data = dict(train=dict(source=source, ops=(dict(name='decode'), crop)),
                  val=dict(source=source, ops=(dict(name='decode'), dict(name='resize', size=40))))
    return c
''')
    given = ('codes', '--config', 'recipe.py', '--codebook', 'c.npz', '--out', 'r')
    assert 'at random' in run(capsys, *given, code=2)
    run(capsys, *given, '--data', 'val')
    assert annotated('r')[0]['patch_codes'].shape == (25,)


class FakeTeacher:
    """Mean colours of images, and sums of token ids."""
    known = dict(workdir='w', step=3, objective='o')

    def __init__(self):
        self.asked = []

    def embedder(self, batch):
        return self

    def images(self, rows):
        self.asked.append(len(rows))
        return np.stack(rows).mean(axis=(1, 2)).astype(np.float32)

    def texts(self, ids):
        return ids.sum(axis=1, keepdims=True).astype(np.float32)

    def tokenize(self, texts):
        return np.array([[len(text), 1] for text in texts])


@pytest.mark.parametrize('what, captions', [(('image', 'text'), 1), (('text',), 3)])
def test_embeddings_of_a_teacher(tmp_path, what, captions):
    from tools import _annotate_teacher
    source = parts.build('bigvlm.data.sources', OF, 'of')
    def picture_of(index):
        return np.full((2, 2, 3), index, np.uint8)
    model = FakeTeacher()
    made = _annotate_teacher.annotator(model, source, picture_of, what, 'clip', captions, 4, 'as it is')
    annotate(source, tmp_path / 't', made, shard=7)
    example = annotated(str(tmp_path / 't'))[3]
    length = len('women on horses') + 1
    np.testing.assert_array_equal(example['clip_text'], np.float16([[length]] * 3 if captions == 3 else [length]))
    assert example['clip_text'].dtype == np.float16
    if 'image' in what:
        np.testing.assert_array_equal(example['clip_image'], np.float16([3, 3, 3]))
        assert sum(model.asked) == 11 and max(model.asked) == 4
    with pytest.raises(RecipeError, match='--what'):
        _annotate_teacher.annotator(model, source, None, ('sound',), 'clip', 1, 4, '')


def test_what_the_tool_refuses(capsys):
    for wrong, said in ((('nouns', *TARS), 'give --vocabulary'), (('nouns', *TARS, '--vocabulary', 'none.txt'), "no file 'none.txt'"),
                        (('rewrites', *TARS), 'give --file'), (('codes', *TARS, '--codebook', 'none.npz'), 'no file'),
                        (('teacher', *TARS, '--workdir', 'none'), 'holds no run'), (('nouns',), 'give '),
                        (('nouns', *TARS, '--vocabulary', 'a-0.tar'), '--vocabulary: a-0.tar is no text')):
        told = run(capsys, *wrong, '--out', 'o', code=2).splitlines()
        assert said in told[-1] and told[-1].startswith('bigvlm: '), told
    assert annotators._value([[1, 2], [3]])[0].tolist() == [1, 2]
