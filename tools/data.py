"""Data sets before and beside a run: what they hold, what is wrong with them, other formats, filters, what a step saw.

  python tools/data.py index   --source 'webdataset,files=DIR/*.tar' --crc --out DIR/tars.index
  python tools/data.py stats   --set cc12m --split train --limit 20000 --html stats.html
  python tools/data.py show    --config configs/siglip_b16.py:data='DIR/*.tar' --data train --limit 24 --html show.html
  python tools/data.py check   --source 'webdataset,files=DIR/*.tar' --decode --out check.json
  python tools/data.py convert --source 'tfds,dataset=coco_captions,split=train' --to array_record --out DIR
  python tools/data.py filter  --source 'webdataset,files=DIR/*.tar' --rules align --out keep.npy
  python tools/data.py dedup   --source 'webdataset,files=DIR/*.tar' --by image,near --out keep.npy
  python tools/data.py replay  --config configs/siglip_b16.py:data='DIR/*.tar' --step 1000 --html step.html

A data set is --source NAME,key=value,…; or --set and --split of the site file; or --config RECIPE and --data NAME.
"""
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np  # noqa: E402

from bigvlm.core.parts import RecipeError  # noqa: E402
from bigvlm.data import pipeline, storage  # noqa: E402
from bigvlm.data.bad import TooManyBad  # noqa: E402
from bigvlm.data.prepare import check, convert, dedup, filtering, filters, keep, spec, stats, walk  # noqa: E402
from bigvlm.data.sources._tar_build import build_index, verify  # noqa: E402
from tools import _data_opened as opened, _data_options, _data_pages as pages  # noqa: E402
from tools._data_opened import Options, Overrides  # noqa: E402


def main(arguments: Sequence[str]) -> int:
    parser = _data_options.parser(__doc__, COMMANDS)
    options, rest = parser.parse_known_args(arguments)
    overrides = [r.removeprefix('--config.').partition('=')[::2] for r in rest if r.startswith('--config.') and '=' in r]
    if len(overrides) < len(rest):
        unknown = next(r for r in rest if not r.startswith('--config.') or '=' not in r)
        parser.error(f'{options.command} takes no {unknown!r}')
    try:
        for path in filter(None, (options.__dict__.get('html'), options.__dict__.get('out'))):
            if not Path(path).absolute().parent.is_dir():  # said now, not after hours of reading
                raise RecipeError(f'no folder {Path(path).parent} to write {Path(path).name} to')
        return options.run(options, overrides) or 0
    except (RecipeError, TooManyBad, OSError) as error:
        print(f'bigvlm: {error}', file=sys.stderr)
        return 2


def index(options: Options, overrides: Overrides) -> None:
    """Build the index that a data set is read through."""
    began, wanted = time.perf_counter(), opened.spec_of(options, overrides)
    if wanted['name'] == 'webdataset':
        path = build_index(storage.expand(wanted['files'], 'files'), out=options.out or None, crc=options.crc, progress=True)
        print(f'index        {path}')
        wanted = {**wanted, 'index': str(options.out)} if options.out else wanted
    elif options.out or options.crc:
        raise RecipeError(f'--out, --crc: only indices of webdataset tars can be shared and hold checksums, found {wanted["name"]}')
    source = opened.build(wanted, options, overrides)
    seconds = time.perf_counter() - began
    sample = [len(image) for _, image in walk.walk(source, lambda _, e: e.get('image', b''), walk.spread(len(source), 256))
              if isinstance(image, bytes)]
    print(f'source       {source.name}\nexamples     {len(source):,}\nfingerprint  {source.fingerprint}\nseconds      {seconds:.1f}')
    if sample:
        print(f'image        {np.mean(sample) / 1e3:.1f} kB on average, of {len(sample)} examples')
    _print_items('damage', getattr(source, 'damage', {}))


def stats_(options: Options, overrides: Overrides) -> None:
    """What a data set is made of: sizes, captions, scripts, labels, repetitions, reading rate."""
    tokenizers = opened.tokenizers_of(options, overrides) if options.config else {}
    source = opened.build(opened.spec_of(options, overrides), options, overrides)
    found = stats.stats(source, options.limit, tokenizers, options.budget, options.workers, 'stats')
    print(found.text())
    _write_json(options.out, found.as_dict())
    _write_page(options.html, pages.stats_page(found))


