"""The folder of a run: one live run at a time, one recipe, and what is needed to know later how it was made.

It holds ``config.json`` (the resolved recipe), ``run.json`` (command, code, versions, devices, every launch),
``log.txt``, ``metrics.jsonl``, ``checkpoints/``, ``figures/`` and ``report.html``.
"""

import collections
import datetime
import fcntl
import importlib.metadata
import json
import logging
import os
import platform
import re
import shlex
import socket
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

import bigvlm
from bigvlm.core.parts import RecipeError

log = logging.getLogger(__name__)

# They change what is shown, measured or kept of a run, not what is trained.
HARMLESS = tuple(rf'{key}(\..*)?' for key in ('about', 'log', 'checkpoint', 'loader', 'profile', 'resume', 'evals',
                                             'eval_first', 'eval_params'))
_PACKAGES = ('jax', 'jaxlib', 'libtpu', 'flax', 'optax', 'orbax-checkpoint', 'numpy', 'tensorflow-datasets',
             'sentencepiece')


class WorkdirError(RecipeError):
    """The folder cannot be used for this run: another one is live in it, or it holds a run of another recipe."""


def open_workdir(path: str | Path, config: Mapping[str, Any], command: Sequence[str],
                 allow_change: Iterable[str] = ()) -> 'Workdir':
    """Opens (or makes) the folder for a run, and holds it until it is closed; use it in a ``with``.

    Args:
        path: the folder.
        config: the resolved recipe: nested dicts of what JSON can hold.
        command: the command line (``sys.orig_argv``).
        allow_change: regexes; a key like ``optim.lr`` may differ from the earlier run's if one matches all of it. A key
            of ``HARMLESS`` always may.

    Raises:
        WorkdirError: another live run holds the folder; or it has checkpoints and their recipe differs, which is shown.
    """
    work = Workdir(Path(path), primary=not jax.distributed.is_initialized() or jax.process_index() == 0)
    try:
        work._launch(config, command, tuple(allow_change))
    except BaseException:
        work.close()
        raise
    return work


class Workdir:
    """An open folder. In processes other than the first of a multi-process run it writes nothing."""

    def __init__(self, path: Path, primary: bool = True):
        self.path, self.primary = path, primary
        self._info: dict[str, Any] = {}
        self._lock = self._log = None
        path.mkdir(parents=True, exist_ok=True)
        if primary:
            self._lock = _lock(path)

    def __enter__(self) -> 'Workdir':
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if isinstance(error, Exception):
            self.note(status='failed', error=f'{kind.__name__}: {error}')
        elif self._info.get('status') == 'running':
            self.note(status='stopped')
        self.close()

    def note(self, **facts: Any) -> None:
        """Adds facts to run.json: ``total_steps=1000``."""
        self._info.update(facts)
        self.write_json('run.json', self._info)

    def describe_devices(self, kinds: Sequence[str]) -> None:
        """Notes what the run runs on, from every device's kind."""
        self.note(devices=', '.join(f'{n} × {kind}' for kind, n in collections.Counter(kinds).items()))

    def finish(self) -> None:
        """Notes that the run reached its end."""
        self.note(status='finished')

    def write_json(self, name: str, content: Any) -> None:
        """Writes a JSON file of the folder at once: a reader never sees half of it."""
        if self.primary:
            _replace(self.path / name, json.dumps(content, indent=1, ensure_ascii=False) + '\n')

    def close(self) -> None:
        """Lets go of the folder."""
        if self._log is not None:
            logging.getLogger().removeHandler(self._log)
            self._log.close()
        if self._lock is not None:
            os.close(self._lock)
        self._log = self._lock = None

    def _launch(self, config: Mapping[str, Any], command: Sequence[str], allow_change: tuple[str, ...]) -> None:
        changed = self._compare(config, allow_change)
        started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds')
        launch = {'command': shlex.join(command), 'started': started, 'git_commit': _git_commit(),
                  'versions': _versions(), 'host': socket.gethostname()}
        if not self.primary:
            return
        earlier = _read(self.path / 'run.json').get('launches', [])
        self.note(status='running', **launch, launches=[*earlier, {**launch, 'changed': changed}])
        _replace(self.path / 'config.json', dump(config) + '\n')
        self._log = logging.FileHandler(self.path / 'log.txt', encoding='utf-8')
        self._log.setFormatter(logging.Formatter('%(asctime)s %(levelname).1s %(message)s'))
        self._log.addFilter(lambda record: record.levelno > logging.INFO or '/orbax/' not in record.pathname)
        logging.getLogger().addHandler(self._log)
        log.info('launch: %s', launch['command'])
        for line in changed:
            log.warning('changed since the last launch: %s', line)

    def _compare(self, config: Mapping[str, Any], allow_change: tuple[str, ...]) -> list[str]:
        """What differs from the folder's recipe. Without a checkpoint nothing is carried on, and all may differ."""
        if not (self.path / 'config.json').exists():
            return []
        before, after = _flat(_read(self.path / 'config.json')), _flat(json.loads(dump(config)))
        changed = {key: f'{key}: {before.get(key, "(absent)")} → {after.get(key, "(absent)")}'
                   for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)}
        checkpoints = self.path / 'checkpoints'
        resumes = checkpoints.is_dir() and any(folder.name.isdigit() for folder in checkpoints.iterdir())
        refused = [key for key in changed if not any(re.fullmatch(rule, key) for rule in (*HARMLESS, *allow_change))]
        if refused and resumes:
            title = (f'{self.path} holds a run of another recipe; to resume it all the same, name the keys in '
                     'resume.allow (regexes); otherwise use another workdir. The difference (then → now):')
            raise WorkdirError('\n  '.join([title, *(changed[key] for key in refused)]))
        return list(changed.values())


