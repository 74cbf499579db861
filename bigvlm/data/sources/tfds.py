"""Any prepared TensorFlow Datasets data set, ArrayRecord or TFRecord, without TensorFlow; bigvlm_scenes is rendered on first use."""
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError

from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample, usable
from bigvlm.data.cache import cache_dir, locked
from bigvlm.data.sources._file_index import Joined
from bigvlm.data.sources._records import ArrayRecords
from bigvlm.data.sources._tfrecord import TFRecords

_SCENES = 'bigvlm_scenes'


class Tfds:
    """Random access to `split` (TFDS's own syntax, such as 'train[:90%]') of `dataset` ('name', 'name/config:version').

    `image`, `captions`, `label` name the features that give them ('' for none); a dotted name reaches into a feature
    ('captions.text'). `extra` names further features to keep; a text comes as str, a sequence of texts as a tuple. `data_dir`: where the
    data set lies or is to be built; '' is TFDS's own folder, for bigvlm_scenes the cache.
    """

    def __init__(self, dataset: str, split: str, image: str = 'image', captions: str = 'captions', label: str = '',
                 extra: Sequence[str] = (), data_dir: str = ''):
        self.name = f'{dataset}/{split}'
        builder = _builder(dataset, data_dir)
        self._features = features = builder.info.features
        fields = {'image': image, 'captions': captions, 'label': label} | {key: key for key in extra}
        self._fields = {key: path.split('.') for key, path in fields.items() if path}
        for key, path in self._fields.items():
            if path[0] not in features:
                raise RecipeError(f'{key}: {dataset} has no feature {path[0]!r} '
                                  f'(there are: {", ".join(features)}; "" for none)')
        self._texts = [key for key in extra if _is_text(features, self._fields[key])]
        self._raw = {key: tfds.decode.SkipDecoding() for key, feature in features.items()
                     if isinstance(feature, tfds.features.Image)}
        self._places = _places(builder, dataset, split)
        self._joined = Joined([piece.take for piece in self._places])
        sizes = {str(piece.filename): piece.examples_in_shard for piece in self._places}  # a split may name a file twice
        self._file = {url: number for number, url in enumerate(sizes)}
        self._records = _records(builder, sizes)
        self.io = self._records.io
        self.label_names: tuple[str, ...] = ()
        if label in features and isinstance(features[label], tfds.features.ClassLabel):
            self.label_names = tuple(features[label].names)
        self.fingerprint = _fingerprint(builder, split, fields)

    def __len__(self) -> int:
        return len(self._joined)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return usable(self.read(index, index + 1)[0])

    def read(self, first: int, stop: int) -> list[dict[str, Any] | BadExample]:
        """Examples first..stop-1, by one request for each file."""
        found: list[dict[str, Any] | BadExample] = []
        for number, a, b in self._joined.pieces(first, stop):
            piece = self._places[number]
            for record in self._records.read(self._file[str(piece.filename)], piece.skip + a, piece.skip + b):
                found.append(record if isinstance(record, BadExample) else self._example(record))
        return found

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions of one example, () if the data set has none."""
        return self[index].get('captions', ())

    def describe(self, index: int) -> str:
        """The example's name in reports."""
        return f'{self.name}[{index}]'

    def _example(self, record: bytes) -> dict[str, Any] | BadExample:
        try:
            row = self._features.deserialize_example_np(record, decoders=self._raw)
        except (ValueError, KeyError, AttributeError, DecodeError):  # all that the parser raises for what it does not expect
            return BadExample('record does not fit the features')
        example = {key: _reach(row, path) for key, path in self._fields.items()}
        example |= {key: _text(example[key]) for key in self._texts}
        if 'captions' in example:
            example['captions'] = _texts(example['captions'])
            if not example['captions']:
                return BadExample('no caption')
        return example


