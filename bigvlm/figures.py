"""What an evaluator can show besides numbers, and how it is kept in the work directory for the report.

C: classes, H, W: pixels.
"""

import base64
import dataclasses
import io
import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

THUMBNAIL = 128  # pixels, longer side
_MAX_CLASSES = 128  # a larger confusion matrix is pooled: it could not be read on a screen anyway


@dataclasses.dataclass(frozen=True)
class Item:
    """Something shown: a text, an image (uint8 [H,W,3], or JPEG bytes once saved), or both."""
    text: str = ''
    image: np.ndarray | bytes | None = None
    right: bool | None = None  # None: neither right nor wrong
    value: float | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """A query and what the model answered, best first."""
    query: Item
    items: tuple[Item, ...]
    note: str = ''


@dataclasses.dataclass(frozen=True)
class Gallery:
    title: str
    rows: tuple[Row, ...]


@dataclasses.dataclass(frozen=True)
class Confusion:
    """counts_CC: true class by row, predicted by column. pairs: the most confused (true, predicted, count, of)."""
    counts_CC: np.ndarray
    names: tuple[str, ...]
    pairs: tuple[tuple[str, str, int, int], ...] = ()
    title: str = 'Confusion'

    @classmethod
    def count(cls, label_N: np.ndarray, predicted_N: np.ndarray, names: tuple[str, ...],
              pairs: int = 12) -> 'Confusion':
        """From labels and predictions. Classes that never occur are left out; many are pooled with neighbours."""
        occurring = np.union1d(label_N, predicted_N)
        counts_CC = np.zeros((len(occurring),) * 2, np.int64)
        np.add.at(counts_CC, (np.searchsorted(occurring, label_N), np.searchsorted(occurring, predicted_N)), 1)
        names = tuple(names[c] for c in occurring)
        wrong_CC = counts_CC * ~np.eye(len(names), dtype=bool)
        order = np.argsort(-wrong_CC, axis=None, kind='stable')[:pairs]
        worst = tuple((names[t], names[p], int(wrong_CC[t, p]), int(counts_CC[t].sum()))
                      for t, p in zip(*np.unravel_index(order, wrong_CC.shape)) if wrong_CC[t, p])
        return cls(*_pool(counts_CC, names), worst)


def _pool(counts_CC: np.ndarray, names: tuple[str, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
    run = -(-len(names) // _MAX_CLASSES)
    if run <= 1:
        return counts_CC, names
    starts = np.arange(0, len(names), run)
    pooled = np.add.reduceat(np.add.reduceat(counts_CC, starts, axis=0), starts, axis=1)
    last = np.minimum(starts + run, len(names)) - 1
    return pooled, tuple(f'{names[a]} … {names[b]}' if a < b else names[a] for a, b in zip(starts, last))


def jpeg(image: np.ndarray | bytes) -> bytes:
    """JPEG of at most THUMBNAIL pixels a side; bytes pass as they are."""
    if isinstance(image, bytes):
        return image
    picture = Image.fromarray(np.ascontiguousarray(image, np.uint8)).convert('RGB')
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, 'JPEG', quality=85)
    return buffer.getvalue()


def save(workdir: str | os.PathLike, step: int, name: str, figure: Gallery | Confusion) -> Path:
    """Writes ``workdir/figures/STEP/NAME.json`` (NAME may hold slashes), atomically."""
    path = Path(workdir, 'figures', str(int(step)), f'{name}.json')
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix('.json.partial')
    content = {'kind': type(figure).__name__, **dataclasses.asdict(figure)}
    partial.write_text(json.dumps(content, default=_encode, ensure_ascii=False), encoding='utf-8')
    partial.replace(path)
    return path


def load(path: str | os.PathLike) -> Gallery | Confusion:
    """A saved figure; its images are JPEG bytes. ValueError if the file is not one."""
    try:
        content = json.loads(Path(path).read_text(encoding='utf-8'))
        if content['kind'] == 'Confusion':
            return Confusion(np.array(content['counts_CC']), tuple(content['names']),
                             tuple(tuple(p) for p in content['pairs']), content['title'])
        return Gallery(content['title'], tuple(
            Row(_item(row['query']), tuple(_item(item) for item in row['items']), row['note'])
            for row in content['rows']))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f'{path}: not a figure of bigvlm ({error!r})') from None


def latest(workdir: str | os.PathLike) -> dict[str, tuple[int, Gallery | Confusion]]:
    """The newest readable version of every figure: name -> (step, figure)."""
    found = {}
    root = Path(workdir, 'figures')
    steps = sorted((int(d.name), d) for d in root.glob('*') if d.name.isdigit()) if root.is_dir() else []
    for step, folder in reversed(steps):
        for path in sorted(folder.rglob('*.json')):
            name = path.relative_to(folder).with_suffix('').as_posix()
            if name not in found:
                try:
                    found[name] = step, load(path)
                except (ValueError, OSError):
                    continue  # damaged: the version before it is shown
    return dict(sorted(found.items()))


def _encode(value):
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 3:
        return base64.b64encode(jpeg(value)).decode()
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(f'{type(value).__name__} in a figure')


def _item(content: dict) -> Item:
    image = content['image']
    return Item(content['text'], None if image is None else base64.b64decode(image), content['right'], content['value'])
