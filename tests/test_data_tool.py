"""tools/data.py as a user types it, on tars made here."""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bigvlm.core import parts
from bigvlm.data.prepare.spec import parse
from tests.data.fakes import encoded, picture, sample, write_tar
from tools import data

ROOT = Path(__file__).resolve().parent.parent
RECIPE = '''
from bigvlm import recipe

def get_config(arg=None):
    c = recipe.new()
    c.batch, c.steps = 4, '10 steps'
    c.tokenizers = dict(text=dict(name='sentencepiece', train_on='train', vocab=60, pad='eos'))
    ops = (dict(name='decode'), dict(name='views', size=16), dict(name='random_resized_crop', size=16, area=(.3, .6)),
           dict(name='tokenize', length=8), dict(name='random_patch_mask', patches=(4, 4)),
           dict(name='keep', keys=('image', 'views/0', 'text', 'patch_mask')))
    c.data = dict(train=dict(source=dict(name='webdataset', files={files!r}), ops=ops, max_bad=.5),
                  plain=dict(source=dict(name='webdataset', files={files!r})))
    return c
'''


@pytest.fixture(autouse=True)
def tars(tmp_path, monkeypatch):
    """Twelve samples in two tars: 5 has no caption, 8 is a truncated image, 11 repeats 0."""
    monkeypatch.setenv('BIGVLM_CACHE', str(tmp_path / 'cache'))
    monkeypatch.chdir(tmp_path)
    image = {i: encoded(pixels=np.roll(picture(60, 50 + i, seed=i), 3 * i, 1)) for i in range(12)}
    samples = {f'{i:04d}': sample(i, jpg=image[i]) for i in range(12)}
    samples['0005'] = sample(5, txt=None, json=None)
    samples['0008']['jpg'] = image[8][:-100]
    samples['0011'] = samples['0000']
    write_tar(tmp_path / 'a-0.tar', dict(list(samples.items())[:6]))
    write_tar(tmp_path / 'a-1.tar', dict(list(samples.items())[6:]))
    (tmp_path / 'recipe.py').write_text(RECIPE.replace('{files!r}', repr(f'{tmp_path}/a-*.tar')))


SOURCE = ('--source', 'webdataset,files=a-*.tar')


def run(capsys, *arguments, code=0):
    assert data.main(list(map(str, arguments))) == code
    said = capsys.readouterr()
    return said.out if not code else said.err


def page(name):
    """Its text; every picture is one, and no tag is left open."""
    html = Path(name).read_text(encoding='utf-8')
    for tag in ('div', 'section', 'figure', 'svg', 'dl', 'details', 'table'):
        assert len(re.findall(f'<{tag}[ >]', html)) == html.count(f'</{tag}>'), tag
    assert all(uri.startswith('data:image/jpeg;base64,/9j/') for uri in re.findall(r'src="([^"]*)"', html))
    return html


def test_index(capsys):
    said = run(capsys, 'index', *SOURCE, '--crc', '--out', 'shared.index')
    assert 'examples     12' in said and 'index        shared.index' in said and Path('shared.index').exists()
    raw = bytearray(Path('a-0.tar').read_bytes())
    place = raw.index(b'\xff\xd8\xff') + 300  # within the first picture
    raw[place] ^= 255
    Path('a-0.tar').write_bytes(raw)
    said = run(capsys, 'check', '--source', 'webdataset,files=a-*.tar,index=shared.index', '--max_bad', .2)
    assert re.search(r'skipped +1  checksum differs: a-0.tar:0000', said)
    raw[raw.index(b'0004.txt') + 512] ^= 1  # a member that nothing reads: KEY.json has the captions
    Path('a-0.tar').write_bytes(raw)
    whole = ('check', '--source', 'webdataset,files=a-*.tar,index=shared.index', '--max_bad', .3)
    assert '0004' not in run(capsys, *whole)
    assert re.search(r'skipped +2  checksum differs: a-0.tar:0000, a-0.tar:0004', run(capsys, *whole, '--crc'))
    assert 'no checksums' in run(capsys, 'check', *SOURCE, '--crc', code=2)
    assert run(capsys, 'index', '--source', 'folder,root=.', '--crc', code=2).startswith('bigvlm: --out, --crc: only')


