"""Comparing runs: differences of recipes, spread and ties, overlaid curves, tools/compare.py."""

import dataclasses
import json
import math
import re
from html import unescape

import numpy as np
import pytest
from scipy import stats

from bigvlm.report import compare, overlay, spread, svg
from bigvlm.report.read import read
from bigvlm.report.spread import Spread, p_value, ranks
from bigvlm.report.svg import Curve, percent
from tests.test_report import Page, workdir
from tools import compare as tool


def run_of(path, seed=0, lr=1e-3, top1=(.1, .5), loss=4., extra=None, config=None, status='finished', **numbers):
    """A workdir of 11 steps: the loss falls by .2 a step, top1 goes from the first to the second value."""
    lines = [{'step': 0, 'time': 0., 'zero_shot/top1': top1[0], 'zero_shot/top1_chance': .01, 'zero_shot/n': 64.}]
    lines += [{'step': step, 'time': float(step), 'loss': loss - .2 * step, 'examples_per_s': 100. + step, **numbers}
              for step in range(1, 11)]
    lines += [{'step': 10, 'time': 12., 'zero_shot/top1': top1[1], 'zero_shot/top1_chance': .01, 'zero_shot/n': 64., **(extra or {})}]
    content = {'seed': seed, 'batch': 8, 'optim': {'name': 'adamw', 'lr': lr}, 'evals': {'zero_shot': {'name': 'zero_shot'}}}
    content |= config or {}
    path.parent.mkdir(parents=True, exist_ok=True)
    return read(workdir(path, lines, config=content, run={'status': status, 'total_steps': 10}))


# Spread.

def test_welch_is_the_textbook_formula():
    a, b = (.61, .64, .60), (.52, .58, .41, .50)
    va, vb = np.var(a, ddof=1) / 3, np.var(b, ddof=1) / 4
    t = (np.mean(a) - np.mean(b)) / math.sqrt(va + vb)
    freedom = (va + vb) ** 2 / (va ** 2 / 2 + vb ** 2 / 3)
    assert p_value(Spread(a), Spread(b)) == pytest.approx(2 * stats.t.sf(abs(t), freedom), rel=1e-12)
    assert Spread(a).sd == pytest.approx(math.sqrt(sum((x - sum(a) / 3) ** 2 for x in a) / 2))


def test_one_seed_tells_nothing_and_equal_seeds_everything():
    assert math.isnan(p_value(Spread((1.,)), Spread((2., 3.)))) and math.isnan(p_value(Spread((1., math.nan)), Spread((2., 3.))))
    assert p_value(Spread((1., 1.)), Spread((1., 1.))) == 1 and p_value(Spread((1., 1.)), Spread((1.1, 1.1))) == 0
    assert not spread.differ(Spread((1.,)), Spread((2., 3.)))


def test_agreeing_to_the_last_example_is_no_spread_of_nothing():
    n = 128
    def at(hits):
        return Spread((hits / n,) * 3, .5 / n)
    assert not spread.differ(at(5), at(6)) and spread.differ(at(5), at(7)) and spread.differ(at(0), at(n))
    t = (1 / n) / math.sqrt(2 * (.5 / n) ** 2 / 3)
    assert p_value(at(5), at(6)) == pytest.approx(2 * stats.t.sf(t, 4))


def test_ranks_count_only_who_is_better_by_more_than_the_spread():
    spreads = {'b': Spread((.50, .52, .51)), 'a': Spread((.60, .61, .62)), 'c': Spread((.49, .55, .52)), 'none': Spread(()),
               'low': Spread((.1, .1, .1))}
    found = {r.name: (r.rank, r.ties) for r in ranks(spreads)}
    assert list(found) == ['a', 'c', 'b', 'low', 'none']
    assert found == {'a': (1, ()), 'c': (2, ('b',)), 'b': (2, ('c',)), 'low': (4, ()), 'none': (5, ())}
    assert [r.name for r in ranks(spreads, less_is_better=True)][:2] == ['low', 'b']


def test_numbers_with_their_spread():
    assert Spread((.612, .632)).text(percent) == '62.2 % ± 1.4 %'
    assert Spread((.5,)).text(percent) == '50.0 %' and Spread(()).text(percent) == ''
    assert Spread((1.2345, 1.3456)).text(svg.number) == '1.29 ± 0.079'


# What differs.

