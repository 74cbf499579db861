"""Write side fields for the examples of any source: a folder that the source `annotated` reads beside it.

  python tools/annotate.py nouns    --source 'webdataset,files=DIR/*.tar' --vocabulary words.txt --out DIR/nouns
  python tools/annotate.py rewrites --source 'webdataset,files=DIR/*.tar' --file rewrites.jsonl --by name --out DIR/rewrites
  python tools/annotate.py rewrites --source 'table,files=a.csv' --rewrite my_module:rewrite --out DIR/rewrites
  python tools/annotate.py teacher  --source 'webdataset,files=DIR/*.tar' --workdir runs/teacher --size 224 --out DIR/teacher
  python tools/annotate.py regions  --source 'webdataset,files=DIR/*.tar' --file boxes.jsonl --most 16 --out DIR/regions
  python tools/annotate.py codes    --config RECIPE --data val --codebook codes.npz --out DIR/codes
  python tools/annotate.py fields   --source 'webdataset,files=DIR/*.tar' --file scores.jsonl --fields clip_score --out DIR/scores
  python tools/annotate.py fields   --source 'webdataset,files=DIR/*.tar' --file dalle.npy --fields patch_codes --out DIR/dalle

Started again, the same command goes on where it was stopped. A data set is --source NAME,key=value,…; or --set and --split of the
site file; or --config RECIPE and --data NAME. Lines of a jsonl file are found by --by: 'index' of the example in its source, 'name'
as `tools/data.py show` prints it, or a field of the examples (a url).
"""
import argparse
import importlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np  # noqa: E402

from bigvlm.core.parts import RecipeError  # noqa: E402
from bigvlm.data.dataset import Dataset  # noqa: E402
from bigvlm.data.ops import _codebook  # noqa: E402
from bigvlm.data.prepare import annotate, annotators  # noqa: E402
from bigvlm.data.prepare.keyed import KeyedLines  # noqa: E402
from bigvlm.data.prepare.nouns import Lexicon, Vocabulary  # noqa: E402
from tools import _data_opened as opened, _side_options as side  # noqa: E402
from tools._data_opened import Options, Overrides  # noqa: E402

_PROBED = 8  # examples of which two draws are compared, and lines that must be found at once


def nouns(options: Options, overrides: Overrides) -> None:
    """Nouns of the captions, by a vocabulary or by a list of parts of speech: `nouns`, and `noun_ids` of a vocabulary."""
    if bool(options.vocabulary) == bool(options.lexicon):
        raise RecipeError('give --vocabulary FILE (words and phrases, one a line) or --lexicon FILE (WORD<TAB>TAG)')
    path = _file(options.vocabulary or options.lexicon)
    by = Vocabulary(path) if options.vocabulary else Lexicon(path, options.phrases)
    source = _source(options, overrides)
    annotator, counts = annotators.nouns(source, by, path, options.most)
    _write(options, source, annotator)
    total, without = sum(counts.values()), counts.pop('', 0)
    if total:
        print(f'nouns        {len(counts):,} different ones in what was read now; {without:,} examples have none')
        print('most often   ' + ', '.join(f'{name} ({count:,})' for name, count in counts.most_common(20)))


def rewrites(options: Options, overrides: Overrides) -> None:
    """Other texts of an example (LaCLIP, ALIP; K-LITE's knowledge), from a file or by a function of yours."""
    if bool(options.file) == bool(options.rewrite):
        raise RecipeError('give --file F.jsonl, or --rewrite MODULE:FUNCTION')
    source = _source(options, overrides)
    if options.rewrite:
        _write(options, source, annotators.written(source, _function(options.rewrite), options.rewrite, options.field, options.together))
    else:
        lines = _lines(options, source)
        _write(options, source, annotators.texts(source, lines, options.field, options.key or options.field), lines)


def teacher(options: Options, overrides: Overrides) -> None:
    """Embeddings of images and captions by the model of a run, float16."""
    from tools import _annotate_teacher  # brings jax
    what = tuple(filter(None, options.what.split(',')))
    dataset = _fixed(options, overrides) if 'image' in what else None
    source = dataset.source if dataset else _source(options, overrides)
    with _annotate_teacher.opened(options.workdir, options.step, options.objective) as model:
        _write(options, source, _annotate_teacher.annotator(model, source, dataset and _reader(dataset, options.size), what, options.field,
                                                            options.captions, options.together, _seen(options)))


def regions(options: Options, overrides: Overrides) -> None:
    """A detector's boxes from a file of yours: `region_boxes`, `region_scores`, `region_labels`, `region_count`, `region_names`."""
    source = _source(options, overrides)
    lines = _lines(options, source)
    labels = {line: number for number, line in enumerate(_file(options.labels).read_text(encoding='utf-8').splitlines())} \
        if options.labels else {}
    _write(options, source, annotators.regions(source, lines, options.most, options.least, labels), lines)


def codes(options: Options, overrides: Overrides) -> None:
    """The codes of patches by a codebook (tools/train_codebook.py), of images that are never cropped at random."""
    codebook = _codebook.load(_file(options.codebook))
    dataset = _fixed(options, overrides, until='patch_codes')
    annotator = annotators.codes(codebook, Path(options.codebook), _reader(dataset, options.size), _seen(options), options.field)
    _write(options, dataset.source, annotator)


def fields(options: Options, overrides: Overrides) -> None:
    """Values of yours, from a jsonl file, or rows of an .npy array (DALL-E's codes, say)."""
    source, names = _source(options, overrides), tuple(filter(None, options.fields.split(',')))
    if options.file.endswith('.npy'):
        if len(names) != 1:
            raise RecipeError(f'--fields: found {options.fields!r}; valid: one name for the rows of an array')
        _write(options, source, annotators.rows(source, _file(options.file), names[0]))
    else:
        lines = _lines(options, source)
        _write(options, source, annotators.values(source, lines, names), lines)


