"""docs/datasets.md: every section has its parts, its entries are sources with valid fields, its commands can be typed."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from bigvlm.core import parts
from bigvlm.data.prepare import dedup, filters, spec
from tools import _data_options, data

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / 'docs' / 'datasets.md').read_text(encoding='utf-8')
INTRO, *REST = re.split(r'^## ', PAGE, flags=re.MULTILINE)
SECTIONS = {text.partition('\n')[0]: text.partition('\n')[2] for text in REST}
WANTED = ('CC3M', 'CC12M', 'YFCC15M', 'LAION', 'COYO-700M', 'DataComp', 'SBU', 'Visual Genome', 'WIT', 'RedCaps',
          'Localized Narratives', 'PMD', 'COCO', 'Flickr30k', 'ImageNet', 'Objects365', 'WebVid')
LABELS = ['Get', 'Expect', 'Check', 'Terms', 'Site file', 'Notes']
# The arguments of img2dataset.download.
IMG2DATASET = set('''url_list image_size output_folder processes_count resize_mode resize_only_if_bigger upscale_interpolation
    downscale_interpolation encode_quality encode_format skip_reencode output_format input_format url_col caption_col bbox_col thread_count
    number_sample_per_shard extract_exif save_additional_columns timeout enable_wandb wandb_project oom_shard_count compute_hash verify_hash
    distributor subjob_size retries disable_all_reencoding min_image_size max_image_area max_aspect_ratio incremental_mode max_shard_retry
    user_agent_token disallowed_header_directives ignore_ssl_certificate'''.split())


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf'^```{language}\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)


def entries(text: str) -> dict[tuple[str, str], dict]:
    """(set, split) -> spec of all entries of the site file."""
    return {(name, split): entry for block in blocks(text, 'toml') for name, splits in tomllib.loads(block).items()
            for split, entry in splits.items()}


def commands(tool: str) -> list[list[str]]:
    lines = [line for block in blocks(PAGE, 'bash') for line in block.replace('\\\n', ' ').splitlines()]
    lines += re.findall(rf'`(python {re.escape(tool)} [^`]*)`', PAGE)
    pieces = [piece for line in lines for piece in re.split(r'; | \| ', line)]  # of loops and pipes
    return [shlex.split(piece, comments=True) for piece in pieces if tool in piece]


def test_there_is_a_section_for_each_set():
    assert tuple(SECTIONS) == WANTED


@pytest.mark.parametrize('name', WANTED)
def test_sections_have_their_parts(name):
    assert re.findall(r'^\*\*([\w ]+)\.\*\*', SECTIONS[name], re.MULTILINE) == LABELS
    get, check, site = (re.search(rf'\*\*{part}\.\*\*(.*?)(?=^\*\*|\Z)', SECTIONS[name], re.MULTILINE | re.DOTALL)[1]
                        for part in ('Get', 'Check', 'Site file'))
    assert blocks(get, 'bash') or name == 'PMD'
    assert 'tools/data.py' in check and entries(site)


@pytest.mark.parametrize('name', ['INTRO', *WANTED])
def test_entries_are_sources(name):
    def valid(entry, where):
        known = parts.fields(parts.find('bigvlm.data.sources', entry['name'], where))
        assert set(entry) - {'name'} <= set(known) - set(parts.GIVEN), where
        assert {k for k, p in known.items() if p.default is p.empty} <= set(entry), where
        if 'of' in entry:
            valid(entry['of'], where)
    for where, entry in entries(INTRO if name == 'INTRO' else SECTIONS[name]).items():
        valid(entry, where)


def test_entries_are_named_once():
    found = [where for text in (INTRO, *SECTIONS.values()) for where in entries(text)]
    assert len(found) == len(set(found))


TOOL = commands('tools/data.py')


@pytest.mark.parametrize('arguments', TOOL, ids=' '.join)
def test_commands_of_the_tool(arguments, monkeypatch):
    """Flags exist, sets are in the page's entries, sources have these fields, rules can be read."""
    options, rest = _data_options.parser('', data.COMMANDS).parse_known_args(arguments[arguments.index('tools/data.py') + 1:])
    assert not rest
    if options.set and options.set != '$s':  # of a loop over sets
        assert (options.set, options.split) in entries(PAGE)
    for text in filter(None, (options.source, *getattr(options, 'against', []))):
        wanted = spec.parse(text)
        known = parts.fields(parts.find('bigvlm.data.sources', wanted['name'], 'source'))
        assert set(wanted) - {'name'} <= set(known)
    if options.command == 'filter':
        assert filters.named(options.rules) or [filters.rule(text) for text in options.rule]
    if options.command == 'dedup':
        assert set(options.by.split(',')) <= set(dedup.KEYS)
    assert options.source or options.set


def test_every_command_is_tested():
    assert {arguments[arguments.index('tools/data.py') + 1] for arguments in TOOL} == {'index', 'stats', 'check', 'filter', 'dedup'}


