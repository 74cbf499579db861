"""The documentation: the example of docs/extend.md runs outside the repository, and what the pages name exists."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTEND = ROOT / 'docs' / 'extend.md'
HEADED_BLOCK = re.compile(r'^### `([\w/]+\.py)`\n+```python\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def extract(folder: Path) -> list[str]:
    """Writes the page's files below ``folder``; their names."""
    blocks = HEADED_BLOCK.findall(EXTEND.read_text(encoding='utf-8'))
    for name, code in blocks:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(code, encoding='utf-8')
    return [name for name, _ in blocks]


def test_the_example_of_extend_runs_outside_the_repository(tmp_path):
    project, workdir = tmp_path / 'my_project', tmp_path / 'run'
    project.mkdir()
    assert extract(project) == ['mine/squares.py', 'mine/mosaic.py', 'mine/hinge.py', 'mine/gap.py', 'configs/mine.py']
    env = os.environ | {'PYTHONPATH': os.pathsep.join((str(project), str(ROOT))), 'JAX_PLATFORMS': 'cpu',
                        'XLA_FLAGS': '--xla_force_host_platform_device_count=2', 'BIGVLM_CACHE': str(tmp_path / 'cache')}
    command = [sys.executable, '-m', 'bigvlm.train', '--config', f'{project}/configs/mine.py:steps=4', '--workdir', str(workdir)]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr

    lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    last = {key: value for line in lines for key, value in line.items()}
    assert last['step'] == 4
    assert 0 <= last['rank/violations'] <= 1 and -1 <= last['rank/cosine'] <= 1
    assert last['loss'] == last['rank/loss'] > 0
    assert abs(last['gap/own'] - last['gap/other'] - last['gap/gap']) < 1e-6 and last['gap/gap'] != 0
    assert last['zero_shot/n'] == 64
    assert (workdir / 'report.html').is_file()
