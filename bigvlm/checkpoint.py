"""Checkpoints: one state, one commit. Orbax is behind this file and in none of its signatures.

A checkpoint is a folder named by its step with three items: ``params`` (nested by module, restorable alone), ``rest``
(everything else of the state, nested by its paths) and ``about`` (JSON: what the caller adds, and every leaf's shape
and dtype). Saving is asynchronous; the last thing written is a commit file, so that a folder without one, of a save
that was killed, is no checkpoint.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from bigvlm.core import paths

_COMMIT = 'commit_success.txt'  # Orbax's name for it
_SAID = re.compile(r'(\w+)\[([\d, ]*)\]')  # what 'about' says of a leaf

log = logging.getLogger(__name__)
State = TypeVar('State')


class CheckpointError(RuntimeError):
    """A checkpoint could not be written, found, or fitted to what the run needs. The message names step and folder."""


class Checkpoints:
    """The checkpoints of one run, in ``directory``.

    Args:
        directory: a folder; it is made if it is not there.
        keep: how many of the newest to keep.
        keep_every: also keep for ever those whose step is a multiple of it (0: none).
        read_only: never write; for readers of a folder that a live run may be writing to.
    """

    def __init__(self, directory: str | Path, keep: int = 3, keep_every: int = 0, read_only: bool = False):
        self.directory = Path(directory).absolute()
        if not read_only:
            self.directory.mkdir(parents=True, exist_ok=True)
        elif not self.directory.is_dir():
            raise CheckpointError(f'{self.directory}: there is no such folder of checkpoints')
        writing = dict(read_only=True, save_interval_steps=0, max_to_keep=None, create=False, cleanup_tmp_directories=False) if read_only \
            else dict(max_to_keep=keep, keep_period=keep_every or None, cleanup_tmp_directories=True)
        self._options = ocp.CheckpointManagerOptions(
            **writing, enable_async_checkpointing=True,
            atomicity_options=ocp.options.AtomicityOptions(mode=ocp.options.AtomicityMode.COMMIT_FILE))
        self._manager = self._open()
        self._saving: int | None = None
        self._resumed: int | None = None

    def _open(self) -> ocp.CheckpointManager:
        """Also removes what killed or failed saves left."""
        if self._options.read_only:
            _quiet('Given directory is read only')  # as was asked for
        return ocp.CheckpointManager(self.directory, item_names=('params', 'rest', 'about'), options=self._options)

    # --- writing ---

    def save(self, step: int, state: Any, extra: Mapping[str, Any]) -> None:
        """Starts saving; returns as soon as the state is copied off the devices, so it may then be donated.

        Args:
            step: how many steps the state has taken.
            state: a pytree of jax arrays with a ``params`` field or key; typed PRNG keys are fine.
            extra: what else is needed to go on; must be JSON.

        Raises:
            CheckpointError: the previous save failed, or this one could not start.
        """
        self.wait()
        self._set_aside_newer()
        latest = self.latest()
        if latest is not None and latest >= step:
            raise CheckpointError(f'the checkpoint of step {step} was not saved: {self.directory} has step {latest}')
        params, rest = _items(state)
        about = {'extra': dict(extra), 'leaves': _describe({**params, **rest})}
        items = ocp.args.Composite(params=ocp.args.StandardSave(_nested(params)),
                                   rest=ocp.args.StandardSave(_nested(rest)), about=ocp.args.JsonSave(about))
        try:
            if not self._manager.save(step, args=items, force=True):
                raise RuntimeError('Orbax declined')
        except Exception as e:
            raise self._failed(step, e) from e
        self._saving = step

    def wait(self) -> None:
        """Waits until the last save is on disk. Raises CheckpointError if it failed; earlier checkpoints stay good."""
        step, self._saving = self._saving, None
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as e:
            raise self._failed(step, e) from e

    def close(self) -> None:
        """Waits, and frees what Orbax holds."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _failed(self, step: int | None, reason: Exception) -> CheckpointError:
        """The error to raise. Orbax would raise it again and again, at restoring too, so its manager is replaced."""
        self._manager = self._open()
        return CheckpointError(f'the checkpoint of step {step} could not be saved in {self.directory}: {reason}')

    def _set_aside_newer(self) -> None:
        """After resuming from an older step than the newest, the newer ones are another history (or damaged): they
        would win over what this run saves, so they are moved out of the way, not deleted."""
        resumed, self._resumed = self._resumed, None
        newer = [step for step in self.steps() if resumed is not None and step > resumed]
        if not newer:
            return
        if jax.process_index() == 0:
            # Beside the folder: in it, whatever has no commit file is cleaned up as a killed save.
            aside = self.directory.with_name(f'{self.directory.name}_set_aside')
            aside.mkdir(exist_ok=True)
            for step in newer:
                number = sum(path.name.split('.')[0] == str(step) for path in aside.iterdir())
                (self.directory / str(step)).rename(aside / f'{step}.{number}')
                log.warning('checkpoint %d is newer than %d, where this run resumed; moved to %s', step, resumed, aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices('checkpoints set aside')
        self._manager.reload()

    # --- reading ---

    def steps(self) -> list[int]:
        """The steps whose checkpoints are complete, ascending; read from the disk."""
        return sorted(int(folder.name) for folder in self.directory.iterdir()
                      if folder.name.isdigit() and (folder / _COMMIT).exists())

    def latest(self) -> int | None:
        return max(self.steps(), default=None)

    def restore(self, abstract_state: State, step: int | None = None) -> tuple[State, dict[str, Any], int]:
        """``(state, extra, step)`` with every leaf in the layout that ``abstract_state`` gives it, on any mesh.

        Args:
            abstract_state: as the state, of ShapeDtypeStructs with shardings (or arrays).
            step: which; None for the newest that can be read, walking back over damaged ones, each logged with its
                reason.

        Raises:
            CheckpointError: there is none, none can be read, or the run's parameters are not those of the checkpoint.
        """
        params, rest = _items(abstract_state)

        def read(step: int):
            about = self._about(step)
            self._compare({**params, **rest}, about['leaves'], step)
            return self._read(step, params=params, rest=rest), about['extra']
        (found, extra), step = self._newest(read, step)
        self._resumed = step
        return _fill(abstract_state, found), extra, step

    def restore_params(self, abstract_params: State, step: int | None = None) -> tuple[State, int]:
        """``(params, step)``: the parameters alone; otherwise as ``restore``."""
        params, _ = _items({'params': abstract_params})

        def read(step: int):
            saved = self._about(step)['leaves']
            self._compare(params, {path: x for path, x in saved.items() if path.startswith('params/')}, step)
            return self._read(step, params=params)
        found, step = self._newest(read, step)
        return _fill({'params': abstract_params}, found)['params'], step

    def leaves(self, step: int | None = None) -> tuple[dict[str, jax.ShapeDtypeStruct], int]:
        """``({path: shape and type} of all arrays of a checkpoint, its step)``; None: of the newest. Typed keys are left out.

        Raises:
            CheckpointError: there is no such checkpoint.
        """
        if step is None and (step := self.latest()) is None or step not in self.steps():
            raise CheckpointError(f'{self.directory}: there is no complete checkpoint{"" if step is None else f" of step {step}"} '
                                  f'(there are: {", ".join(map(str, self.steps())) or "none"})')
        found = {path: _SAID.fullmatch(said) for path, said in self._about(step)['leaves'].items()}
        return {path: jax.ShapeDtypeStruct(tuple(map(int, filter(None, said[2].split(', ')))), said[1])
                for path, said in found.items() if said}, step

    def read(self, wanted: Mapping[str, jax.ShapeDtypeStruct], step: int) -> dict[str, jax.Array]:
        """{path: array} of some ``leaves``, each on the sharding given with it; nothing else is read.

        Raises:
            CheckpointError: they cannot be read.
        """
        found: dict[str, jax.Array] = {}
        for item, prefix in (('params', 'params/'), ('rest', '')):
            flat = {path.removeprefix(prefix): x for path, x in wanted.items() if path.startswith('params/') == bool(prefix)}
            if not flat:
                continue
            tree = paths.unflatten(flat)
            arguments = ocp.args.PyTreeRestore(tree, ocp.checkpoint_utils.construct_restore_args(tree), partial_restore=True)
            try:
                with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                    read = paths.flatten(reader.restore(self.directory / str(step) / item, args=arguments))
            except Exception as e:
                raise CheckpointError(f'{self.directory / str(step)}: {item} cannot be read: {e}') from e
            found |= {f'{prefix}{path}': x for path, x in read.items()}
        return found

    def _newest(self, read, step: int | None):
        steps = self.steps() if step is None else [step]
        if not steps:
            raise CheckpointError(f'{self.directory}: there is no complete checkpoint')
        for candidate in reversed(steps):
            try:
                return read(candidate), candidate
            except CheckpointError:
                raise  # the checkpoint is whole but not this run's: older ones are no better
            except Exception as e:
                reason = f'{type(e).__name__}: {str(e).strip()}'.split('\n')[0][:300]
                log.warning('checkpoint %s cannot be read: %s', self.directory / str(candidate), reason)
        tried = f'step {step} cannot' if step is not None else f'none of the steps {steps} can'
        raise CheckpointError(f'{self.directory}: {tried} be read; the last reason: {reason}')

    def _about(self, step: int) -> dict[str, Any]:
        return self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore())).about

    def _read(self, step: int, **items: Mapping[str, Any]) -> dict[str, Any]:
        """{path: array} of the named items, each given as {path: abstract leaf}."""
        stored = {name: _nested({path: _stored(x) for path, x in flat.items()}) for name, flat in items.items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(
            **{name: ocp.args.StandardRestore(tree) for name, tree in stored.items()}))
        found = {}
        for name, flat in items.items():
            arrays = paths.flatten(restored[name])
            found.update({path: _typed(arrays[path.removeprefix('params/')], x) for path, x in flat.items()})
        return found

    def _compare(self, wanted: Mapping[str, Any], leaves: Mapping[str, Any], step: int) -> None:
        """Orbax would cast a wrong dtype silently, and say of other differences only the first."""
        wanted = _describe(wanted)
        lines = [f'  - {path} {leaves[path]}' for path in leaves if path not in wanted]
        lines += [f'  + {path} {wanted[path]}' for path in wanted if path not in leaves]
        lines += [f'  {path}: {leaves[path]} → {wanted[path]}' for path in wanted
                  if path in leaves and leaves[path] != wanted[path]]
        if lines:
            more = [f'  … and {len(lines) - 20} more'] if len(lines) > 20 else []
            title = f'{self.directory / str(step)} does not fit this run (- only in the checkpoint, + only in the run):'
            raise CheckpointError('\n'.join([title, *lines[:20], *more]))


