"""tools/survey.py: rates are chosen on a seed that is not counted, methods ranked with ties, loss terms held to a threshold."""

import csv
import json
import math
import os
import re
import shlex
from pathlib import Path

import pytest

from bigvlm import recipe
from bigvlm.core.parts import RecipeError
from bigvlm.report import targets, terms
from tests.sweeping import Fake
from tests.test_compare import run_of
from tests.test_report import Page
from tools import _points, _survey_terms, compare, survey, sweep

ROOT = Path(__file__).resolve().parent.parent
SHORT = 'quickstart'
LONG = f'{ROOT}/configs/quickstart.py:steps=50'
OTHER = f'{ROOT}/configs/quickstart.py:batch=64'
NAMES = {SHORT: 'quickstart', LONG: 'quickstart-steps=50', OTHER: 'quickstart-batch=64'}


@pytest.fixture
def fake(tmp_path, monkeypatch):
    return Fake(tmp_path, monkeypatch, _points, tmp_path / 'survey')


def results(fake, method, tuned, final, place='scenes'):
    """top-1 of a method's tuning runs {rate: value} and final ones {rate: values of seeds 1, 2, …}."""
    for lr, value in tuned.items():
        fake.told['values'][f'{place}/{method}/tune_lr={lr}_seed=0'] = {'zero_shot/top1': (.01, value)}
    for lr, values in final.items():
        for seed, value in enumerate(values, start=1):
            fake.told['values'][f'{place}/{method}/lr={lr}_seed={seed}'] = {
                'zero_shot/top1': (.01, value), 'retrieval/image_to_text_r1': (0, .3)}


def run(capsys, root, *more, recipes=(SHORT, LONG, OTHER)):
    code = survey.main(['--recipes', *recipes, '--lr', '1e-3', '4e-3', '--examples', '640', '--batch', '32', '--seeds', '3',
                        '--workdir', str(root), '--targets', str(root.parent / 'targets.csv'), *more])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_survey_tunes_on_one_seed_counts_the_others_and_ranks_with_ties(fake, tmp_path, capsys):
    root = tmp_path / 'survey'
    results(fake, NAMES[SHORT], {'1e-3': .9, '4e-3': .2}, {'1e-3': (.50, .52, .51)})  # tuning's .9 is not counted
    results(fake, NAMES[LONG], {'1e-3': .3, '4e-3': .4}, {'4e-3': (.49, .54, .52)})
    results(fake, NAMES[OTHER], {'1e-3': .1, '4e-3': .2}, {'4e-3': (.20, .22, .21)})
    (tmp_path / 'targets.csv').write_text('method,encoder,data,examples,metric,value,source,status\n'
                                          'Quickstart,tiny,scenes,1,top-1,71.7,README,not run\n'
                                          'CLIP,B/32,WIT,13B,top-1,63.3,paper,not run\n')
    code, out, _ = run(capsys, root)
    assert code == 0 and len(fake.launches) == 3 * 2 + 3 * 3
    assert not [name for name in fake.names if name.endswith('seed=0') != ('tune_' in name)]
    rows = {match[1]: match[0] for match in re.finditer(r'^(\S+) +\d=? .*$', out, re.MULTILINE)}
    assert list(rows) == ['quickstart-steps=50', 'quickstart', 'quickstart-batch=64']
    assert re.match(r'quickstart +1= +1e-3 +51\.0 % ± 1\.0 % +30\.0 %', rows['quickstart'])
    assert re.match(r'quickstart-steps=50 +1= +4e-3 +51\.7 % ± 2\.5 %', rows['quickstart-steps=50'])
    assert re.match(r'quickstart-batch=64 +3 +4e-3 +21\.0 % ± 1\.0 %', rows['quickstart-batch=64'])
    # The budget is the same for all.
    configs = [json.loads((root / name / 'config.json').read_text()) for name in fake.names]
    assert {(config['batch'], config['steps']) for config in configs} == {(32, '640 examples')}

    with open(root / 'survey.csv', newline='') as file:
        found = {row['method']: row for row in csv.DictReader(file) if row['metric'] == 'zero_shot/top1'}
    assert found['quickstart']['ties'] == 'quickstart-steps=50' and found['quickstart-batch=64']['rank'] == '3'
    assert float(found['quickstart']['mean']) == pytest.approx(.51) and float(found['quickstart']['sd']) == pytest.approx(.01)
    assert len((root / 'runs.csv').read_text().splitlines()) == 1 + 9
    page = Page((root / 'survey.html').read_text())
    assert not page.loads
    for text in ('cannot be told from', 'tie (', 'p = ', 'trained with seed 0', '71.7', 'Welch'):
        assert text in page.text, text
    assert '63.3' not in page.text  # no method of this survey

    code, again, _ = run(capsys, root)
    assert code == 0 and len(fake.launches) == 15 and out.split('quickstart-steps=50 ')[-1] == again.split('quickstart-steps=50 ')[-1]


