"""The survey's evaluation sets, what there is of them in a folder, and the evaluators of those.

Sets, numbers of classes and examples, and measures are those of the table of evaluation sets in "Vision-Language Models for
Vision Tasks: A Survey" (arXiv 2304.00685, Table II, as its repository's README lists them). A set comes from

* FOLDER/SET/train, …/val (if any), …/test: folders of one folder per class, or tars with KEY.cls (clip_benchmark's layout);
  FOLDER/SET/classnames.txt names the classes, one per line in the order of the labels, and
  FOLDER/SET/zeroshot_classification_templates.txt the templates, with {c} or {};
* else from TFDS, prepared in FOLDER.

No class names and templates are kept here. What CLIP used is in data/prompts.md of github.com/openai/CLIP: given as ``prompts``,
its templates are used; its class names are not, since their order need not be that of the labels here.
"""

import ast
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bigvlm.core import parts
from bigvlm.core.parts import RecipeError


class Set(NamedTuple):
    """One set of the table. ``metric``: of ``measures``, or 'recall', or a name that nothing here measures.

    tfds: the data set's name there; splits: its (train, validation, test), '' for none. words: whether its names of labels
    are words; otherwise zero-shot needs classnames.txt. clip: its heading in CLIP's prompts.md. digits: the classes are digits.
    note: what differs.
    """
    title: str
    classes: int
    train: int
    test: int
    metric: str
    tfds: str = ''
    splits: tuple[str, str, str] = ('train', '', 'test')
    words: bool = True
    clip: str = ''
    digits: bool = False
    note: str = ''


CLASSIFICATION: dict[str, Set] = {
    'mnist': Set('MNIST', 10, 60_000, 10_000, 'top1', 'mnist', clip='MNIST', digits=True),
    'caltech101': Set('Caltech-101', 102, 3_060, 6_085, 'mean_per_class', 'caltech101', clip='Caltech101'),
    'voc2007': Set('PASCAL VOC 2007', 20, 5_011, 4_952, 'map11', 'voc/2007', ('train', 'validation', 'test'), clip='PascalVOC2007'),
    'flowers102': Set('Oxford Flowers-102', 102, 2_040, 6_149, 'mean_per_class', 'oxford_flowers102', ('train', 'validation', 'test'),
                      clip='Flowers102'),
    'cifar10': Set('CIFAR-10', 10, 50_000, 10_000, 'top1', 'cifar10', clip='CIFAR10'),
    'cifar100': Set('CIFAR-100', 100, 50_000, 10_000, 'top1', 'cifar100', clip='CIFAR100'),
    'imagenet': Set('ImageNet-1k', 1000, 1_281_167, 50_000, 'top1', 'imagenet2012', ('train', '', 'validation'), words=False),
    'sun397': Set('SUN397', 397, 19_850, 19_850, 'top1', 'sun397/standard-part1-120k', clip='SUN397'),
    'svhn': Set('SVHN', 10, 73_257, 26_032, 'top1', 'svhn_cropped', digits=True),
    'stl10': Set('STL-10', 10, 1_000, 8_000, 'top1', 'stl10', clip='STL10', note='TFDS trains on all 5,000; the survey counts one fold'),
    'gtsrb': Set('GTSRB', 43, 26_640, 12_630, 'top1', clip='GTSRB'),
    'kitti': Set('KITTI Distance', 4, 6_770, 711, 'top1', clip='KITTI'),
    'iiit5k': Set('IIIT5k', 36, 2_000, 3_000, 'top1'),
    'pets': Set('Oxford-IIIT Pets', 37, 3_680, 3_669, 'mean_per_class', 'oxford_iiit_pet', clip='OxfordPets'),
    'cars': Set('Stanford Cars', 196, 8_144, 8_041, 'top1', 'cars196', clip='StanfordCars'),
    'aircraft': Set('FGVC Aircraft', 100, 6_667, 3_333, 'mean_per_class', clip='FGVCAircraft'),
    'fer2013': Set('Facial Emotion Recognition 2013', 8, 32_140, 3_574, 'top1', clip='FacialEmotionRecognition2013',
                   note='the survey counts 8 classes in one place and 7 in another'),
    'sst2': Set('Rendered SST2', 2, 7_792, 1_821, 'top1', clip='SST2'),
    'dtd': Set('Describable Textures', 47, 3_760, 1_880, 'top1', 'dtd', ('train', 'validation', 'test'), clip='DescribableTextures'),
    'food101': Set('Food-101', 101, 75_750, 25_250, 'top1', 'food101', ('train', '', 'validation'), clip='Food101'),
    'birdsnap': Set('Birdsnap', 500, 42_283, 2_149, 'top1', clip='Birdsnap'),
    'resisc45': Set('RESISC45', 45, 3_150, 25_200, 'top1', 'resisc45', ('train[:3150]', '', 'train[3150:28350]'), clip='RESISC45',
                    note='TFDS has one split; cut here to the survey\'s sizes'),
    'clevr': Set('CLEVR Counts', 8, 2_000, 500, 'top1', clip='CLEVRCounts'),
    'pcam': Set('PatchCamelyon', 2, 294_912, 32_768, 'top1', 'patch_camelyon', ('train', 'validation', 'test'), words=False,
                clip='PatchCamelyon'),
    'eurosat': Set('EuroSAT', 10, 10_000, 5_000, 'top1', 'eurosat/rgb', ('train[:10000]', '', 'train[10000:15000]'), clip='EuroSAT',
                   note='TFDS has one split; cut here to the survey\'s sizes'),
    'hateful_memes': Set('Hateful Memes', 2, 8_500, 500, 'roc_auc', clip='HatefulMemes'),
    'country211': Set('Country211', 211, 43_200, 21_100, 'top1', clip='Country211'),
}
RETRIEVAL: dict[str, Set] = {  # FOLDER/SET/test: images with captions, Karpathy's splits
    'flickr30k': Set('Flickr30k', 0, 31_783, 1_000, 'recall'),
    'coco': Set('COCO Caption', 0, 82_783, 5_000, 'recall'),
}
ACTION: dict[str, Set] = {  # FOLDER/SET/train and test: one frame of each clip, as images
    'ucf101': Set('UCF101', 101, 9_537, 1_794, 'top1', clip='UCF101'),
    'kinetics700': Set('Kinetics-700', 700, 494_801, 31_669, 'top1_top5', clip='Kinetics700'),
    'rareact': Set('RareAct', 122, 7_607, 7_607, 'mWAP', note='mWAP and mSAP are over clips and are not measured here'),
}
SETS = CLASSIFICATION | RETRIEVAL | ACTION
KINDS = ('zero_shot', 'linear_probe', 'retrieval')
_UNMEASURED = ('mWAP',)
_VOC = {'tags': 'labels', 'sure': 'labels_no_difficult'}  # its examples' keys, in TFDS and in tars' KEY.json