def _write(options: Options, source: Any, annotator: annotate.Annotator, lines: KeyedLines | None = None) -> None:
    said = annotate.annotate(source, Path(options.out), annotator, options.shard, options.workers, options.command)
    for reason, count in annotate.unusable(said).items():
        print(f'{reason:24} {count:12,} examples')
    if lines is not None and lines.unused:
        print(f'lines        {lines.unused:,} of {len(lines):,} of {lines.path} were not asked for now')
    size = sum(entry['bytes'] for entry in said['shards'].values())
    print(f"fields       {', '.join(said['fields'])} of {said['examples']:,} examples, {size / 1e6:.1f} MB, in {options.out}\n"
          f"source       dict(name='annotated', source=…, file='{options.out}')")


def _source(options: Options, overrides: Overrides) -> Any:
    return opened.build(opened.spec_of(options, overrides), options, overrides)


def _fixed(options: Options, overrides: Overrides, until: str = '') -> Dataset:
    """Images that are the same whenever they are drawn: what is made of them once must hold for every epoch."""
    dataset = side.pictures(options, overrides, options.size, until)
    for index in range(min(_PROBED, len(dataset))):
        first, second = (dataset.example(index, epoch) for epoch in (0, 1))
        if not np.array_equal(side.picture(first), side.picture(second)):
            raise RecipeError("--data: found ops that crop or change images at random; valid: --source, or a data set whose images are "
                              "always the same, so that what is written fits what the model sees (of random crops the op patch_codes "
                              "makes codes)")
    return dataset


def _reader(dataset: Dataset, size: int) -> Callable[[int], np.ndarray]:
    return lambda index: side.picture(dataset.example(index, 0, substitute=False), size)


def _seen(options: Options) -> str:
    """How images are made, for the manifest."""
    return f'{options.config} {options.data} {options.size}' if options.config else f'the middle, {options.size or 224} px'


def _lines(options: Options, source: Any) -> KeyedLines:
    """RecipeError where none of the lines is of an example: a wrong --by."""
    lines = KeyedLines(_file(options.file), options.by)
    if not len(lines):
        raise RecipeError(f'--file: {options.file} has no lines')
    if options.by == 'name' and not any(lines.get(source.describe(index)) for index in _probed(len(source))):
        print(f"bigvlm: none of the examples looked at first has a line; their names are as {source.describe(0)!r}", file=sys.stderr)
    return lines


def _probed(count: int) -> Sequence[int]:
    return np.linspace(0, count - 1, min(count, 64)).astype(int).tolist()


def _file(path: str) -> Path:
    if not Path(path).is_file():
        raise RecipeError(f'no file {path!r}')
    return Path(path)


def _function(path: str) -> Callable:
    module, colon, name = path.partition(':')
    sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RecipeError(f'--rewrite: found {path!r}; valid: MODULE:FUNCTION that can be imported ({error})') from None
    return found


_BY = (('--file', str, None, 'a jsonl file of yours'), ('--by', str, 'index', "'index', 'name', or a field that examples and lines share"))
_MODEL = (('--together', int, 64, 'examples at a time'),)
_SIZE = (('--size', int, 0, 'scale images to this side; 0: as the ops make them, of a source alone 224'),)
COMMANDS: dict[str, tuple[Callable, tuple]] = {
    'nouns': (nouns, (('--vocabulary', str, '', 'words and phrases, one a line'), ('--lexicon', str, '', 'WORD<TAB>TAG[,TAG…], one a line'),
                      ('--phrases', bool, False, 'of a lexicon: keep the adjectives before a noun'),
                      ('--most', int, 16, 'noun_ids of an example'))),
    'rewrites': (rewrites, (('--file', str, '', 'a jsonl file of yours'), _BY[1], ('--rewrite', str, '', 'MODULE:FUNCTION: captions of '
                            'several examples (a list of tuples) to as many lists of texts'), ('--field', str, 'rewrites', 'to write'),
                            ('--key', str, '', 'of the lines; not said: as --field'), *_MODEL)),
    'teacher': (teacher, (('--workdir', str, None, "the run's"), ('--step', int, -1, 'its checkpoint; -1: the newest'),
                          ('--objective', str, '', 'whose embeddings; not said: the first that has some'),
                          ('--what', str, 'image,text', 'image, text or both'), ('--field', str, 'teacher', 'FIELD_image, FIELD_text'),
                          ('--captions', int, 1, 'embed so many captions; of fewer, some again'), *_SIZE, *_MODEL)),
    'regions': (regions, (*_BY, ('--most', int, 16, 'boxes of an example'), ('--least', float, 0., 'score of a box that is kept'),
                          ('--labels', str, '', 'a file of names, one a line, whose numbers region_labels hold'))),
    'codes': (codes, (('--codebook', str, None, 'of tools/train_codebook.py'), ('--field', str, 'patch_codes', 'to write'), *_SIZE)),
    'fields': (fields, (*_BY, ('--fields', str, None, 'names, commas between')))}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog='annotate.py', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    below = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    for name, (work, options) in COMMANDS.items():
        one = below.add_parser(name, parents=[side.where()], help=work.__doc__.splitlines()[0], description=work.__doc__)
        one.set_defaults(run=work)
        side.add(one, (*options, ('--out', str, None, 'the folder to fill'), ('--shard', int, 4096, 'examples a file')))
    return side.run(parser, arguments, lambda options, overrides: options.run(options, overrides))


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