def _builder(dataset: str, data_dir: str) -> tfds.core.DatasetBuilder:
    folder = Path(data_dir).expanduser() if data_dir else cache_dir('tfds') if dataset.startswith(_SCENES) else None
    if dataset.partition('/')[0].partition(':')[0] == _SCENES:
        from bigvlm.data.scenes import builder  # noqa: F401  registers the name with TFDS
        found = _from_code(dataset, folder)
        _render(found)
        return found
    try:  # what was prepared describes itself; its code may want TensorFlow
        return tfds.core.read_only_builder.builder_from_files(dataset, data_dir=folder)
    except tfds.core.DatasetNotFoundError:
        found = _from_code(dataset, folder)
    except ValueError as error:
        raise RecipeError(f'data_dir: {str(error).splitlines()[0]}') from None
    if not Path(found.data_path, 'dataset_info.json').exists():
        raise RecipeError(f'dataset: {dataset} is not prepared at {found.data_path}; download it with '
                          f'tfds.builder({dataset!r}, file_format="array_record").download_and_prepare()')
    return found


def _from_code(dataset: str, folder: Path | None) -> tfds.core.DatasetBuilder:
    try:
        return tfds.builder(dataset, data_dir=folder)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise RecipeError(f'dataset: TFDS has no {dataset!r} ({str(error).splitlines()[0]})') from None
    except ImportError as error:
        raise RecipeError(f'dataset: {dataset} is not prepared at {folder or "~/tensorflow_datasets"}, and preparing it needs '
                          f'more than is installed ({error.name}); prepare it elsewhere, in any format, and copy it') from None


def _places(builder: tfds.core.DatasetBuilder, dataset: str, split: str) -> list[Any]:
    """TFDS's file instructions: of each file, how many examples to skip and to take."""
    try:
        return [piece for piece in builder.info.splits[split].file_instructions if piece.take]
    except (ValueError, KeyError) as error:
        splits = ', '.join(builder.info.splits) or 'none'
        raise RecipeError(f'split: {dataset} has no split {split!r} (there are: {splits}): {error}') from None


def _records(builder: tfds.core.DatasetBuilder, sizes: dict[str, int]) -> ArrayRecords | TFRecords:
    """The reader of files with so many examples each, for the builder's format."""
    kind = builder.info.file_format.value
    if kind == 'tfrecord':
        return TFRecords(list(sizes), list(sizes.values()))
    if kind != 'array_record':
        raise RecipeError(f'dataset: {builder.info.full_name} at {builder.data_path} is stored as {kind}; prepare it with '
                          'file_format="array_record" or "tfrecord"')
    records = ArrayRecords(list(sizes))
    for url, said, count in zip(sizes, sizes.values(), records.counts):
        if count not in (0, said):
            raise RecipeError(f'dataset: {url} has {count} records, its data set says {said}')
    return records


def _render(builder: tfds.core.DatasetBuilder) -> None:
    """Build bigvlm_scenes unless it is there; of several processes, one does."""
    with locked(hashlib.sha256(str(builder.data_path).encode()).hexdigest()[:16]):
        if not Path(builder.data_path, 'dataset_info.json').exists():
            print(f'bigvlm_scenes: rendering on first use into {builder.data_path}', flush=True)
            tfds.disable_progress_bar()  # the builder has a better one, which knows the total
            try:
                builder.download_and_prepare()
            finally:
                tfds.enable_progress_bar()


def _fingerprint(builder: tfds.core.DatasetBuilder, split: str, fields: dict[str, str]) -> str:
    counted = {name: (info.num_examples, info.num_bytes) for name, info in builder.info.splits.items()}
    said = json.dumps([builder.info.full_name, counted, split, fields], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _reach(value: Any, path: Sequence[str]) -> Any:
    for key in path:
        value = value[key] if isinstance(value, dict) else [v[key] for v in value]
    return value


def _is_text(features: Any, path: Sequence[str]) -> bool:
    """Whether the feature at `path` is a text or a sequence of them."""
    for key in path:
        features = getattr(features, 'feature', features)[key]
    return isinstance(getattr(features, 'feature', features), tfds.features.Text)


def _text(value: Any) -> Any:
    """Text as str; a sequence as a tuple, in which none is left out."""
    return value.decode('utf-8', 'replace') if isinstance(value, bytes) else tuple(map(_text, value))


def _texts(value: Any) -> tuple[str, ...]:
    values = [value] if isinstance(value, (bytes, str)) else value
    texts = (v.decode('utf-8', 'replace') if isinstance(v, bytes) else str(v) for v in values)
    return tuple(t for text in texts if (t := text.strip()))
