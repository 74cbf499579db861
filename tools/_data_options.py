"""The options of tools/data.py, command by command."""
import argparse
from collections.abc import Callable, Mapping

from bigvlm.data.prepare import convert, dedup, filters

_LIMIT = ('--limit', int, 0, 'so many examples, evenly spread; 0: all')
_HTML = ('--html', str, '', 'write a page to this file')
_JSON = ('--out', str, '', 'write all of it as JSON to this file')
_KEEP = ('--out', str, None, 'the keep list to write, .npy')
_DECODE = ('--decode', bool, False, 'decode images: those that cannot be are unusable')
_DEFAULT = convert.Settings()

# (flag, type, default, help); a list may be repeated, None is required.
OPTIONS: dict[str, tuple[tuple, ...]] = {
    'index': (('--crc', bool, False, 'read everything and keep checksums'),
              ('--out', str, '', 'where to write an index that hosts share: a file .index or a folder; not said: the cache')),
    'stats': (_LIMIT, _HTML, _JSON, ('--budget', int, [], 'token budget whose padding is reported')),
    'show': (('--limit', int, 24, 'so many examples, evenly spread'), ('--html', str, 'show.html', 'the page to write'),
             ('--index', int, [], 'this example'),
             ('--epoch', int, 0, 'as drawn in this epoch'), ('--raw', bool, False, 'only as the source has them')),
    'check': (_LIMIT, _DECODE, ('--ops', bool, False, "apply the recipe's ops too"),
              ('--crc', bool, False, 'compare all members of tars with the checksums of their index (index --crc)'), _JSON,
              ('--max_bad', float, .0, 'share of unusable and lost examples that is no failure')),
    'convert': (('--to', str, _DEFAULT.to, 'array_record or webdataset'), ('--out', str, None, 'the folder to fill'),
                ('--shard', int, _DEFAULT.shard, 'examples a file'), ('--prefix', str, _DEFAULT.prefix, "the files' name"),
                ('--size', int, _DEFAULT.size, 'scale images whose shorter side is longer, antialiased; 0: none'),
                ('--quality', int, _DEFAULT.quality, 'of JPEGs that are made'),
                ('--reencode', bool, False, 'make JPEGs of all images'), _DECODE),
    'filter': (('--rules', str, '', f'published sets, commas between: {", ".join(filters.PUBLISHED)}'),
               ('--rule', str, [], "as 'side>200' or 'field:clip_score>=.28'"),
               ('--queries', str, '', 'a file of words and phrases, one a line, of which an example must have one'),
               ('--per_query', int, 20_000, 'so many pairs at most per query'), _KEEP),
    'dedup': (('--by', str, 'image', f'what makes duplicates, commas between: {", ".join(dedup.KEYS)}'),
              ('--distance', int, 3, 'bits that near duplicates may differ in, of 64'),
              ('--against', str, [], 'a source of evaluation data, whose examples are dropped'), _KEEP),
    'replay': (('--step', int, None, 'the step, from 0'), ('--rows', str, '0:16', 'A:B of the global batch; : is all'), _HTML,
               ('--workdir', str, '', "a run's, instead of --config"))}


def parser(description: str, commands: Mapping[str, Callable]) -> argparse.ArgumentParser:
    """`commands`: name -> the function that runs it, whose first line of documentation is its help."""
    found = argparse.ArgumentParser(prog='data.py', description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    below = found.add_subparsers(dest='command', required=True, metavar='COMMAND')
    recipe = argparse.ArgumentParser(add_help=False)
    recipe.add_argument('--config', default='', help='a recipe, FILE[:arguments]; --config.key=value changes it')
    where = argparse.ArgumentParser(add_help=False, parents=[recipe])
    where.add_argument('--source', default='', help="'webdataset,files=DIR/*.tar': a source and its fields")
    where.add_argument('--set', default='', help='a set of the site file')
    where.add_argument('--split', default='train', help='of --set')
    where.add_argument('--data', default='train', help="which of the recipe's data sets")
    where.add_argument('--workers', type=int, default=0, help='threads; 0: one per core')
    for name, run in commands.items():
        one = below.add_parser(name, parents=[recipe if name == 'replay' else where], help=run.__doc__.splitlines()[0],
                               description=run.__doc__)
        one.set_defaults(run=run)
        for flag, kind, default, text in OPTIONS[name]:
            if kind is bool:
                one.add_argument(flag, action='store_true', help=text)
            elif isinstance(default, list):
                one.add_argument(flag, type=kind, action='append', default=default, help=f'{text}; may be repeated')
            else:
                one.add_argument(flag, type=kind, default=default, required=default is None, help=text)
    return found
