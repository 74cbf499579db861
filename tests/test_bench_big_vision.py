"""What the benchmark beside big_vision is asked for; nothing is compiled."""

import importlib.util
import os
import pathlib
from unittest import mock

import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('bench_big_vision', ROOT / 'tools' / 'bench_big_vision.py')
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(os.environ):  # it prepares the environment of its own process
        spec.loader.exec_module(module)
    return module


def test_a_row_says_strategy_rematerialisation_and_more(tool):
    assert tool.row_of('replicate,none', 64) == tool.Row('replicate', 'none', batch=64)
    assert tool.row_of('fsdp,full,mesh=16x16,batch=131072', 64) == tool.Row('fsdp', 'full', (16, 16), 131_072)
    assert tool.row_of('replicate,dots_saveable,optimizer=adam,text=bfloat16', 64) == \
        tool.Row('replicate', 'dots_saveable', batch=64, optimizer='adam', text='bfloat16')


@pytest.mark.parametrize('row, message', [
    ('replicate', "--rows replicate: unknown remat '' (valid: none, full,"),
    ('zero,full', "--rows zero,full: unknown strategy 'zero' (valid: replicate, fsdp)"),
    ('fsdp,full,remat=2', "--rows fsdp,full,remat=2: unknown key 'remat' (valid: mesh, batch, optimizer, text)"),
    ('fsdp,full,mesh=2x2x2', '--rows fsdp,full,mesh=2x2x2: mesh must be like 16x16 and batch a number'),
])
def test_a_wrong_row_is_told_what_is_valid(tool, row, message):
    with pytest.raises(tool.RecipeError) as error:
        tool.row_of(row, 64)
    assert str(error.value).startswith(message)


def test_remat_of_ours_is_that_of_both_towers(tool):
    config = tool.setting_of('remat=full mesh.fsdp=16', 64)
    assert [tower['remat'] for tower in config['towers'].values()] == ['full', 'full']
    assert config['batch'] == 64 and config['mesh']['fsdp'] == 16
    with pytest.raises(tool.RecipeError, match="--ours full: 'full' is not KEY=VALUE"):
        tool.setting_of('full', 64)


def test_a_folder_that_is_no_checkout_is_refused(tool, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        tool.main(['--big_vision', str(tmp_path), '--rows', 'replicate,none'])
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith(f"bigvlm: --big_vision: '{tmp_path}' is no checkout") and message.count('\n') == 1


def test_what_is_computed_and_not_used_does_not_count(tool):
    jax = tool.jax
    x = jax.ShapeDtypeStruct((8, 8), 'float32')
    function = jax.jit(lambda a: ((a @ a) @ a, a @ a.T)[0])
    assert tool.used_flops(function, x) == 2 * tool.flops.count(lambda a: a @ a, x)


def test_a_row_that_was_refused_says_by_how_much(tool):
    found = dict(flops=72e12, refused=25.2 * tool.GIB, limit=15.75 * tool.GIB, seconds=9.)
    cells = tool.cells('big_vision replicate,none', 131_072, 256, found)
    assert cells[2:4] == ('out of memory:', '25.2 of 15.75 GiB') and len(cells) == len(tool.COLUMNS)