def test_a_method_that_fails_is_listed_and_the_others_go_on(fake, tmp_path, capsys):
    root = tmp_path / 'survey'
    for name in (NAMES[SHORT], NAMES[LONG]):
        results(fake, name, {'1e-3': .3, '4e-3': .4}, {'4e-3': (.4, .5, .6)})
    results(fake, NAMES[OTHER], {'1e-3': .1}, {})  # the one rate that is there is no choice
    fake.told['fail'] = {'scenes/quickstart/lr=4e-3_seed=2': 'out of luck', 'scenes/quickstart-batch=64/tune_lr=4e-3_seed=0': 'too steep'}
    code, out, _ = run(capsys, root)
    assert code == 1
    assert 'not run: quickstart: 2 of 3 seeds (scenes/quickstart/lr=4e-3_seed=2: out of luck and what differs)' in out
    assert 'not run: quickstart-batch=64: no learning rate could be chosen' in out and 'too steep' in out
    assert re.search(r'^quickstart-steps=50 +1', out, re.MULTILINE)
    assert 'out of luck' in (root / 'survey.html').read_text()
    results(fake, NAMES[OTHER], {'1e-3': .1, '4e-3': .2}, {'4e-3': (.1, .1, .1)})
    fake.told['fail'] = {}
    before = len(fake.launches)
    code, out, _ = run(capsys, root)
    assert code == 0 and len(fake.launches) - before == 1 + 1 + 3 and 'not run' not in out


def test_without_rates_each_recipe_keeps_its_own(fake, tmp_path, capsys):
    root = tmp_path / 'survey'
    fake.told['values'] = {'*': {'zero_shot/top1': (.01, .5)}}
    code = survey.main(['--recipes', SHORT, OTHER, '--seeds', '2', '--workdir', str(root)])
    assert code == 0 and fake.names == [f'scenes/{name}/seed={s}' for name in ('quickstart', 'quickstart-batch=64') for s in (1, 2)]
    assert "each recipe's own learning rate" in Page((root / 'survey.html').read_text()).text
    assert re.search(r'^quickstart +1= +the recipe\'s', capsys.readouterr().out, re.MULTILINE)


def test_showing_what_is_not_there_says_so(fake, tmp_path, capsys):
    code, out, _ = run(capsys, tmp_path / 'survey', '--show', recipes=[SHORT])
    assert code == 1 and 'no run has zero_shot/top1 yet' in out and 'not run: quickstart: no learning rate' in out and not fake.launches


def test_one_rate_needs_no_tuning(fake, tmp_path, capsys):
    fake.told['values'] = {'*': {'zero_shot/top1': (.01, .5)}}
    assert survey.main(['--recipes', SHORT, '--seeds', '2', '--lr', '2e-3', '--workdir', str(tmp_path / 'survey')]) == 0
    assert fake.names == [f'scenes/quickstart/lr=2e-3_seed={s}' for s in (1, 2)]


def test_a_second_study_is_on_tars(fake, tmp_path, capsys):
    root = tmp_path / 'survey'
    fake.told['values'] = {'*': {'retrieval/image_to_text_r1': (.01, .5)}}
    tiny = f'{ROOT}/tests/tiny_recipe.py'
    code, out, _ = run(capsys, root, '--data', 'DIR/a-{0..3}.tar', '--no_scenes', recipes=[tiny])
    assert code == 0 and 'ranked by retrieval/image_to_text_r1' in out and all(name.startswith('DIR-a-') for name in fake.names)
    config = json.loads((root / fake.names[0] / 'config.json').read_text())
    assert config['data']['train']['source']['files'] == 'DIR/a-{0..3}.tar'


@pytest.mark.parametrize('more, message', [
    (['--metric', 'linear_probe/top1'], 'quickstart: --metric'), (['--no_scenes'], '--no_scenes'),
    (['--recipes', SHORT, SHORT], 'none of them twice'),
    (['--config.optim.rate=1'], 'optim.rate')])
def test_what_cannot_be_is_refused_before_anything_runs(fake, tmp_path, capsys, more, message):
    code, _, error = run(capsys, tmp_path / 'survey', *more)
    assert code == 2 and message in error and not fake.launches


