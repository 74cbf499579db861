"""The report and the table of the docs, from a plan made by hand."""

import importlib.util
import json
import os
import types

import pytest

from bigvlm.core.parts import RecipeError
from bigvlm.plan import hlo, minimum, plan as plan_lib, roofline, text

MIB, GIB = 2 ** 20, 2 ** 30
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))


def made(refused=None, unknown=(), notes=()):
    memory = plan_lib.Memory({'parameters': GIB, 'optimizer': 2 * GIB, 'averages': 0}, 16 * GIB, 'compiler',
                             *((None,) * 4 if refused else (3 * GIB, 5 * GIB, 0, MIB)), refused=refused)
    gather = hlo.Collective('all-gather', 40 * MIB, 30 * MIB, 4, ('fsdp',), 24, True, 'g')
    traffic = None if refused else hlo.Traffic((gather,), tuple(unknown))
    estimate = None if refused else roofline.Estimate(.5, .2, .05, (roofline.Transfer(('fsdp',), False, True, 720 * MIB, 9e10, .0084),))
    run = None if refused else plan_lib.Run(1000, 10 ** 9, 4096 / .2, .4, 55.5, 888., 1776.)
    least = (minimum.Needed('parameters', 'all-gather', ('fsdp',), 900 * MIB, 675 * MIB),)
    return plan_lib.Plan('v5e:4x4', 16, 16, 'TPU v5 lite', dict(replica=1, data=4, fsdp=4, tensor=1), 'pairs', 4096, 2, {'image': 'full'},
                         memory, 197e12, 10e12, 12e12, least, traffic, estimate, run, 61., tuple(notes))


def test_report_of_a_plan_that_fits():
    shown = text.report(made(notes=['something']))
    for line in ('mesh data 4, fsdp 4', 'batch 4,096 of pairs in 2 micro-batches; rematerialisation: image full; compiled in 61 s',
                 'fits, 7.999 GiB to spare', 'compiled ÷ model        1.200', '960.00',
                 'compiled ÷ least: 1.067 of bytes, 1.067 of bytes sent', '0.5 (assumed) of 197 TFLOP/s',
                 '20,480 examples/s, MFU 40.0 %', '888 chip-hours, 1,776 at the price given', 'note: something'):
        assert line in shown, shown
    assert 'averages' not in shown and 'ERROR' not in shown
    assert all(len(line) < 140 and line == line.rstrip() for line in shown.splitlines())


def test_report_of_what_does_not_fit():
    shown = text.report(made(refused=25 * GIB))
    assert 'does not fit, by at least 9.000 GiB' in shown and 'needed (compiler)' in shown and 'examples/s' not in shown
    assert made(refused=25 * GIB).as_dict()['memory']['fits'] is False


def test_a_loop_of_unknown_length_is_an_error_in_the_report():
    assert 'ERROR: the loop while.3 in main has collectives' in text.report(made(unknown=['while.3 in main']))


def test_json_has_what_is_shown():
    found = json.loads(json.dumps(made().as_dict()))
    assert found['memory']['needed'] == 8 * GIB + MIB and found['memory']['fits'] and found['run']['device_hours'] == 888.
    assert found['traffic']['table'][0]['times'] == 24 and found['estimate']['seconds'] == .2 and found['minimum_bytes'] == 900 * MIB


@pytest.mark.parametrize('message, wanted', [
    ('RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO temporaries (48.25G) '
     'exceeds available HBM (15.75G). HLO module: jit__lambda.', (48.25 * GIB, 15.75 * GIB)),
    ('RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 25.20G of 15.75G hbm. Exceeded hbm '
     'capacity by 9.45G.', (25.2 * GIB, 15.75 * GIB)),
    ('INVALID_ARGUMENT: used 3 of 4', None)])
def test_what_compilers_say_when_it_does_not_fit(message, wanted):
    assert plan_lib.read_refusal(message) == wanted


def table_tool():
    spec = importlib.util.spec_from_file_location('scaling_table', os.path.join(ROOT, 'tools', 'scaling_table.py'))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def tool():
    before = dict(os.environ)
    yield table_tool()
    os.environ.clear()
    os.environ.update(before)


def test_the_table_of_the_docs(tool, tmp_path):
    rows = [tool.row('a', 'v5e:4x4', json.loads(json.dumps(plan.as_dict()))) for plan in (made(), made(refused=25 * GIB))]
    rows.append(tool.row('b', 'h100:8', {'error': 'bigvlm: batch: 3 | 4'}))
    assert (rows[0]['GiB'], rows[0]['fits'], rows[0]['MiB']) == ('8.00 of 16.00', 'yes', '960 (least 900)')
    assert (rows[1]['fits'], rows[1]['ms']) == ('no', '–') and rows[2]['fits'] == 'bigvlm: batch: 3 / 4'
    page = tmp_path / 'page.md'
    page.write_text(f'before\n{tool.BEGIN}\nold\n{tool.END}\nafter\n', encoding='utf-8')
    tool.write(str(page), text.markdown(rows))
    tool.write(str(page), text.markdown(rows))
    written = page.read_text(encoding='utf-8')
    assert written.startswith(f'before\n{tool.BEGIN}\n| recipe |') and written.endswith(f'{tool.END}\nafter\n') and 'old' not in written
    assert len({line.count('|') for line in written.splitlines() if line.startswith('|')}) == 1
    page.write_text('nothing', encoding='utf-8')
    with pytest.raises(RecipeError, match='--docs'):
        tool.write(str(page), '')


def test_the_table_is_for_every_recipe(tool):
    found = tool.recipes()
    assert 'clip_b32' in found and not {'common', 'quickstart', '__init__'} & set(found)
    page = open(os.path.join(ROOT, 'docs', 'scaling.md'), encoding='utf-8').read()
    assert page.count(tool.BEGIN) == page.count(tool.END) == 1


def test_the_price_is_of_chips_and_the_rate_of_devices():
    topology = types.SimpleNamespace(chips=4, chip=types.SimpleNamespace(flops=1e15))
    placed = types.SimpleNamespace(plan=types.SimpleNamespace(config=dict(batch=100), total_steps=3600))
    run = plan_lib._run(placed, topology, 2., 1e15, 3.)
    assert (run.hours, run.device_hours, run.cost, run.mfu, run.examples_per_second) == (2., 8., 24., .5, 50.)
