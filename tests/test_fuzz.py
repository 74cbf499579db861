"""The fuzzing tool: a small run of it, and that it sees what it is made to see."""
import os
import pathlib
import subprocess
import sys

import pytest

TOOL = pathlib.Path(__file__).parents[1] / 'tools' / 'fuzz.py'


def fuzz(*arguments, **variables):
    command = [sys.executable, TOOL, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **variables}, timeout=300)


@pytest.mark.parametrize('target, files', [('tar', 300), ('decode', 1200)])
def test_damaged_files_end_well(target, files, tmp_path):
    done = fuzz('--files', files, '--seed', 5, '--target', target, '--out', tmp_path, '--processes', 2)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f'seed 5: {files} files' in done.stdout and 'slowest' in done.stdout and 'peak memory' in done.stdout
    for outcome in {'tar': ('all read', 'some lost', 'nothing left'), 'decode': ('decoded', 'damaged image', 'truncated image')}[target]:
        assert f'{target}: {outcome}' in done.stdout, done.stdout


@pytest.mark.parametrize('planted, seen', [
    ('crash', 'killed by SIGABRT'), ('hang', 'it hangs'), ('sleep', 'without using the processor'), ('memory', 'MemoryError'),
    ('error', 'KeyError'), ('exit', 'exit status 3')])
def test_a_planted_fault_is_seen(planted, seen, tmp_path):
    target = ('--target', 'tests.data.toy_data.planted', '--files', 60, '--seconds', .2)
    done = fuzz(*target, '--out', tmp_path, '--processes', 2, PLANTED=planted)
    assert done.returncode == 1 and 'FAILED' in done.stdout and seen in done.stdout, done.stdout + done.stderr
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b'planted']
    assert f'written to {next(tmp_path.iterdir())}' in done.stdout


def test_nothing_is_seen_where_nothing_is_planted(tmp_path):
    done = fuzz('--target', 'tests.data.toy_data.planted', '--files', 60, '--out', tmp_path, PLANTED='none')
    assert done.returncode == 0 and '60 files' in done.stdout and not list(tmp_path.iterdir())