def test_a_survey_as_job_arrays(fake, tmp_path, capsys):
    root, script = tmp_path / 'survey', tmp_path / 'a.sbatch'
    code, out, _ = run(capsys, root, '--slurm', str(script), recipes=[SHORT])
    assert code == 0 and '2 runs: sbatch' in out and not fake.launches
    results(fake, 'quickstart', {'1e-3': .3, '4e-3': .4}, {'4e-3': (.4, .5, .6)})
    fake.told['fail'] = {f'scenes/quickstart/lr=4e-3_seed={s}': 'later' for s in (1, 2, 3)}
    run(capsys, root, recipes=[SHORT])
    code, out, _ = run(capsys, root, '--slurm', str(script), recipes=[SHORT])  # the rates are all there: now the seeds
    assert code == 0 and '3 runs: sbatch' in out
    assert [json.loads(line)['name'] for line in Path(f'{script}.points').read_text().splitlines()] == sorted(fake.told['fail'])


# Documentation.

def test_the_commands_of_the_page_are_commands():
    page = (ROOT / 'docs' / 'compare.md').read_text(encoding='utf-8')
    blocks = re.findall(r'^```bash\n(.*?)^```$', page, re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.replace('\\\n', ' ').splitlines()]
    tools = {'tools/compare.py': compare.parser(), 'tools/sweep.py': sweep.parser(), 'tools/survey.py': survey.parser()}
    seen = set()
    for words in lines:
        if words[0] == 'python':
            options, rest = tools[words[1]].parse_known_args(words[2:])
            assert all(word.startswith('--config.') for word in rest), words
            if recipes := getattr(options, 'recipes', ()):
                assert all(Path(survey.named(one)[1].partition(':')[0]).name in os.listdir(ROOT / 'configs') for one in recipes)
            seen.add(words[1])
    assert seen == set(tools)


# Targets.

def test_targets_are_those_of_the_method(tmp_path):
    path = tmp_path / 't.csv'
    names = ('CLIP', 'CLIPPO', 'Chinese-CLIP', 'SLIP')
    path.write_text('method,encoder,data,examples,metric,value,source,status\n' + ''.join(f'{n},B,d,1,m,1,s,not run\n' for n in names))
    rows = targets.read(path)
    for name, wanted in (('clip_b32', 'CLIP'), ('clippo_b16', 'CLIPPO'), ('chinese_clip_b16', 'Chinese-CLIP'), ('slip_b16', 'SLIP'),
                         ('slip-b16', 'SLIP')):
        assert [row['method'] for row in targets.of(rows, name)] == [wanted]
    assert targets.of(rows, 'declip_b32') == [] and targets.read(tmp_path / 'none.csv') == []
    path.write_text('method,value\nCLIP,1\n')
    with pytest.raises(RecipeError, match='encoder'):
        targets.read(path)


# Loss terms.

TERM = terms.Term('r', 'ssl', 'zero_shot', 'top1', 'higher')


def judged(tmp_path, untrained, trained, without, term=TERM, n=64.):
    def one(name, first, last):
        return run_of(tmp_path / name, top1=(first, last), **{'zero_shot/n': n})
    return terms.judge(term, [one(f'u{i}', value, value) for i, value in enumerate(untrained)], one('t', 0, trained), one('w', 0, without))


def test_a_term_must_beat_untrained_models_and_only_with_its_weight(tmp_path):
    found = judged(tmp_path, (.0, .1, .2), .5, .3)
    assert found.passed and found.sd == pytest.approx(.1) and found.threshold == pytest.approx(.4) and found.distance == pytest.approx(4)
    assert judged(tmp_path, (.0, .1, .2), .39, .3).why == 'not learned'
    assert judged(tmp_path, (.0, .1, .2), .5, .41).why == 'learned without the term too'
    lower = terms.Term('r', 'ssl', 'zero_shot', 'top1', 'lower')
    assert judged(tmp_path, (.9, .8, .7), .4, .6, lower).passed
    assert judged(tmp_path, (.9, .8, .7), .4, .45, lower).why == 'learned without the term too'
    assert judged(tmp_path, (.0, .1, .2), math.nan, .3).why == 'no finite zero_shot/top1 in the trained run'


def test_seeds_that_agree_by_chance_do_not_make_a_threshold_of_nothing(tmp_path):
    found = judged(tmp_path, (0., 0., 0.), .04, 0.)
    p = 1 / 66
    assert found.sd == pytest.approx(math.sqrt(p * (1 - p) / 64)) and found.why == 'not learned'
    assert judged(tmp_path, (0., 0., 0.), .05, 0.).passed


def test_failures_are_not_passed_over(tmp_path):
    found = terms.judge(TERM, [], None, None, {'r/trained': 'no memory'})
    assert found.why == 'not run: r/trained: no memory' and not found.passed
    assert len(terms.rows([found])[0]) == len(terms.HEAD)


