"""Another source with more fields, which tools/annotate.py has written beside it: record i of them belongs to its example i."""
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bigvlm.core import parts
from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample, usable
from bigvlm.data.sources._file_index import Joined
from bigvlm.data.sources._records import ArrayRecords
from bigvlm.data.sources.array_record import unpack
from bigvlm.data.sources._passed_on import pass_on

MANIFEST = 'manifest.json'
_KEYS = ('version', 'source', 'fingerprint', 'examples', 'shard', 'fields', 'settings', 'shards', 'finished')
_UNREADABLE = 'damaged side record'


class Annotated:
    """The examples of `source` (a spec) with the `fields` that the folders `file` hold for them; () is all of them.

    A field that an example has already is replaced. An error names both sources where the folder was written for another
    one, or for one that has changed since. An example that could not be annotated, or whose side record is damaged, cannot
    be used.
    """

    def __init__(self, source: Mapping[str, Any], file: str | Sequence[str], fields: Sequence[str] = ()):
        if not isinstance(source, Mapping):
            raise RecipeError(f"source: found {source!r}; valid: the one that is annotated, as dict(name='webdataset', files=…)")
        self._of = parts.build('bigvlm.data.sources', source, 'source')
        folders = [Path(folder).expanduser() for folder in ((file,) if isinstance(file, str) else file)]
        if not folders:
            raise RecipeError('file: found none; valid: folders that tools/annotate.py wrote')
        self._sides = [_Side(folder, self._of) for folder in folders]
        self._share(tuple(fields))
        self.name = f'{self._of.name} (with {", ".join(folder.name for folder in folders)})'
        pass_on(self, self._of, self._read)
        known = json.dumps([self._of.fingerprint, *([side.digests, side.fields] for side in self._sides)])
        self.fingerprint = hashlib.sha256(known.encode()).hexdigest()[:16]
        for side in self._sides:
            self.damage |= {f'{side.folder.name}: {reason}': items for reason, items in side.records.damage.items()}

    def __len__(self) -> int:
        return len(self._of)

    def __getitem__(self, index: int) -> dict[str, Any]:
        found = dict(self._of[index])
        for side in self._sides:
            found |= usable(side.read(index, index + 1)[0])
        return found

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions of one example, () if it has none; of a folder that has `captions`, those."""
        for side in self._sides:
            if 'captions' in side.fields:
                return usable(side.read(index, index + 1)[0])['captions']
        return self._of.captions(index)

    def describe(self, index: int) -> str:
        return self._of.describe(index)

    def _read(self, first: int, stop: int) -> list[dict[str, Any] | BadExample]:
        """Examples first to stop - 1, with one request for their side records in a file."""
        found = list(self._of.read(first, stop))
        for side in self._sides:
            for place, more in enumerate(side.read(first, stop)):
                if not isinstance(found[place], BadExample):
                    found[place] = more if isinstance(more, BadExample) else {**found[place], **more}
        return found

    def _share(self, wanted: tuple[str, ...]) -> None:
        """Tells each folder which fields to give. RecipeError for one that no folder has, or two do."""
        there = [field for side in self._sides for field in side.fields]
        if missing := [field for field in wanted if field not in there]:
            raise RecipeError(f'fields: found {missing[0]!r}; valid: {", ".join(sorted(set(there)))}')
        for side in self._sides:
            side.fields = [field for field in side.fields if not wanted or field in wanted]
        given = [field for side in self._sides for field in side.fields]
        if twice := sorted({field for field in given if given.count(field) > 1}):
            raise RecipeError(f'file: found {twice[0]!r} in two folders; valid: each field in one, or fields=(…) that do not repeat')


class _Side:
    """A folder of side records: `fields` of the examples of `source`, which it must have been written for."""

    def __init__(self, folder: Path, source: Any):
        said = manifest(folder)
        if said['fingerprint'] != source.fingerprint or said['examples'] != len(source):
            raise RecipeError(f'file: {folder} was written for {said["source"]} ({said["examples"]:,} examples, fingerprint '
                              f'{said["fingerprint"]}); source: is {source.name} ({len(source):,}, {source.fingerprint}): '
                              'annotate it again')
        if not said['finished']:
            raise RecipeError(f'file: {folder} holds {len(said["shards"])} files of a run of tools/annotate.py that was stopped; '
                              'the same command goes on with it')
        self.folder, self.fields = folder, list(said['fields'])
        self.digests = [entry['sha256'] for entry in said['shards'].values()]
        self.records = ArrayRecords([str(folder / name) for name in said['shards']])
        if len(lost := [name for name, count, entry in zip(said['shards'], self.records.counts, said['shards'].values())
                        if count not in (0, entry['examples'])]):
            raise RecipeError(f'file: {folder / lost[0]} is not what its manifest says; remove it and annotate again')
        self._joined = Joined([entry['examples'] for entry in said['shards'].values()])

    def read(self, first: int, stop: int) -> list[dict[str, Any] | BadExample]:
        return [self._chosen(record) for piece in self._joined.pieces(first, stop) for record in self.records.read(*piece)]

    def _chosen(self, record: bytes | BadExample) -> dict[str, Any] | BadExample:
        if isinstance(record, BadExample):
            return BadExample(_UNREADABLE)
        try:
            found = unpack(record)
        except ValueError:
            return BadExample(_UNREADABLE)
        if missing := [field for field in self.fields if field not in found]:
            return BadExample(f'no {missing[0]}')
        return {field: found[field] for field in self.fields}


def manifest(folder: Path) -> dict[str, Any]:
    """What tools/annotate.py says of a folder. RecipeError if there is nothing, or nothing of its."""
    try:
        said = json.loads((folder / MANIFEST).read_text(encoding='utf-8'))
        return {key: said[key] for key in _KEYS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(f'file: {folder} is no folder of tools/annotate.py (its {MANIFEST}: {error!r})') from None