def _quiet(beginning: str) -> None:
    """Orbax warns of what is as it should be."""
    logger = logging.getLogger('absl')
    if not any(getattr(rule, 'beginning', None) == beginning for rule in logger.filters):
        def rule(record: logging.LogRecord) -> bool:
            return not str(record.msg).startswith(beginning)
        rule.beginning = beginning
        logger.addFilter(rule)


# --- trees and typed keys ---

def _items(state: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state's leaves by path: those of ``params``, and the rest."""
    flat = {paths.from_key_path(key_path): x for key_path, x in jax.tree_util.tree_flatten_with_path(state)[0]}
    params = {path: x for path, x in flat.items() if path.startswith('params/')}
    return params, {path: x for path, x in flat.items() if path not in params}


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Of ``params`` the names of the modules come first, as in the model."""
    return paths.unflatten({path.removeprefix('params/'): _data(x) for path, x in flat.items()})


def _fill(tree: Any, leaves: Mapping[str, Any]) -> Any:
    return jax.tree_util.tree_map_with_path(lambda key_path, _: leaves[paths.from_key_path(key_path)], tree)


def _describe(flat: Mapping[str, Any]) -> dict[str, str]:
    return {path: f'{x.dtype}{list(x.shape)}' for path, x in flat.items()}


def _is_key(x: Any) -> bool:
    return jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _data(x: Any) -> Any:
    """What is written of a leaf: of a typed key its words (saving) or their shape (restoring)."""
    return jax.random.key_data(x) if isinstance(x, jax.Array) and _is_key(x) else x


def _stored(x: Any) -> jax.ShapeDtypeStruct:
    """The abstract array to restore for the abstract leaf ``x``."""
    sharding = getattr(x, 'sharding', None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    kept = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(x.shape, x.dtype)) if _is_key(x) else x
    return jax.ShapeDtypeStruct(kept.shape, kept.dtype, sharding=sharding)


def _typed(array: jax.Array, x: Any) -> jax.Array:
    """``array`` as the leaf that ``x`` describes."""
    if not _is_key(x):
        return array
    impl = []
    jax.eval_shape(lambda key: impl.append(jax.random.key_impl(key)), jax.ShapeDtypeStruct(x.shape, x.dtype))
    return jax.random.wrap_key_data(array, impl=impl[0])