def dump(config: Mapping[str, Any]) -> str:
    """The resolved recipe as JSON for people: a key a line, short lists in one. Tuples become lists."""
    return _lines(json.loads(json.dumps(config)), '')


def _lines(value: Any, indent: str) -> str:
    flat = json.dumps(value, ensure_ascii=False)
    if not value or not isinstance(value, (dict, list)) or (isinstance(value, list) and len(indent) + len(flat) <= 100):
        return flat
    deeper = indent + '  '
    if isinstance(value, dict):
        items = [f'{json.dumps(key, ensure_ascii=False)}: {_lines(item, deeper)}' for key, item in value.items()]
    else:
        items = [_lines(item, deeper) for item in value]
    left, right = '{}' if isinstance(value, dict) else '[]'
    return left + ','.join(f'\n{deeper}{item}' for item in items) + f'\n{indent}{right}'


def _flat(value: Any, key: str = '') -> dict[str, Any]:
    """{'a.b.0.c': value as JSON}: into dicts and into lists that hold dicts (data ops)."""
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        value = {str(i): item for i, item in enumerate(value)}
    if not isinstance(value, dict) or (not value and key):
        return {key: json.dumps(value, ensure_ascii=False)}
    found = {}
    for name, item in value.items():
        found |= _flat(item, f'{key}.{name}' if key else name)
    return found


def _lock(path: Path) -> int:
    """An exclusive lock, which the system lets go when the process ends, however it ends."""
    file = os.open(path / 'lock', os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        holder = os.read(file, 1000).decode(errors='replace').strip() or f'another process ({e.strerror})'
        os.close(file)
        raise WorkdirError(f'{path} is in use by {holder}; stop that run or use another workdir') from None
    os.ftruncate(file, 0)
    os.write(file, f'process {os.getpid()} on {socket.gethostname()}'.encode())
    return file


def _replace(path: Path, text: str) -> None:
    written = path.with_name(f'.{path.name}.new')
    written.write_text(text, encoding='utf-8')
    os.replace(written, path)


def _read(path: Path) -> dict[str, Any]:
    """A JSON object of an earlier launch; empty if there is none."""
    return json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}


def _git_commit() -> str | None:
    """The commit of the code that runs, and whether it was modified; None if it is not a checkout."""
    def git(*arguments: str) -> str:
        command = ['git', '-C', os.path.dirname(bigvlm.__file__), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.strip()
    try:
        git('ls-files', '--error-unmatch', '__init__.py')  # an installed package may lie in somebody else's checkout
        modified = git('status', '--porcelain', '--untracked-files=no')
        return git('rev-parse', 'HEAD') + (' (modified)' if modified else '')
    except (OSError, subprocess.SubprocessError):
        return None


def _versions() -> dict[str, str]:
    found = {'bigvlm': bigvlm.__version__, 'python': platform.python_version(), 'system': platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