def test_the_runs_of_a_term_differ_in_what_they_are_to_differ_in():
    term = terms.Term('r', 'match', 'zero_shot', 'top1', 'higher', (('steps', '40 steps'),))
    runs = _survey_terms.runs(term, f'{ROOT}/configs/quickstart.py', 'quick', [('batch', '32'), ('eval_first', 'false')], 3)
    trained, without, first = (point.config() for point in (runs.trained, runs.without, runs.untrained[0]))
    assert (trained['steps'], trained['batch'], trained['seed'], trained['objectives']['match']['weight']) == ('40 steps', 32, 0, 1)
    assert [(key, value, trained_flat[key]) for trained_flat in [recipe.flat(trained)] for key, value in recipe.flat(without).items()
            if value != trained_flat[key]] == [('objectives.match.weight', 0, 1)]
    assert first['steps'] == '1 steps' and first['eval_first'] and not trained['eval_first']
    assert {e['every'] for e in first['evals'].values()} == {'start'}
    assert [point.config()['seed'] for point in runs.untrained] == [0, 1, 2]
    with pytest.raises(RecipeError, match="objective: found 'ssl'; valid: match"):
        _survey_terms.runs(terms.Term('r', 'ssl', 'zero_shot', 'top1', 'higher'), f'{ROOT}/configs/quickstart.py', 'q', (), 3)


def test_thresholds(fake, tmp_path, capsys):
    root, table = tmp_path / 'survey', tmp_path / 'terms.csv'
    table.write_text(f'recipe,objective,evaluator,metric,better,set\n{SHORT},match,zero_shot,top1,higher,steps=20 steps\n'
                     f'{SHORT},match,retrieval,image_to_text_r1,higher,steps=20 steps\n')
    for seed, low in enumerate((.01, .02, .03)):
        fake.told['values'][f'quickstart/steps=20-steps_untrained_seed={seed}'] = {
            'zero_shot/top1': (low, low), 'retrieval/image_to_text_r1': (.1, .1)}
    fake.told['values']['quickstart/steps=20-steps_trained_seed=0'] = {'zero_shot/top1': (0, .5), 'retrieval/image_to_text_r1': (0, .3)}
    fake.told['values']['quickstart/steps=20-steps_without=match_seed=0'] = {
        'zero_shot/top1': (0, .02), 'retrieval/image_to_text_r1': (0, .4)}

    def check():
        code = survey.main(['--thresholds', '--terms', str(table), '--workdir', str(root)])
        return code, capsys.readouterr().out
    code, out = check()
    assert len(fake.launches) == 5  # both terms share all runs
    assert code == 1 and '1 of 2 terms pass' in out
    assert re.search(r'zero_shot/top1 +2\.0 % ± 1\.0 % +1\.0 % +5\.0 % +50\.0 % +\+48\.0 +2\.0 % +pass', out), out
    assert re.search(r'retrieval/image_to_text_r1 .* 40\.0 % +learned without the term too', out), out
    with open(root / 'terms.csv', newline='') as file:
        assert [row['result'] for row in csv.DictReader(file)] == ['pass', 'learned without the term too']
    assert 'pass' in Page((root / 'terms.html').read_text()).text
    table.write_text(table.read_text().rsplit('\n', 2)[0] + '\n')
    assert check()[0] == 0 and len(fake.launches) == 5


@pytest.mark.parametrize('head, row, message', [
    ('better,sets', 'higher,', 'the columns recipe, objective'), ('better,set', 'more,', "better: found 'more'; valid: higher, lower"),
    ('better,set', 'higher,steps', "set: found 'steps'"), ('better,set', 'higher', 'the columns')])
def test_a_table_of_terms_that_cannot_be_is_refused(tmp_path, head, row, message):
    table = tmp_path / 'terms.csv'
    table.write_text(f'recipe,objective,evaluator,metric,{head}\nr,o,e,m,{row}\n')
    with pytest.raises(RecipeError, match=message):
        _survey_terms.load(table)
    with pytest.raises(RecipeError, match='--recipes: other'):
        table.write_text('recipe,objective,evaluator,metric,better,set\nr,o,e,m,higher,\n')
        _survey_terms.load(table, ['other'])


def test_the_table_of_terms_names_recipes_that_have_them():
    found = _survey_terms.load(ROOT / 'tools' / 'terms.csv')
    assert found
    for term in found:
        name, spec = survey.named(term.recipe)
        spec = spec if Path(spec.partition(':')[0]).is_absolute() else f'{ROOT}/{spec}'
        _survey_terms.runs(term, spec, name, (), 3)
