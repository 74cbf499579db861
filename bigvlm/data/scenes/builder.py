"""bigvlm_scenes as a TensorFlow Datasets builder that needs no TensorFlow: rendered scenes, described and annotated.

Splits: `train` (objects of grammar.SEEN combinations only), `val` (new scenes; every caption belongs to one image) and
`zero_shot` (one large object of a grammar.HELD_OUT combination, whose name is the label).
"""
import dataclasses
import io
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from bigvlm.data.scenes import grammar, layout, render

_SPLITS = ('train', 'val', 'zero_shot')


@dataclasses.dataclass(eq=False)
class SceneConfig(tfds.core.BuilderConfig):
    """`size`: pixels; `train`, `val`: images; `zero_shot`: images of each held-out combination."""
    size: int = 64
    train: int = 16384
    val: int = 512
    zero_shot: int = 10
    seed: int = 0


class BigvlmScenes(tfds.core.GeneratorBasedBuilder):
    """Rendered compositional scenes; `tfds.builder` names: bigvlm_scenes, bigvlm_scenes/tiny."""

    VERSION = tfds.core.Version('1.1.0')
    BUILDER_CONFIGS = [SceneConfig(name='default', description='64 px, built in about a minute'),
                       SceneConfig(name='tiny', description='for tests', size=32, train=96, val=24, zero_shot=1)]

    def __init__(self, **kwargs: Any):
        super().__init__(**{'file_format': 'array_record', **kwargs})

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.builder_config.size
        spans = tfds.features.Tensor(shape=(None, 4), dtype=np.int32)
        classes = tfds.features.ClassLabel
        return self.dataset_info_from_configs(
            description=__doc__,
            features=tfds.features.FeaturesDict({
                'image': tfds.features.Image(shape=(size, size, 3), encoding_format='png'),
                'captions': tfds.features.Sequence(tfds.features.Text()),
                'captions_de': tfds.features.Sequence(tfds.features.Text()),
                # Rows of (caption, object, first character, one past the last): which words name which box.
                'spans': spans,
                'spans_de': spans,
                'boxes': tfds.features.Sequence(tfds.features.BBoxFeature()),
                'shapes': tfds.features.Sequence(classes(names=grammar.SHAPES)),
                'colors': tfds.features.Sequence(classes(names=grammar.COLORS)),
                'textures': tfds.features.Sequence(classes(names=grammar.TEXTURES)),
                'sizes': tfds.features.Sequence(classes(names=grammar.SIZES)),
                # Pixel values: 0 background, k for the k-th object, from 1.
                'segmentation': tfds.features.Image(shape=(size, size, 1), encoding_format='png'),
                # The held-out combination of a zero_shot image; -1 in the other splits.
                'label': classes(names=[grammar.name(c) for c in grammar.HELD_OUT]),
            }))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[int, dict]]]:
        config = self.builder_config
        counts = dict(train=config.train, val=config.val, zero_shot=config.zero_shot * len(grammar.HELD_OUT))
        return {split: self._generate_examples(split, counts[split]) for split in _SPLITS}

    def _generate_examples(self, split: str, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        taken: set[str] = set()  # detailed captions of the validation images so far
        pause = .1 if sys.stderr.isatty() else 10.  # seconds between two lines of progress
        for index in tqdm(range(count), desc=f'bigvlm_scenes: rendering {split}', unit=' images', mininterval=pause):
            yield index, example(self.builder_config, split, index, taken)


def example(config: SceneConfig, split: str, index: int, taken: set[str]) -> dict[str, Any]:
    """Image `index` of a split, a function of (config.seed, split, index); validation scenes avoid and join `taken`."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence((config.seed, _SPLITS.index(split), index))))
    if split == 'zero_shot':
        label = index % len(grammar.HELD_OUT)
        scene = layout.single(rng, grammar.HELD_OUT[label], 'large')
    else:
        label, scene = -1, layout.scene(rng)
    first = 0
    if split == 'val':  # only the two detailed captions, which no other validation image has
        first = -2
        while taken & (captions := {c.text for c in scene.captions()[first:]}):
            scene = layout.scene(rng)
        taken |= captions
    image, mask = render.draw(scene, config.size, rng)
    english, german = (scene.captions(language)[first:] for language in ('en', 'de'))
    kinds = [thing.kind for thing in scene.objects]
    return {
        'image': io.BytesIO(render.png(image)),
        'captions': [c.text for c in english],
        'captions_de': [c.text for c in german],
        'spans': _spans(english),
        'spans_de': _spans(german),
        'boxes': [tfds.features.BBox(*map(float, box)) for box in render.boxes(mask, len(kinds))],
        'shapes': [k.shape for k in kinds],
        'colors': [k.color for k in kinds],
        'textures': [k.texture for k in kinds],
        'sizes': [k.size for k in kinds],
        'segmentation': io.BytesIO(render.png(mask)),
        'label': label,
    }


def _spans(captions: list[grammar.Caption]) -> np.ndarray:
    return np.array([(row, *span) for row, caption in enumerate(captions) for span in caption.spans], np.int32)
