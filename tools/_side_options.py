"""What tools/train_codebook.py and tools/annotate.py share: options that name a data set, and its images as a model sees them."""
import argparse
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import TooManyBad
from bigvlm.data.dataset import Dataset
from bigvlm.data.datasets import Datasets
from bigvlm.data.ops import _scaling
from tools import _data_opened as opened
from tools._data_opened import Options, Overrides

# (flag, type, default, help); a list may be repeated, None is required.
Option = tuple[str, type, Any, str]


def where() -> argparse.ArgumentParser:
    """The options that name a data set, as a parent of others."""
    found = argparse.ArgumentParser(add_help=False)
    found.add_argument('--config', default='', help='a recipe, FILE[:arguments]; --config.key=value changes it')
    found.add_argument('--data', default='train', help="which of the recipe's data sets")
    found.add_argument('--source', default='', help="'webdataset,files=DIR/*.tar': a source and its fields")
    found.add_argument('--set', default='', help='a set of the site file')
    found.add_argument('--split', default='train', help='of --set')
    found.add_argument('--workers', type=int, default=0, help='threads; 0: one per core')
    return found


def add(parser: argparse.ArgumentParser, options: Sequence[Option]) -> None:
    for flag, kind, default, text in options:
        if kind is bool:
            parser.add_argument(flag, action='store_true', help=text)
        else:
            parser.add_argument(flag, type=kind, default=default, required=default is None, help=text)


def run(parser: argparse.ArgumentParser, arguments: Sequence[str], work: Callable[[Options, Overrides], None]) -> int:
    """Parses and works; what is wrong is one line and exit code 2."""
    options, rest = parser.parse_known_args(arguments)
    overrides = [r.removeprefix('--config.').partition('=')[::2] for r in rest if r.startswith('--config.') and '=' in r]
    if len(overrides) < len(rest):
        parser.error(f'no option {next(r for r in rest if not r.startswith("--config.") or "=" not in r)!r}')
    try:
        work(options, overrides)
    except (RecipeError, TooManyBad, OSError) as error:
        print(f'bigvlm: {error}', file=sys.stderr)
        return 2
    return 0


def pictures(options: Options, overrides: Overrides, size: int, until: str = '') -> Dataset:
    """The data set with images as uint8 [H, W, 3]: after the recipe's ops (those before the op `until`), or, of a source alone,
    decoded, the shorter side scaled to `size` pixels (224 for 0) and the middle cut out."""
    if not options.config:
        wanted = opened.spec_of(options, overrides)
        bare = Dataset(dict(source=wanted, max_bad=1.), 'source')
        crop = dict(name='resize', size=size or 224)
        encoded = not isinstance(first_image(bare), np.ndarray)
        return Dataset(dict(source=wanted, ops=(dict(name='decode'), crop) if encoded else (crop,), max_bad=1.), 'source', like=bare)
    config = opened.recipe_of(options, overrides)
    opened.spec_of(options, overrides)  # names a data set with a source
    data = config['data'][options.data]
    ops = tuple(itertools.takewhile(lambda op: op['name'] != until, data.get('ops', ())))
    data = config['data'] | {options.data: {**data, 'ops': ops, 'max_bad': 1.}}
    tokenizers = opened.tokenizers_of(options, overrides) if any('token' in op['name'] for op in ops) else {}
    return Datasets(config | {'data': data}, tokenizers)(options.data)


def first_image(dataset: Dataset) -> Any:
    """Of the first example that can be used."""
    return dataset.example(0).get('image')


def picture(example: Mapping[str, Any], size: int = 0) -> np.ndarray:
    """The example's image, uint8 [H, W, 3], scaled to size × size if asked for. RecipeError if it has none."""
    image_HWC = example.get('image')
    if not isinstance(image_HWC, np.ndarray) or image_HWC.dtype != np.uint8 or image_HWC.ndim != 3:
        raise RecipeError(f"--data: examples need an 'image' of pixels (ops decode and a crop), found {type(image_HWC).__name__}")
    if size and image_HWC.shape[:2] != (size, size):
        image_HWC = _scaling.scale(image_HWC, (0, 0, image_HWC.shape[1], image_HWC.shape[0]), size, size, 'bilinear')
    return image_HWC