def show_(options: Options, overrides: Overrides) -> None:
    """A page of examples before and after the recipe's ops."""
    dataset, decoders = opened.dataset_of(options, overrides), {}
    if options.config:
        ops = opened.recipe_of(options, overrides)['data'][options.data].get('ops', ())
        decoders = pages.decoders(ops, opened.tokenizers_of(options, overrides))
    indices = options.index or walk.spread(len(dataset), options.limit)
    if beyond := [i for i in indices if not 0 <= i < len(dataset)]:
        raise RecipeError(f'--index: {beyond[0]} of {len(dataset)} examples (0 to {len(dataset) - 1})')
    shown = [pages.example(dataset, i, options.epoch, options.raw, decoders) for i in indices]
    for one in shown:
        print(pages.line(one))
    about = [('source', dataset.source.name), ('examples', f'{len(dataset):,}'), ('fingerprint', dataset.fingerprint)]
    title = f'{opened.title_of(options.config)} {options.data}' if options.config else dataset.source.name
    _write_page(options.html, pages.examples_page(title, about, f'{len(shown)} examples, epoch {options.epoch}', shown))


def check_(options: Options, overrides: Overrides) -> int:
    """Read everything: what would be skipped, and why. Exit code 1 if it is more than --max_bad."""
    ops = opened.dataset_of(options, overrides).ops if options.ops else ()
    wanted = opened.spec_of(options, overrides)
    source = opened.build(wanted, options, overrides)
    found = check.check(source, options.decode, ops, walk.spread(len(source), options.limit), options.workers, 'check')
    if options.crc:
        if wanted['name'] != 'webdataset':
            raise RecipeError(f'--crc: only indices of webdataset tars hold checksums, found {wanted["name"]}')
        found = found.joined(verify(storage.expand(wanted['files'], 'files'), wanted.get('index', '')))
    print(f'examples     {found.examples:,}\nskipped      {found.bad:,}')
    if found.checksums is not None:
        print(f'checksums    of {found.checksums:.0%} of the examples')
    _print_items('skipped', found.skipped)
    _print_items('damage', found.damage)
    _write_json(options.out, {**found.as_dict(), 'source': source.name, 'fingerprint': source.fingerprint})
    if found.share > options.max_bad:
        print(f'bigvlm: {found.share:.3%} of the examples are unusable or lost, more than --max_bad={options.max_bad:g}', file=sys.stderr)
        return 1
    return 0


def convert_(options: Options, overrides: Overrides) -> None:
    """Any source to ArrayRecords or webdataset tars; the same command again goes on where it was stopped."""
    settings = convert.Settings(options.to, options.shard, options.prefix, options.size, options.quality, options.reencode, options.decode)
    source = opened.build(opened.spec_of(options, overrides), options, overrides)
    manifest = convert.convert(source, Path(options.out), settings, options.workers, 'convert')
    size = sum(entry['bytes'] for entry in manifest['shards'].values())
    print(f'written      {manifest["written"]:,} of {manifest["examples"]:,} examples, {len(manifest["shards"])} files, '
          f'{size / 1e9:.3f} GB, in {options.out}')
    _print_items('left out', convert.unusable(manifest))
    files = f'{options.out}/{options.prefix}-*{convert.FORMATS[options.to].ending}'
    # What the source has, tars of it are asked for too: their own default wants captions.
    has = convert.keys(manifest)
    require = f', require={has}' if options.to == 'webdataset' and 'captions' not in has else ''
    print(f"source       dict(name='{options.to}', files='{files}'{require})")


def filter_(options: Options, overrides: Overrides) -> None:
    """Keep the examples that published rules, or yours, allow."""
    rules = (*filters.named(options.rules), *(filters.rule(text) for text in options.rule))
    if not rules and not options.queries:
        raise RecipeError(f'--rules: of {", ".join(filters.PUBLISHED)}; or --rule, or --queries')
    queries = filtering.Queries(Path(options.queries).read_text(encoding='utf-8').splitlines()) if options.queries else None
    keep.checked(Path(options.out))
    source = opened.build(opened.spec_of(options, overrides), options, overrides)
    kept = filtering.run(source, rules, queries, options.per_query, options.workers, 'filter')
    said = {str(rule): rule.said for rule in rules}
    for rule, count in kept.fails.items():
        print(f'{rule:24} {count:12,} examples break it  {said.get(rule, "")}')
    summary = dict(fails=kept.fails, published=said, unusable=kept.unusable, per_query=options.per_query if queries else None)
    _kept(options.out, kept.indices, source, summary)