def test_only_differing_keys_into_lists_of_dicts():
    a = {'seed': 0, 'about': {'paper': 'A'}, 'batch': 8, 'optim': {'lr': .1, 'name': 'adamw'}, 'objectives': {'match': {'weight': 1}},
         'data': {'train': {'ops': [{'name': 'crop', 'size': 8}, {'name': 'keep'}]}}, 'ema': {}}
    b = json.loads(json.dumps(a)) | {'seed': 1, 'about': {'paper': 'B'}}
    b['optim']['lr'] = .2
    b['objectives']['ssl'] = {'name': 'simclr'}
    b['data']['train']['ops'][0]['size'] = 16
    assert compare.differences([a, b]) == [
        ('optim.lr', ['0.1', '0.2']), ('objectives.ssl', ['–', '{"name": "simclr"}']), ('data.train.ops.0.size', ['8', '16'])]
    b['data']['train']['ops'].pop()
    assert ('data.train.ops', [json.dumps(c['data']['train']['ops']) for c in (a, b)]) in compare.differences([a, b])
    assert compare.differences([a, a]) == [] and compare.differences([a]) == []


def test_seeds_are_pooled_and_only_seeds(tmp_path):
    runs = [run_of(tmp_path / f'lr={lr:g}_seed={seed}', seed=seed, lr=lr) for lr in (.1, .2) for seed in (0, 1)]
    assert [(g.name, len(g.runs)) for g in compare.grouped(runs, pool_seeds=True)] == [('lr=0.1', 2), ('lr=0.2', 2)]
    assert [g.name for g in compare.grouped(runs)] == ['lr=0.1_seed=0', 'lr=0.1_seed=1', 'lr=0.2_seed=0', 'lr=0.2_seed=1']
    same = [run_of(tmp_path / place / 'run', lr=lr) for place, lr in (('x', .1), ('y', .2))]
    assert [g.name for g in compare.grouped(same)] == ['run (1)', 'run (2)']


# Results.

def test_columns_are_metrics_then_what_every_run_records(tmp_path):
    extra = {'retrieval/image_to_text_r1': .2, 'retrieval/image_to_text_median_rank': 9., 'zero_shot/top5': .9}
    run = run_of(tmp_path / 'a', extra=extra, config={'evals': {'retrieval': {'name': 'retrieval'}, 'zero_shot': {'name': 'zero_shot'}}},
                 device_memory_peak=3. * 2 ** 30)
    columns = {c.key: c for c in compare.columns([run])}
    assert [key for key, c in columns.items() if c.headline] == [
        'zero_shot/top1', 'retrieval/image_to_text_r1', 'loss', 'examples_per_s', 'device_memory_peak', 'elapsed']
    assert 'zero_shot/n' not in columns and 'zero_shot/top1_chance' not in columns
    assert columns['retrieval/image_to_text_median_rank'].less and columns['loss'].less and not columns['zero_shot/top5'].less
    shown = {key: c.form(c.of(run)) for key, c in columns.items()}
    assert shown['zero_shot/top1'] == '50.0 %' and shown['device_memory_peak'] == '3 GiB' and shown['elapsed'] == '12 s'
    assert columns['examples_per_s'].of(run) == np.median(100. + np.arange(2, 11))  # the first holds compilation
    assert columns['loss'].of(run) == pytest.approx(2.)


def test_the_best_and_what_cannot_be_told_from_it(tmp_path):
    tops = {'a': (.50, .54), 'b': (.49, .53), 'c': (.1, .12)}
    groups = [compare.Group(name, tuple(run_of(tmp_path / f'{name}{i}', seed=i, top1=(0, t)) for i, t in enumerate(pair)))
              for name, pair in tops.items()]
    columns = {c.key: c for c in compare.columns([run for g in groups for run in g.runs])}
    assert compare.best(groups, columns['zero_shot/top1']) == {'a', 'b'}
    assert compare.best(groups, columns['examples_per_s']) == set()
    assert compare.best(groups[:2], columns['zero_shot/top1']) == set()  # all alike: none is the best
    singles = [compare.Group(g.name, g.runs[:1]) for g in groups]
    assert compare.best(singles, columns['zero_shot/top1']) == {'a'}  # one seed each: only the best value


def test_losses_of_different_objectives_are_not_compared(tmp_path):
    runs = [run_of(tmp_path / name, loss=loss, config={'objectives': {'match': {'name': name}}}) for name, loss in (('a', 4.), ('b', 8.))]
    loss, = (c for c in compare.columns(runs) if c.key == 'loss')
    assert loss.less is None and not loss.headline and compare.best(compare.grouped(runs), loss) == set()
    same, = (c for c in compare.columns(runs[:1]) if c.key == 'loss')
    assert same.less and same.headline


def test_a_share_is_no_finer_than_half_an_example(tmp_path):
    group = compare.Group('a', (run_of(tmp_path / 'a'),))
    columns = {c.key: c for c in compare.columns(group.runs)}
    assert group.spread(columns['zero_shot/top1']).least == .5 / 64 and group.spread(columns['loss']).least == 0


def test_time_leaves_out_what_lay_between_launches(tmp_path):
    run = run_of(tmp_path / 'a')  # lines at 0, 1, … 9 and 12 seconds
    launches = [{'started': '1969-12-31T23:59:59+00:00'}, {'started': '1970-01-01T00:00:11+00:00'}]
    again = dataclasses.replace(run, info=run.info | {'launches': launches})
    assert [compare._elapsed(one) for one in (run, again)] == [12, 9]


