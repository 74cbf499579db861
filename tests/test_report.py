import html.parser
import json
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from bigvlm import figures, report
from bigvlm.figures import Confusion, Gallery, Item, Row
from bigvlm.report.read import read
from bigvlm.report.svg import Curve, chart, number, percent

VOID = {'meta', 'img', 'br', 'link', 'input'}


class Page(html.parser.HTMLParser):
    """Checks that tags nest, and collects what is shown and what is loaded."""

    def __init__(self, text):
        super().__init__()
        self.open, self.loads, self.shown, self.cells, self.tags = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.loads += [value for key, value in attributes if key in ('src', 'href', 'xlink:href', 'action', 'srcset')]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ('style', 'script'):
            self.shown.append(data)

    @property
    def text(self):
        return ' '.join(self.shown)


def workdir(path, lines=(), **files):
    path.mkdir(exist_ok=True)
    lines = [line if isinstance(line, str) else json.dumps(line) + '\n' for line in lines]
    (path / 'metrics.jsonl').write_text(''.join(lines))
    for name, content in files.items():
        (path / f'{name}.json').write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def page(path):
    return Page(report.write(path).read_text())


EVALS = dict(evals=dict(base=dict(name='nearest_caption'), zs=dict(name='zero_shot'), retrieval=dict(name='retrieval')))


def test_a_whole_run(tmp_path):
    lines = [dict(step=0, time=100., **{'zs/top1': .0123, 'zs/top1_chance': .0156, 'zs/n': 640., 'zs/seconds': 3.2,
                                        'base/zs/top1': .0567, 'base/seconds': 9.})]
    for step in range(10, 210, 10):
        lines.append(dict(step=step, time=100. + step, loss=7. - step / 100, lr=1e-4, examples_per_s=1234.,
                          step_time=.5, data_wait=.031, **{'match/scale': 10.5}))
    lines += [{'step': 100, 'time': 200., 'zs/top1': .6543, 'retrieval/text_to_image_median_rank': 3.},
              {'step': 200, 'time': 300., 'zs/top1': .6001, 'retrieval/text_to_image_median_rank': 7.}]
    path = workdir(tmp_path / 'run', lines, config=dict(EVALS, batch=64, about=dict(paper='A paper <1>'),
                                                         optim=dict(lr=3e-4, rules=[['.*/<b>', 0.0]])),
                   run=dict(status='running', total_steps=1000, command='t --config configs/a.py <script>x</script>',
                            git_commit='abc123', versions=dict(jax='0.10.2'), devices='8 x cpu', launches=[1, 2]),
                   lost=dict(train={'truncated <JPEG>': dict(count=2, items=['a.tar:1.jpg', 'a.tar:2.jpg']),
                                   'no caption': dict(count=1, items=['b.tar:9'])}),
                   data=dict(train=dict(source='x/*.tar', examples=12_345, unusable=3, surviving=12_342, fingerprint='c0ffee')))
    image = np.full((300, 200, 3), 200, np.uint8)
    confusion = Confusion.count(np.array([0, 0, 1]), np.array([1, 0, 1]), ('cat', 'dog & co'))
    figures.save(path, 200, 'zs/confusion', confusion)
    figures.save(path, 100, 'retrieval/found', Gallery('Old', ()))
    figures.save(path, 200, 'retrieval/found', Gallery('Found & shown', (
        Row(Item(image=image), (Item('a right caption', right=True, value=.25), Item('a <wrong> one', right=False))),
        Row(Item('a query'), (Item(image=image, right=True), Item(image=image))))))
    shown = page(path)
    for text in ('configs/a.py', 'running', 'abc123', '0.10.2', '8 x cpu', '200 of 1,000', '13 min 20 s',  # at 1 s each
                 '65.4 %', '60.0 %', '1.2 %', '1.6 %', '5.7 %', '640 examples · 3 seconds', 'untrained',
                 'nearest caption', '1,234', '3.1 %', 'A paper <1>', 'truncated <JPEG>', 'a.tar:2.jpg', 'b.tar:9',
                 'Found & shown', 'a <wrong> one', 'dog & co', '1 of 2', 'optim.lr', '0.0003', '.*/<b>',
                 'a.py <script>x', '12,800', 'x/*.tar', '12,345', '12,342', 'c0ffee'):
        assert text in shown.text, text
    assert 'Old' not in shown.text
    assert shown.loads and all(load.startswith('data:image/') for load in shown.loads)
    assert sum(tag == 'img' and 'jpeg' in a['src'] for tag, a in shown.tags) == 3
    best = re.findall(r'<td class="best">([^<]*)</td>', (path / 'report.html').read_text())
    assert best == ['65.4 %', '3']  # of ranks, the lowest
    assert [p.name for p in path.glob('*partial*')] == []


@pytest.mark.parametrize('files', [
    dict(), dict(config='{"evals": {', run='[]', lost='null'), dict(config='', run='\x00\xff', lost='{"train": 3}')])
def test_missing_and_damaged_files(tmp_path, files):
    lines = ['{"step": 1, "loss": 2.5}\n', 'garbage\n', '{"loss": 3}\n', '[1]\n', '{"step": 2, "lo']
    path = workdir(tmp_path / 'odd', lines, **files)
    (path / 'figures' / '7').mkdir(parents=True)
    (path / 'figures' / '7' / 'bad.json').write_text('{"kind": "Gallery"}')
    shown = page(path)
    assert '2.5' in shown.text and '4 unreadable lines' in shown.text and 'No item was lost' in shown.text