class Row(NamedTuple):
    """One set under one kind of evaluation: ``evaluator`` in Plan.evals, or '' and the ``reason`` why there is none."""
    set: str
    kind: str
    evaluator: str
    reason: str = ''

    @property
    def metric(self) -> str:
        """What the evaluator calls the survey's measure."""
        return 'text_to_image_r1' if self.kind == 'retrieval' else SETS[self.set].metric


class Plan(NamedTuple):
    """Entries for a recipe's ``data`` and ``evals``, and one row for every set and kind that was asked for."""
    data: dict[str, Any]
    evals: dict[str, Any]
    rows: tuple[Row, ...]


def specs(names: Sequence[str], folder: str, ops: tuple[Mapping[str, Any], ...], *, kinds: Sequence[str] = KINDS, tokenizer: str = 'text',
          length: int = 64, prompts: str = '', canonicalize: bool = False, limit: int = 0, **common: Any) -> Plan:
    """Evaluators of the sets ``names`` (none: all) that are in ``folder``; what is not there has a row with the reason.

    ops: of the images, such as decode and resize. prompts: CLIP's prompts.md, for templates; a set without any gets the
    survey's own, 'a photo of a {}.'. limit: examples per set (0: all). common: fields of every evaluator (every, objective, batch).
    Raises RecipeError for unknown names and kinds, or a prompts file that is none.
    """
    for field, found, valid in (('names', names, SETS), ('kinds', kinds, KINDS)):
        if unknown := [name for name in found if name not in valid]:
            raise RecipeError(f'{field}: found {unknown[0]!r}; valid: {", ".join(valid)}')
    said = templates(prompts) if prompts else {}
    data, evals, rows = {}, {}, []
    for name in names or SETS:
        for kind in kinds:
            if (kind == 'retrieval') != (name in RETRIEVAL):
                continue
            try:
                evaluator, spec, sources = _evaluator(name, kind, Path(folder).expanduser(), said)
            except RecipeError as error:
                rows.append(Row(name, kind, '', str(error)))
                continue
            if kind != 'linear_probe':
                spec |= dict(tokenizer=tokenizer, length=length, canonicalize=canonicalize)
            evals[evaluator] = dict(spec, name=kind, limit=limit, **common)
            data |= {key: dict(source=source, ops=tuple(ops)) for key, source in sources.items()}
            rows.append(Row(name, kind, evaluator))
    return Plan(data, evals, tuple(rows))


