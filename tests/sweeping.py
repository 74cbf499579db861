"""A trainer that takes milliseconds, for tests of what runs many of them: it does as told, and leaves a workdir behind."""

import json
import sys

TRAINER = '''
import json, os, pathlib, signal, sys, time
options = dict(a[9:].split('=', 1) for a in sys.argv[1:] if a.startswith('--config.'))
work = pathlib.Path(sys.argv[sys.argv.index('--workdir') + 1])
told = json.loads(pathlib.Path({told!r}).read_text())
name = str(work.relative_to(told['root']))
began = time.time()
resumed = (work / 'config.json').exists()
(work / 'config.json').write_text(json.dumps(told['configs'][name]))
note = lambda **facts: (work / 'run.json').write_text(json.dumps(dict(total_steps=10, **facts)))
note(status='running')
if told['seconds'].get(name):
    signal.signal(signal.SIGTERM, lambda *_: (note(status='stopped'), sys.exit(0)))
    time.sleep(told['seconds'][name])
with open(told['log'], 'a') as log:
    gpu = os.environ.get('CUDA_VISIBLE_DEVICES')
    log.write(json.dumps(dict(name=name, began=began, ended=time.time(), resumed=resumed, gpu=gpu)) + '\\n')
if name in told['fail']:
    print('a long story\\nbigvlm: ' + told['fail'][name] + '\\n  and what differs', flush=True)
    sys.exit(2)
values = told['values'].get(name) or told['values'].get('*', dict())
with open(work / 'metrics.jsonl', 'w') as file:
    for step in (0, 5, 10):
        part = dict((k, v[0] + (v[1] - v[0]) * step / 10) for k, v in values.items())
        file.write(json.dumps(dict(step=step, time=began + step, loss=5 - step / 10, examples_per_s=100., **part)) + '\\n')
note(status='finished')
'''


class Fake:
    """Stands in for the trainer: ``values`` {run: {metric: (first, last)}}, ``fail`` {run: why}, ``seconds`` {run: how long}."""

    def __init__(self, tmp_path, monkeypatch, points, root):
        self.log, self._told = tmp_path / 'launches.jsonl', tmp_path / 'told.json'
        (tmp_path / 'trainer.py').write_text(TRAINER.replace('{told!r}', repr(str(self._told))))
        monkeypatch.setattr(points, 'TRAINER', (sys.executable, '-S', str(tmp_path / 'trainer.py')))
        self._monkeypatch, self._points, self._root = monkeypatch, points, root
        self.told = dict(root=str(root), configs={}, values={}, fail={}, seconds={}, log=str(self.log))
        original = points.check

        def check(some):
            self.told['configs'] |= {point.name: point.config() for point in some}
            self.write()
            return original(some)
        monkeypatch.setattr(points, 'check', check)

    def write(self):
        self._told.write_text(json.dumps(self.told))

    @property
    def launches(self):
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    @property
    def names(self):
        return [launch['name'] for launch in self.launches]