def test_an_empty_workdir(tmp_path):
    assert 'No metrics' in page(tmp_path).text


def test_a_half_written_figure_shows_the_one_before(tmp_path):
    figures.save(tmp_path, 5, 'a/b', Gallery('Whole', ()))
    figures.save(tmp_path, 10, 'a/b', Gallery('Torn', ())).write_text('{"kind": "Gall')
    assert figures.latest(tmp_path) == {'a/b': (5, Gallery('Whole', ()))}


def test_a_resumed_run_holds_what_was_written_last(tmp_path):
    steps = [(10, 1.), (20, 2.), (30, 3.), (20, 2.5), (30, 3.5), (40, 4.)]
    run = read(workdir(tmp_path, [dict(step=s, time=float(i), loss=v) for i, (s, v) in enumerate(steps)]))
    assert run.curves['loss'].steps.tolist() == [10, 20, 30, 40]
    assert run.curves['loss'].values.tolist() == [1, 2.5, 3.5, 4]


def test_nan_is_said(tmp_path):
    shown = page(workdir(tmp_path, [dict(step=s, loss='NaN' if s > 2 else 1.) for s in range(5)]))
    assert '2 values NaN or infinite' in shown.text


def test_figures_come_back(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (300, 200, 3)).astype(np.uint8)
    gallery = Gallery('T', (Row(Item('q', image), (Item('a', right=False, value=.5), Item('b', right=True)), 'note'),))
    loaded = figures.load(figures.save(tmp_path, 3, 'x/y', gallery))
    assert loaded.rows[0].items == gallery.rows[0].items and loaded.rows[0].note == 'note'
    assert loaded.rows[0].query.image[:2] == b'\xff\xd8'  # JPEG
    with figures.Image.open(figures.io.BytesIO(loaded.rows[0].query.image)) as thumbnail:
        assert thumbnail.size == (85, 128)
    confusion = Confusion.count(np.array([0, 1, 2]), np.array([0, 2, 2]), ('a', 'b', 'c'))
    loaded = figures.load(figures.save(tmp_path, 3, 'c', confusion))
    np.testing.assert_array_equal(loaded.counts_CC, confusion.counts_CC)
    assert (loaded.names, loaded.pairs) == (confusion.names, (('b', 'c', 1, 1),))


def test_curves_pass_through_their_values():
    svg = chart('t', Curve(np.arange(4.), np.array([0., 1., 2., 3.])))
    points = re.search(r'class="line" points="([^"]*)"', svg)[1].split()
    xs, ys = np.array([p.split(',') for p in points], float).T
    np.testing.assert_allclose(np.diff(xs), xs[1] - xs[0], atol=.2)
    np.testing.assert_allclose(np.diff(ys), ys[1] - ys[0], atol=.2)
    assert ys[1] < ys[0]  # upwards is less


@pytest.mark.parametrize('value, text', [(0, '0'), (1234.5, '1,234'), (.5, '0.5'), (.061234, '0.06123'), (3e-4, '3e-4'),
                                         (2.5e6, '2.5M'), (819200, '819.2k'), (-1e-5, '-1e-5'), (float('nan'), 'nan')])
def test_numbers_are_short(value, text):
    assert number(value) == text


def test_percent():
    assert percent(.12345) == '12.3 %'


def test_fifty_thousand_lines_take_less_than_a_few_seconds(tmp_path):
    line = {f'm/{i}': .5 for i in range(8)}
    lines = [dict(step=s, time=float(s), loss=1 / (1 + s), lr=1e-3, **line) for s in range(50_000)]
    path = workdir(tmp_path, [*lines, '{"step'])
    start = time.perf_counter()
    written = report.write(path)
    assert time.perf_counter() - start < 5  # about one second on an idle core
    assert written.stat().st_size < 1_000_000


def test_the_command(tmp_path):
    path = workdir(tmp_path / 'run', [dict(step=1, loss=2.)])
    done = subprocess.run([sys.executable, '-m', 'bigvlm.report', str(path)], capture_output=True, text=True)
    assert done.returncode == 0 and (path / 'report.html').exists(), done.stderr
    wrong = subprocess.run([sys.executable, '-m', 'bigvlm.report', str(path / 'none')], capture_output=True, text=True)
    assert wrong.returncode != 0 and 'usage' in wrong.stderr


def test_summary_puts_the_untrained_model_the_baseline_and_chance_beside_the_result(tmp_path):
    config = {'evals': {'zero_shot': {'name': 'zero_shot'}, 'base': {'name': 'nearest_caption'}}}
    path = workdir(tmp_path / 'run', [
        {'step': 0, 'time': 1., 'zero_shot/top1': .015, 'zero_shot/top1_chance': .0139, 'base/zero_shot/top1': .078},
        {'step': 100, 'time': 9., 'zero_shot/top1': .625, 'zero_shot/top1_chance': .0139}], config=config)
    head, row = report.summary(path).splitlines()
    assert re.split(r'\s{2,}', head.strip()) == ['step 100', 'untrained', 'nearest caption', 'chance']
    assert re.split(r'\s{2,}', row) == ['zero shot: top-1', '62.5 %', '1.5 %', '7.8 %', '1.4 %']
    assert report.summary(workdir(tmp_path / 'other')) == ''
