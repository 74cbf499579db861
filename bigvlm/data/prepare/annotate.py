"""Side fields of any source: one record for each of its examples, shard after shard, to be taken up again where it was stopped."""
import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample
from bigvlm.data.cache import fresh, locked
from bigvlm.data.prepare.shards import Records
from bigvlm.data.prepare.walk import progress, walk
from bigvlm.data.sources.annotated import MANIFEST, manifest

_VERSION = 1  # of what is written for an example


@dataclass(frozen=True)
class Annotator:
    """Makes `fields` of examples. `settings` say how; a folder that was begun with others is not gone on with.

    `one`: (index, example) -> anything, in threads; BadExample where there is nothing to annotate. `many`: what `one` gave of
    up to `together` examples -> a dict of fields for each, in order, in one thread: where a model runs. None: `one` gives
    these dicts. `read`: what to read of an example instead of all of it, by its index.
    """
    fields: tuple[str, ...]
    settings: Mapping[str, Any]
    one: Callable[[int, Any], Any]
    many: Callable[[list[Any]], Sequence[Mapping[str, Any]]] | None = None
    together: int = 64
    read: Callable[[int], Any] | None = None
    seen: dict[str, int] = field(default_factory=dict)  # counts that `one` or `many` keep, to be told at the end


def annotate(source: Any, out: Path, annotator: Annotator, shard: int = 4096, workers: int = 0, what: str = '') -> dict[str, Any]:
    """Fills the folder `out`, which the source `annotated` reads, and returns its manifest.

    Record i belongs to example i; that of an unusable example is empty. Shards have `shard` records each and get their name
    when they are whole; those that the manifest lists are kept. Of several processes of a host one works and the others wait.
    Raises RecipeError if the folder holds another source's fields or was begun with other settings.
    """
    if shard < 1:
        raise RecipeError(f'--shard: found {shard}; valid: from 1')
    out.mkdir(parents=True, exist_ok=True)
    with locked(f'annotate-{hashlib.sha256(str(out.absolute()).encode()).hexdigest()[:16]}'):
        for left in out.glob('.*.array_record-*'):  # what a killed run has begun
            left.unlink()
        said = _begun(out, source, annotator, shard)
        missing = [k for k in range(-(-len(source) // shard)) if not _done(out, said, _name(k))]
        with progress(len(source), what) as bar:
            bar.update(sum(entry['examples'] for entry in said['shards'].values()))
            for k in missing:
                indices = range(k * shard, min((k + 1) * shard, len(source)))
                said['shards'][_name(k)] = _shard(out / _name(k), source, annotator, indices, workers, bar)
                _save(out, said)
        _save(out, said | {'finished': True})
    return manifest(out)


def unusable(said: Mapping[str, Any]) -> dict[str, int]:
    """Reason -> how many examples have an empty record."""
    found: dict[str, int] = {}
    for entry in said['shards'].values():
        for reason, count in entry['unusable'].items():
            found[reason] = found.get(reason, 0) + count
    return found


def _shard(path: Path, source: Any, annotator: Annotator, indices: range, workers: int, bar: Any) -> dict[str, Any]:
    """Writes the records of `indices`; what the manifest says of the file."""
    bad: dict[str, int] = {}
    with fresh(path) as part:
        records = Records(part)
        try:
            with contextlib.closing(walk(source, annotator.one, indices, workers, '', annotator.read)) as made:
                group: list[tuple[int, Any]] = []
                for index, found in made:
                    group.append((index, found))
                    if len(group) == annotator.together or index == indices[-1]:
                        for index, fields in zip((index for index, _ in group), _fields(annotator, [found for _, found in group], bad)):
                            records.add(index, fields, '')
                        bar.update(len(group))
                        group = []
        finally:
            records.close()
        with open(part, 'rb') as file:
            digest = hashlib.file_digest(file, 'sha256').hexdigest()
        os.chmod(part, 0o644)  # temporary files are their owner's alone
        return dict(examples=len(indices), bytes=part.stat().st_size, sha256=digest, unusable=bad)


def _fields(annotator: Annotator, group: list[Any], bad: dict[str, int]) -> list[Mapping[str, Any]]:
    """A dict for each of `group`, empty for what is a BadExample, whose reason is counted."""
    good = [place for place, found in enumerate(group) if not isinstance(found, BadExample)]
    for found in group:
        if isinstance(found, BadExample):
            bad[str(found)] = bad.get(str(found), 0) + 1
    made = [group[place] for place in good]
    if annotator.many is not None and made:
        made = list(annotator.many(made))
        if len(made) != len(good):
            raise RecipeError(f'{annotator.fields[0]}: found {len(made)} results for {len(good)} examples; valid: one for each')
    fields: list[Mapping[str, Any]] = [{}] * len(group)
    for place, found in zip(good, made):
        if set(found) != set(annotator.fields):
            raise RecipeError(f'fields: found {", ".join(found)}; valid: {", ".join(annotator.fields)}')
        fields[place] = found
    return fields


def _begun(out: Path, source: Any, annotator: Annotator, shard: int) -> dict[str, Any]:
    said = dict(version=_VERSION, source=source.name, fingerprint=source.fingerprint, examples=len(source), shard=shard,
                fields=list(annotator.fields), settings=json.loads(json.dumps(dict(annotator.settings))))
    if not (out / MANIFEST).exists():
        if any(out.iterdir()):
            raise RecipeError(f'--out: {out} holds files but no {MANIFEST}; valid: a new or empty folder, or one of this tool')
        return {**said, 'finished': False, 'shards': {}}
    before = manifest(out)
    for key in ('version', 'fingerprint', 'shard', 'fields', 'settings'):
        if before[key] != said[key]:
            raise RecipeError(f'--out: {out} was begun for {before["source"]} with {key} {before[key]}, not {said[key]} of {source.name}; '
                              'choose another folder')
    return {**before, 'finished': False, 'shards': {name: entry for name, entry in before['shards'].items() if _done(out, before, name)}}


def _name(shard: int) -> str:
    return f'{shard:05d}.array_record'


def _done(out: Path, said: Mapping[str, Any], name: str) -> bool:
    entry, path = said['shards'].get(name), out / name
    return entry is not None and path.exists() and path.stat().st_size == entry['bytes']


def _save(out: Path, said: dict[str, Any]) -> None:
    said['shards'] = dict(sorted(said['shards'].items()))
    with fresh(out / MANIFEST) as part:
        part.write_text(json.dumps(said, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')
        os.chmod(part, 0o644)