def test_stats(capsys):
    said = run(capsys, 'stats', *SOURCE, '--html', 'stats.html', '--out', 'stats.json', '--budget', 16)
    assert 'examples     11 read of 12' in said and 'repeated     2 times: picture 0' in said and 'no caption: a-0.tar:0005' in said
    found = json.loads(Path('stats.json').read_text())
    assert found['counts']['format'] == {'JPEG': 11} and found['quantiles']['height'] == [60] * 5 and 0 <= found['padding']['16'] < 1
    html = page('stats.html')
    assert 'always 60' in html and html.count('<rect') and 'picture 0' in html
    said = run(capsys, 'stats', '--config', 'recipe.py', '--limit', 4)
    assert 'tokens (text)' in said and 'read of 12' in said


def test_show(capsys):
    said = run(capsys, 'show', '--config', 'recipe.py', '--data', 'train', '--limit', 12, '--config.data.train.max_bad=0.')
    assert 'index 3\ta-0.tar:0003\tpicture 3' in said and 'unusable: no caption' in said and 'unusable: truncated image' in said
    html = page('show.html')
    for text in ('views/0 16×16', 'patch_mask: 75% masked', 'text decoded', 'after the ops', 'image 50×60', 'image 16×16'):
        assert text in html, text
    raw = run(capsys, 'show', *SOURCE, '--raw', '--index', 3, '--index', 4, '--html', 'raw.html')
    assert raw.count('index ') == 2 and 'after the ops' not in page('raw.html')
    assert 'bigvlm: --index: 12 of 12' in run(capsys, 'show', *SOURCE, '--index', 12, code=2)


def test_check(capsys):
    assert 'more than --max_bad=0' in run(capsys, 'check', *SOURCE, '--out', 'c.json', code=1)
    found = json.loads(Path('c.json').read_text())
    assert found['bad'] == 1 and found['skipped'] == {'no caption': ['a-0.tar:0005']} and found['examples'] == 12
    assert 'truncated image: a-1.tar:0008' in run(capsys, 'check', *SOURCE, '--decode', '--max_bad', .2)
    assert 'truncated image: a-1.tar:0008' in run(capsys, 'check', '--config', 'recipe.py', '--ops', '--max_bad', .2)


def test_convert_and_read_again(capsys):
    said = run(capsys, 'convert', *SOURCE, '--to', 'array_record', '--shard', 5, '--size', 30, '--out', 'made', '--prefix', 'x')
    assert 'written      10 of 12' in said and re.search(r'left out +1  no caption: a-0.tar:0005', said)
    call = re.search(r'source +(dict\(.*\))', said)[1]
    source = parts.build('bigvlm.data.sources', parse('a,of=' + call)['of'], 'source')
    assert len(source) == 10 and source[0]['captions'] == ('picture 0', 'photo number 0')
    run(capsys, 'convert', *SOURCE, '--to', 'array_record', '--shard', 5, '--size', 30, '--out', 'made', '--prefix', 'x')
    assert 'choose another folder' in run(capsys, 'convert', *SOURCE, '--to', 'webdataset', '--out', 'made', '--prefix', 'x', code=2)


def test_filter_and_dedup_make_lists_for_recipes(capsys):
    said = run(capsys, 'filter', *SOURCE, '--rules', 'align', '--rule', 'side>=53', '--out', 'keep.npy')
    assert 'ALIGN' in said and json.loads(Path('keep.npy.json').read_text())['unusable'] == {'no caption': 1}
    side = run(capsys, 'filter', *SOURCE, '--rule', 'side>=53', '--out', 'side.npy')
    assert np.load('side.npy').tolist() == [3, 4, 6, 7, 8, 9, 10] and 'side>=53' in side
    subset = "subset,of=dict(name='webdataset', files='a-*.tar'),keep=side.npy"
    assert 'examples     7' in run(capsys, 'index', '--source', subset)
    Path('queries.txt').write_text('picture 3\nnumber 9\n')
    run(capsys, 'filter', *SOURCE, '--queries', 'queries.txt', '--out', 'q.npy')
    assert np.load('q.npy').tolist() == [3, 9]
    said = run(capsys, 'dedup', *SOURCE, '--by', 'image,pair', '--out', 'dd.npy')
    assert np.load('dd.npy').tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10] and re.search(r'image +1 examples repeat', said)
    said = run(capsys, 'dedup', *SOURCE, '--by', 'image', '--against', 'webdataset,files=a-1.tar', '--out', 'ev.npy')
    assert np.load('ev.npy').tolist() == [1, 2, 3, 4] and '6 of its 6 (100.00%) are covered' in said
    for wrong in (('filter', *SOURCE, '--out', 'k.npy'), ('filter', *SOURCE, '--rules', 'best', '--out', 'k.npy'),
                  ('dedup', *SOURCE, '--by', 'smell', '--out', 'k.npy'), ('filter', *SOURCE, '--rule', 'side>1', '--out', 'k.txt')):
        assert run(capsys, *wrong, code=2).count('\n') == 1