def _evaluator(name: str, kind: str, folder: Path, said: Mapping[str, tuple[str, ...]]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """(its name, its own fields, {name: source} of its data sets). Raises RecipeError with the reason why it cannot be."""
    row, splits = SETS[name], ('test',) if kind != 'linear_probe' else ('train', 'val', 'test')
    if row.metric in _UNMEASURED:
        raise RecipeError(f'no measure {row.metric}: {row.note}')
    data = {f'{name}_{split}': source for split in splits if (source := _source(name, split, folder))}
    opened = {key: parts.build('bigvlm.data.sources', source, key) for key, source in data.items()}
    for key, source in opened.items():
        if not len(source):
            raise RecipeError(f'{key}: is empty')
    spec: dict[str, Any] = {'data': f'{name}_test'}
    if kind == 'retrieval':
        return f'{name}_{kind}', spec, data
    spec['metric'] = row.metric
    classes = _classes(name, folder, opened[f'{name}_test'])
    if row.metric == 'map11':
        spec |= _VOC | {'classes': classes}
    if kind == 'linear_probe':
        return f'{name}_{kind}', spec | dict(train=f'{name}_train', val=f'{name}_val' if f'{name}_val' in data else ''), data
    if not classes:
        raise RecipeError(f'no class names: write {folder / name / "classnames.txt"}, one per line in the order of the labels')
    own = folder / name / 'zeroshot_classification_templates.txt'
    return f'{name}_{kind}', spec | dict(classes=classes, templates=str(own) if own.is_file() else said.get(row.clip, 'photo')), data


def _source(name: str, split: str, folder: Path) -> dict[str, Any] | None:
    """Where a split is; None if the set has no such one. Raises RecipeError if the set is not there."""
    here, row = folder / name, SETS[name]
    if _is_local(here):
        if not (here / split).is_dir():
            if split == 'val':
                return None
            raise RecipeError(f'no folder {here / split}')
        captions, tags = name in RETRIEVAL, row.metric == 'map11'
        if any((here / split).glob('*.tar')):
            needs = ('image', *(() if tags else ('captions',) if captions else ('label',)))
            extra = tuple(_VOC.values()) if tags else ()
            return dict(name='webdataset', files=str(here / split / '*.tar'), require=needs, extra=extra)
        if tags:
            raise RecipeError(f'several labels per image need tars in {here / split}, with {" and ".join(_VOC.values())} in KEY.json')
        return dict(name='folder', root=str(here / split), classes=not captions, captions=captions)
    if not row.tfds:
        raise RecipeError(f'no folder {here}/test, and TFDS does not have it')
    if not any((folder / row.tfds).glob('*/dataset_info.json')):
        raise RecipeError(f'no folder {here}/test, and TFDS data set {row.tfds} is not prepared in {folder}')
    part = row.splits[('train', 'val', 'test').index(split)]
    if not part:
        return None
    fields = dict(label='', extra=tuple(_VOC.values())) if row.metric == 'map11' else dict(label='label')
    return dict(name='tfds', dataset=row.tfds, split=part, captions='', data_dir=str(folder), **fields)


def _is_local(here: Path) -> bool:
    """TFDS's folder of a set may have the same name."""
    return any((here / split).is_dir() for split in ('train', 'test'))


def _classes(name: str, folder: Path, source: Any) -> tuple[str, ...]:
    """Class names in the order of the labels: the folder's file, else the source's if they are words, as one would say them."""
    own = folder / name / 'classnames.txt'
    if own.is_file():
        return tuple(line.strip() for line in own.read_text(encoding='utf-8').splitlines() if line.strip())
    if SETS[name].metric == 'map11' and SETS[name].tfds:
        return _voc_names(folder)
    numbers = all(re.fullmatch(r'n?\d+', label) for label in source.label_names)  # wnids and indices are not said of a photo
    if numbers and not SETS[name].digits or not (SETS[name].words or _is_local(folder / name)):
        return ()
    return tuple(map(spoken, source.label_names))


def _voc_names(folder: Path) -> tuple[str, ...]:
    """TFDS keeps the names of tags beside the data, but not as those of one label."""
    files = sorted((folder / SETS['voc2007'].tfds).glob('*/labels.labels.txt'))
    return tuple(map(spoken, files[-1].read_text(encoding='utf-8').split())) if files else ()


def spoken(name: str) -> str:
    """A label's name in words: '/a/airplane_cabin', 'AnnualCrop' -> 'airplane cabin', 'annual crop'."""
    name = re.sub(r'^/\w/', '', name)
    if re.fullmatch(r'(?:[A-Z][a-z]+){2,}', name):
        name = re.sub(r'(?<=[a-z])(?=[A-Z])', ' ', name).lower()
    return ' '.join(re.split(r'[_/\s]+', name)).strip()


def templates(path: str) -> dict[str, tuple[str, ...]]:
    """{heading: templates} of a file like CLIP's prompts.md: '## HEADING', and a Python list after 'templates ='."""
    try:
        text = Path(path).expanduser().read_text(encoding='utf-8')
        sections = re.split(r'^## +', text, flags=re.MULTILINE)[1:]
        found = {}
        for section in sections:
            if given := re.search(r'^templates\s*=\s*(\[.*?^\])', section, flags=re.MULTILINE | re.DOTALL):
                found[section.split('\n', 1)[0].strip()] = tuple(ast.literal_eval(given[1]))
    except (OSError, ValueError, SyntaxError) as error:
        raise RecipeError(f'prompts: {path} cannot be read as CLIP\'s prompts.md ({error})') from None
    if not found:
        raise RecipeError(f"prompts: {path} has no '## SET' with a list of templates, as CLIP's prompts.md has")
    return found
