"""Any TensorFlow Datasets data set in ArrayRecord, without TensorFlow; bigvlm_scenes is rendered on first use."""
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample
from bigvlm.data.cache import cache_dir, locked

_SCENES = 'bigvlm_scenes'


class Tfds:
    """Random access to `split` (TFDS's own syntax, such as 'train[:90%]') of `dataset` ('name', 'name/config:version').

    `image`, `captions`, `label` name the features that give them ('' for none); a dotted name reaches into a feature
    ('captions.text'). `extra` names further features to keep. `data_dir`: where the data set lies or is to be built;
    '' is TFDS's own folder, for bigvlm_scenes the cache.
    """

    def __init__(self, dataset: str, split: str, image: str = 'image', captions: str = 'captions', label: str = '',
                 extra: Sequence[str] = (), data_dir: str = ''):
        self.name = f'{dataset}/{split}'
        builder = _builder(dataset, data_dir)
        features = builder.info.features
        fields = {'image': image, 'captions': captions, 'label': label} | {key: key for key in extra}
        self._fields = {key: path.split('.') for key, path in fields.items() if path}
        for key, path in self._fields.items():
            if path[0] not in features:
                raise RecipeError(f'{key}: {dataset} has no feature {path[0]!r} '
                                  f'(there are: {", ".join(features)}; "" for none)')
        raw = {key: tfds.decode.SkipDecoding() for key, feature in features.items()
               if isinstance(feature, tfds.features.Image)}
        try:
            self._rows = builder.as_data_source(split, decoders=raw)
        except NotImplementedError:
            raise RecipeError(f'dataset: {dataset} at {builder.data_path} is a {builder.info.file_format.value}; '
                              'prepare it with file_format="array_record"') from None
        except (ValueError, KeyError) as error:
            splits = ', '.join(builder.info.splits) or 'none'
            raise RecipeError(f'split: {dataset} has no split {split!r} (there are: {splits}): {error}') from None
        self.label_names: tuple[str, ...] = ()
        if label in features and isinstance(features[label], tfds.features.ClassLabel):
            self.label_names = tuple(features[label].names)
        self.fingerprint = _fingerprint(builder, split, fields)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._rows[index]
        example = {key: _reach(row, path) for key, path in self._fields.items()}
        if 'captions' in example:
            example['captions'] = _texts(example['captions'])
            if not example['captions']:
                raise BadExample('no caption')
        return example

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions of one example, () if the data set has none."""
        return self[index].get('captions', ())

    def describe(self, index: int) -> str:
        """The example's name in reports."""
        return f'{self.name}[{index}]'


def _builder(dataset: str, data_dir: str) -> tfds.core.DatasetBuilder:
    folder = Path(data_dir).expanduser() if data_dir else cache_dir('tfds') if dataset.startswith(_SCENES) else None
    if dataset.partition('/')[0].partition(':')[0] == _SCENES:
        from bigvlm.data.scenes import builder  # noqa: F401  registers the name with TFDS
    try:
        found = tfds.builder(dataset, data_dir=folder, **({'file_format': 'array_record'} if folder is None else {}))
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise RecipeError(f'dataset: TFDS has no {dataset!r} ({str(error).splitlines()[0]})') from None
    if dataset.startswith(_SCENES):
        _render(found)
    elif not Path(found.data_path, 'dataset_info.json').exists():
        raise RecipeError(f'dataset: {dataset} is not prepared at {found.data_path}; download it with '
                          f'tfds.builder({dataset!r}, file_format="array_record").download_and_prepare()')
    return found


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


def _texts(value: Any) -> tuple[str, ...]:
    values = [value] if isinstance(value, (bytes, str)) else value
    texts = (v.decode('utf-8', 'replace') if isinstance(v, bytes) else str(v) for v in values)
    return tuple(t for text in texts if (t := text.strip()))