def test_a_run_that_is_not_finished_is_said(tmp_path):
    run = run_of(tmp_path / 'a', status='failed')
    assert compare.Group('a', (run,)).state == 'failed at step 10 of 10'
    assert compare.Group('a', (run, run_of(tmp_path / 'b'))).state == '1 of 2: failed at step 10 of 10'


# Curves.

def points(html, kind='polyline'):
    return [np.array([p.split(',') for p in found.split()], float)
            for found in re.findall(rf'<{kind} class="[^"]*" points="([^"]*)"', html)]


def test_seeds_are_their_mean_with_a_band_of_one_sd():
    curves = [Curve(np.array([0., 5, 10]), np.array([0., 1, 2])), Curve(np.array([0., 5, 7, 10]), np.array([0., 3, 9, math.nan]))]
    line = overlay.mean('x', 0, curves)
    np.testing.assert_array_equal(line.curve.steps, [0, 5])  # where both have a finite value
    np.testing.assert_allclose(line.curve.values, [0, 2])
    np.testing.assert_allclose(line.around, [0, math.sqrt(2)])
    assert overlay.mean('x', 0, []) is None and overlay.mean('x', 0, [curves[0], Curve(np.array([3.]), np.array([1.]))]) is None
    assert overlay.mean('x', 0, curves[:1]).around is None


def test_lines_share_one_scale():
    lines = [overlay.Line(name, Curve(np.arange(4.), values), i, around) for i, (name, values, around) in enumerate((
        ('low', np.arange(4.), None), ('high', np.arange(4.) + 10, np.full(4, 2.))))]
    html = overlay.chart('t', lines)
    (low, high), (band,) = points(html), points(html, 'polygon')
    per_unit = (low[0, 1] - low[3, 1]) / 3
    np.testing.assert_allclose(low[:, 1] - high[:, 1], 10 * per_unit, atol=.2)
    np.testing.assert_allclose(low[:, 0], high[:, 0])
    np.testing.assert_allclose([high[0, 1] - band[0, 1], band[-1, 1] - high[0, 1]], 2 * per_unit, atol=.2)
    hover = json.loads(unescape(re.search(r'data-lines="([^"]*)"', html)[1]))
    assert [name for name, _ in hover] == ['low', 'high'] and hover[1][1][3][2:] == ['step 3', '13']
    assert len(overlay.chart('t', [])) < 200


def test_a_name_may_hold_anything():
    name = '<b>"x" & \'y\''
    html = overlay.chart(name, [overlay.Line(name, Curve(np.arange(3.), np.arange(3.)), 0)]) + overlay.legend([name])
    page = Page(html)
    assert [dict(attributes)['data-line'] for tag, attributes in page.tags if 'data-line' in dict(attributes)] == [name, name]
    assert '<b>' not in html.replace('<b></b>', '')


def test_other_batches_are_compared_over_examples(tmp_path):
    runs = [run_of(tmp_path / 'a'), run_of(tmp_path / 'b', config={'batch': 16})]
    lines = compare.lines_of(compare.grouped(runs), 'loss', examples=True)
    assert lines[0].curve.steps[-1] == 80 and lines[1].curve.steps[-1] == 160


# The tool.

def test_the_tool(tmp_path, capsys):
    for lr, tops in ((.1, (.5, .52)), (.2, (.3, .31))):
        for seed, top in enumerate(tops):
            run_of(tmp_path / f'lr={lr}_seed={seed}', seed=seed, lr=lr, top1=(.01, top))
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'file.txt').write_text('')
    html = tmp_path / 'page.html'
    assert tool.main([*map(str, sorted(tmp_path.iterdir())), '--pool_seeds', '--html', str(html)]) == 0
    said = capsys.readouterr()
    assert re.search(r'^optim\.lr +0\.1 +0\.2$', said.out, re.MULTILINE) and 'seed' not in said.out.split('\n\n')[0].replace('_seed', '')
    assert re.search(r'^lr=0\.1 +51\.0 % ± 1\.4 % \*', said.out, re.MULTILINE)
    assert 'empty holds no run' in said.err and 'file.txt' not in said.err
    page = Page(html.read_text())
    assert not page.loads and 'optim.lr' in page.text and '51.0 % ± 1.4 %' in page.text and 'What differs' in page.text
    assert sum(tag == 'figure' for tag, _ in page.tags) == 3  # loss, top-1, examples/s
    assert ('td', {'class': 'best'}) in page.tags
    assert tool.main([str(tmp_path / 'empty')]) == 2
    assert tool.main([str(tmp_path / 'lr=0.1_seed=0'), '--html', str(html)]) == 0 and 'One recipe' in html.read_text()