@pytest.mark.parametrize('arguments', commands('img2dataset --'), ids=lambda arguments: arguments[arguments.index('--output_folder') + 1])
def test_commands_of_img2dataset(arguments):
    flags = {}
    rest = iter(arguments[arguments.index('img2dataset') + 1:])
    for flag in rest:
        assert flag.startswith('--'), flag
        name, equals, value = flag[2:].partition('=')
        flags[name] = value if equals else next(rest)
    assert set(flags) <= IMG2DATASET
    assert flags['input_format'] in ('tsv', 'parquet', 'json', 'jsonl') and flags['resize_mode'] == 'keep_ratio'
    assert flags['output_format'] == 'webdataset' and flags['resize_only_if_bigger'] == flags['skip_reencode'] == 'True'
    assert isinstance(json.loads(flags.get('save_additional_columns', '[]')), list)
    folder = flags['output_folder']
    assert any(str(entry.get('files', '')).startswith(folder + '/') for entry in entries(PAGE).values())


def script(name: str) -> str:
    return next(block for block in blocks(PAGE, 'python') if block.startswith(f'# {name}.py'))


def run(name: str, root: Path, *arguments: str) -> None:
    code = script(name).replace('/data/', f'{root}/')
    subprocess.run([sys.executable, '-c', code, *arguments], cwd=root, check=True)


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]


def test_yfcc15m_joins_the_list_with_the_metadata(tmp_path):
    def line(number, photo, title, description):
        return '\t'.join([str(number), photo, 'hash', *['x'] * 5, title, description, *['y'] * 6, f'http://{photo}.jpg', 'z'])
    (tmp_path / 'yfcc100m_subset_data.tsv').write_text('1\tp1\th\n2\tp3\th\n')
    lines = line(1, 'p1', 'A+red%2C+old%0Abarn', ''), line(2, 'p2', 'no', ''), line(3, 'p3', 'B', 'C+d')
    (tmp_path / 'yfcc100m_dataset').write_text('\n'.join(lines))
    run('yfcc15m', tmp_path)
    assert (tmp_path / 'yfcc15m.tsv').read_text().splitlines() == [
        'url\tcaption', 'http://p1.jpg\tA red, old barn', 'http://p3.jpg\tB. C d']


def test_karpathy_makes_a_table_for_each_split(tmp_path):
    def image(split, n, **more):
        return {'split': split, 'filename': f'{n}.jpg', 'sentences': [{'raw': f'  caption {n} \n'}], **more}
    content = [image('train', 1, filepath='train2014'), image('restval', 2, filepath='val2014'),
               image('test', 3, filepath='val2014'), image('val', 4)]
    (tmp_path / 'dataset_coco.json').write_text(json.dumps({'images': content}))
    run('karpathy', tmp_path, str(tmp_path), 'dataset_coco.json')
    assert rows(tmp_path / 'train.jsonl') == [{'image': 'train2014/1.jpg', 'captions': ['caption 1']},
                                              {'image': 'val2014/2.jpg', 'captions': ['caption 2']}]
    assert rows(tmp_path / 'test.jsonl')[0]['image'] == 'val2014/3.jpg' and rows(tmp_path / 'val.jsonl')[0]['image'] == 'images/4.jpg'


def test_the_other_tables(tmp_path):
    for folder in ('vg/VG_100K', 'vg/VG_100K_2', 'localized', 'objects365/train/patch3'):
        (tmp_path / folder).mkdir(parents=True)
    for file in ('vg/VG_100K/1.jpg', 'vg/VG_100K_2/2.jpg', 'objects365/train/patch3/a.jpg'):
        (tmp_path / file).touch()
    said = [{'id': n, 'regions': [{'image_id': n, 'phrase': f'thing {n}'}, {'image_id': n, 'phrase': ' '}]} for n in (1, 2, 3)]
    (tmp_path / 'vg/region_descriptions.json').write_text(json.dumps(said))
    run('vg', tmp_path)
    assert rows(tmp_path / 'vg/train.jsonl') == [{'image': 'VG_100K/1.jpg', 'captions': ['thing 1']},
                                                 {'image': 'VG_100K_2/2.jpg', 'captions': ['thing 2']}]
    (tmp_path / 'localized/open_images_train_v6_captions.jsonl').write_text('\n'.join(
        json.dumps({'image_id': name, 'caption': text}) for name, text in (('a', 'one'), ('b', 'two'), ('a', 'three'))))
    run('localized', tmp_path)
    assert rows(tmp_path / 'localized/train.jsonl')[0] == {'image': 'train/a.jpg', 'captions': ['one', 'three']}
    (tmp_path / 'objects365/zhiyuan_objv2_train.json').write_text(json.dumps(dict(
        categories=[{'id': 7, 'name': 'Chair'}], annotations=[{'image_id': 5, 'bbox': [1, 2, 3, 4], 'category_id': 7}],
        images=[{'id': 5, 'file_name': 'images/v1/patch3/a.jpg'}, {'id': 6, 'file_name': 'images/v1/patch3/gone.jpg'}])))
    run('objects365', tmp_path)
    assert rows(tmp_path / 'objects365/train.jsonl') == [{'image': 'train/patch3/a.jpg', 'boxes': [[1, 2, 3, 4]], 'box_names': ['Chair']}]


def test_pmd_is_the_union_of_sets_on_this_page():
    code = next(block for block in blocks(SECTIONS['PMD'], 'python'))
    space = {}
    exec(code, space)
    made = space['pmd'](())
    assert re.search(r'for s in (.*?); do', SECTIONS['PMD'])[1].split() == [name for name in made if name != 'train']
    union = made.pop('train')
    assert union == {'mix': tuple(made)}
    for one in made.values():
        assert (one['source']['set'], one['source']['split']) in entries(PAGE)