def dedup_(options: Options, overrides: Overrides) -> None:
    """Keep the first of examples that are alike, and none that is in an evaluation set."""
    keep.checked(Path(options.out))
    keys, source = tuple(filter(None, options.by.split(','))), opened.build(opened.spec_of(options, overrides), options, overrides)
    found = dedup.collect(source, keys, options.workers, 'hashes')
    drop, summary = np.zeros(len(found.indices), bool), dict(repeated={}, against={}, distance=options.distance, unusable=found.unusable)
    for key in keys:
        again = dedup.repeated(found.by[key], options.distance if key == 'near' else 0)
        summary['repeated'][key] = int(again.sum())
        print(f'{key:12} {again.sum():12,} examples repeat another')
        drop |= again
    for text in options.against:
        other = opened.build(spec.parse(text), options, overrides)
        theirs = dedup.collect(other, keys, options.workers, other.name)
        for key in keys:
            mine, seen = dedup.overlap(found.by[key], theirs.by[key], options.distance if key == 'near' else 0)
            share = f'{seen.sum():,} of its {len(seen):,} ({seen.mean():.2%})'
            print(f'{key:12} {mine.sum():12,} examples are in {other.name}; {share} are covered')
            summary['against'].setdefault(other.name, {})[key] = dict(
                dropped=int(mine.sum()), covered=int(seen.sum()), of=len(seen),
                items=[other.describe(int(i)) for i in theirs.indices[seen][:1000]])
            drop |= mine
    _kept(options.out, found.indices[~drop], source, summary)


def replay(options: Options, overrides: Overrides) -> None:
    """The very examples that a training step saw, or will see."""
    config = opened.recipe_of(options, overrides)
    kind, number, draws = pipeline.step_draws(config, options.step)
    first, stop = _rows(options.rows, draws.batch)
    tokenizers = pipeline.build_tokenizers(config['tokenizers'], config['data'])
    decoders = {name: pages.decoders(config['data'][name].get('ops', ()), tokenizers) for name in draws.datasets}
    shown = []
    for row in range(first, stop):
        shown.append(pages.drawn_example(draws, number, row, decoders[draws.at(number, row)[0]]))
        print(pages.line(shown[-1]))
    about = [('step', f'{options.step:,}'), ('kind', kind), ('batch number', f'{number:,}'), ('seed', str(config['seed'])),
             ('rows', f'{first} to {stop - 1} of {draws.batch}')]
    title = f'{opened.title_of(options.config or options.workdir)}, step {options.step:,}'
    _write_page(options.html, pages.examples_page(title, about, 'Examples', shown))


def _rows(text: str, batch: int) -> tuple[int, int]:
    first, colon, stop = text.partition(':')
    try:
        found = int(first or 0), int(stop or batch) if colon else int(first) + 1
    except ValueError:
        raise RecipeError(f'--rows: A:B, found {text!r}') from None
    if not 0 <= found[0] < found[1] <= batch:
        raise RecipeError(f'--rows: 0 <= A < B <= {batch}, the batch; found {text!r}')
    return found


def _kept(out: str, indices: np.ndarray, source: Any, summary: dict[str, Any]) -> None:
    keep.write(Path(out), indices, source, summary)
    for reason, count in summary['unusable'].items():
        print(f'{reason:24} {count:12,} examples')
    print(f"kept         {len(indices):,} of {len(source):,} ({len(indices) / len(source):.2%}), in {out}\n"
          f"source       dict(name='subset', of=…, keep='{out}')")


def _print_items(what: str, items: dict[str, Sequence[str]]) -> None:
    for reason, found in sorted(items.items(), key=lambda pair: -len(pair[1])):
        print(f'{what:12} {len(found):8,}  {reason}: {", ".join(map(str, found[:3]))}{", …" if len(found) > 3 else ""}')


def _write_json(path: str, content: dict[str, Any]) -> None:
    if path:
        Path(path).write_text(json.dumps(content, indent=1, ensure_ascii=False) + '\n', encoding='utf-8')


def _write_page(path: str, content: str) -> None:
    if path:
        Path(path).write_text(content, encoding='utf-8')
        print(f'page         {path}')


COMMANDS = {'index': index, 'stats': stats_, 'show': show_, 'check': check_, 'convert': convert_, 'filter': filter_, 'dedup': dedup_,
            'replay': replay}

if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