def replay(capsys, step, *arguments, **code):
    return run(capsys, 'replay', '--config', 'recipe.py', '--step', step, *arguments, **code)


def test_replay_is_what_the_stream_gives(capsys):
    """The rows of the second epoch's steps, taken from the pipeline itself; two of them are unusable."""
    from bigvlm import recipe
    from bigvlm.data import pipeline
    config, replaced = recipe.resolve(recipe.from_command_line('recipe.py')), 0
    for step in (3, 4, 5):
        said = replay(capsys, step, '--rows', ':', '--html', 'r.html').splitlines()
        html = page('r.html')
        assert 'what the step got' in html and 'text decoded' in html
        _, number, draws = pipeline.step_draws(config, step)
        for row in range(4):
            name, epoch, index = draws.at(number, row)
            got = int(draws.example(number, row)['id'][1])
            source = draws.datasets[name].source
            assert f'row {row}\tdata set train\tindex {index}\t{source.describe(index)}\tepoch 1\t' in said[row] and epoch == 1
            assert ('replaced by' in said[row]) == (got != index)
            replaced += got != index
            caption = said[row].rpartition('\tcaption ')[2]
            assert caption in source.captions(got) and caption in html
            ids = draws.example(number, row)['text']
            encode = pipeline.build_tokenizers(config['tokenizers'], config['data'])['text']
            assert encode([caption], 8)[0].tolist() == ids.tolist()
    assert replaced == 2


def test_replay_of_a_workdir_and_what_it_cannot(capsys):
    from bigvlm import recipe
    Path('w').mkdir()
    Path('w/config.json').write_text(json.dumps(recipe.resolve(recipe.from_command_line('recipe.py'))))
    said = replay(capsys, 5, '--rows', ':').splitlines()
    assert len(said) == 4 and run(capsys, 'replay', '--workdir', 'w', '--step', 5, '--rows', '1:3').splitlines() == said[1:3]
    strict = ('replay', '--config', 'recipe.py', '--config.data.train.max_bad=0.', '--rows', ':', '--step')
    assert sorted(data.main([*strict, step]) for step in '345')[-1] == 2 and 'more than max_bad=0 allows' in capsys.readouterr().err
    for rows in ('3:9', 'x', '2:1'):
        assert '--rows' in replay(capsys, 5, '--rows', rows, code=2)
    assert 'step 10' in replay(capsys, 10, code=2) and '--config' in run(capsys, 'replay', '--step', 5, code=2)


def test_overrides_and_site_file(capsys, monkeypatch):
    assert 'examples     6' in run(capsys, 'index', '--config', 'recipe.py', '--data', 'plain', '--config.data.plain.source.files=a-1.tar')
    Path('site.toml').write_text("[pets.train]\nname = 'webdataset'\nfiles = 'a-0.tar'\n")
    monkeypatch.setenv('BIGVLM_SITE', 'site.toml')
    assert 'examples     6' in run(capsys, 'index', '--set', 'pets')
    assert "no set 'pet'" in run(capsys, 'index', '--set', 'pet', code=2)
    assert "(there are: plain, train)" in run(capsys, 'index', '--config', 'recipe.py', '--data', 'test', code=2)
    assert 'give one of' in run(capsys, 'index', code=2)


def test_as_a_command():
    """Without a recipe it starts without jax; mistakes are one line and exit code 2."""
    tool = str(ROOT / 'tools' / 'data.py')
    code = f"import sys; sys.argv = ['data.py', 'index', *{SOURCE!r}]; import runpy\n" \
           f"try:\n    runpy.run_path({tool!r}, run_name='__main__')\nexcept SystemExit as e:\n    assert not e.code\n" \
           "assert 'jax' not in sys.modules\n"
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0 and 'examples     12' in done.stdout, done.stderr
    done = subprocess.run([sys.executable, tool, 'index', '--source', 'webdataset,files=none-*.tar'], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count('\n') == 1 and done.stderr.startswith('bigvlm: ') and 'none-*.tar' in done.stderr
    for wrong in (('index', '--colour'), ('replay', '--step', '1', *SOURCE)):
        assert subprocess.run([sys.executable, tool, *wrong], capture_output=True).returncode == 2
