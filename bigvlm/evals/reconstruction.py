"""What a model paints where patches are hidden: the held-out error of masked image modelling, and pictures of it.

N examples; H, W pixels; L patches, row by row; R, C rows and columns of them.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from einops import rearrange, repeat

from bigvlm.core.parts import RecipeError
from bigvlm.data.ops import _codebook
from bigvlm.evals.examples import spread
from bigvlm.figures import Gallery, Item, Row

_GREY = 128


class Examples(Sequence):
    """The arrays of a dataset's examples, read when asked for; ``real_N``: 1 for those read that are no substitute of a bad one."""

    def __init__(self, dataset, indices: Sequence[int]):
        self.dataset, self.indices, self.real_N = dataset, indices, np.zeros(len(indices), np.int32)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> Mapping[str, np.ndarray]:
        example = self.dataset.example(self.indices[place])
        self.real_N[place] = 'id' not in example or int(example['id'][-1]) == self.indices[place]
        return {key: np.asarray(value) for key, value in example.items() if np.asarray(value).dtype.kind in 'biuf'}


@dataclasses.dataclass(kw_only=True)
class Reconstruction:
    """Yields ``error``, the mean over the masked patches of all examples; ``accuracy`` if they are codes; ``masked``, patches of an
    image; ``n``; and the figure ``examples``: the image, what was shown of it, what was painted.

    data: a dataset whose ops write the objective's mask, and codes if it predicts them. image: the batch key. codebook: the file that
    the codes are of, to paint them; without it the figure of codes is left out. limit: at most so many examples (0: all).
    """
    data: str = 'val'
    image: str = 'image'
    codes: str = 'patch_codes'
    codebook: str = ''
    examples: int = 8
    limit: int = 0
    datasets: Callable

    reads = ('data',)  # fields that name datasets
    needs = 'reconstruct'  # of the objective

    def __post_init__(self):
        self._book = _codebook.load(Path(self.codebook).expanduser()) if self.codebook else None

    def run(self, embedder) -> Iterator[tuple[str, float | Gallery]]:
        dataset = self.datasets(self.data)
        examples = Examples(dataset, range(min(len(dataset), self.limit or len(dataset))))
        found = embedder.call('features', examples)
        real_N = embedder.gather(examples.real_N).astype(bool)
        if not {'error_B', 'count_B'} <= found.keys() or not real_N.any():
            raise RecipeError(f'objective: found {", ".join(sorted(found))} of {real_N.sum()} examples; valid: one that masks patches '
                              '(error_B, count_B), and at least one example')
        count_N = np.asarray(found['count_B'], np.float64)[real_N]
        total = max(count_N.sum(), 1.)
        yield 'error', float(np.asarray(found['error_B'], np.float64)[real_N].sum() / total)
        if 'right_B' in found:
            yield 'accuracy', float(np.asarray(found['right_B'], np.float64)[real_N].sum() / total)
        yield 'masked', float(count_N.mean())
        yield 'n', float(real_N.sum())
        if self.examples:
            yield from self._figure(embedder, dataset)

    def _figure(self, embedder, dataset) -> Iterator[tuple[str, Gallery]]:
        shown = Examples(dataset, spread(len(dataset), self.examples))
        found = embedder.call('reconstruct', shown)
        if 'codes_BL' in found and self._book is None:
            return
        rows = []
        for place, example in enumerate(shown):
            image_HWC, masked_L = example[self.image], found['masked_BL'][place]
            items = [Item(text='shown', image=np.where(self._spread(masked_L, image_HWC)[..., None], np.uint8(_GREY), image_HWC))]
            if 'codes_BL' in found:
                items += [Item(text='painted', image=self._painted(found['codes_BL'][place], masked_L, image_HWC))]
                if self.codes in example:
                    items += [Item(text='its codes', image=self._painted(example[self.codes], masked_L, image_HWC))]
            else:
                painted_HWC = np.clip(np.rint(found['image_BHWC'][place] * 255), 0, 255).astype(np.uint8)
                items += [Item(text='painted', image=painted_HWC)]
            rows.append(Row(Item(text=f'{masked_L.mean():.0%} hidden', image=image_HWC), tuple(items)))
        yield 'examples', Gallery('Hidden patches', tuple(rows))

    def _painted(self, code_L: np.ndarray, masked_L: np.ndarray, image_HWC: np.ndarray) -> np.ndarray:
        """The image with the pictures of codes where it is masked; a codebook's patches may be smaller than the tower's."""
        rows = _rows(len(code_L), image_HWC)
        picture_HWC = self._book.picture(code_L, rows)
        times = image_HWC.shape[0] // picture_HWC.shape[0]
        if picture_HWC.shape[0] * times != image_HWC.shape[0]:
            raise RecipeError(f'codebook: found {rows} rows of patches of {self._book.patch} pixels; valid: those that, a whole number of '
                              f'times as large, fill an image of {image_HWC.shape[0]} pixels')
        painted_HWC = repeat(picture_HWC, 'h w c -> (h y) (w x) c', y=times, x=times)
        return np.where(self._spread(masked_L, image_HWC)[..., None], painted_HWC, image_HWC)

    def _spread(self, masked_L: np.ndarray, image_HWC: np.ndarray) -> np.ndarray:
        """bool [H, W]: which pixels are masked."""
        masked_RC = rearrange(masked_L, '(r c) -> r c', r=_rows(len(masked_L), image_HWC))
        high, wide = (pixels // patches for pixels, patches in zip(image_HWC.shape, masked_RC.shape))
        return repeat(masked_RC, 'r c -> (r p) (c q)', p=high, q=wide)


def _rows(patches: int, image_HWC: np.ndarray) -> int:
    """Of a grid of square patches over an image."""
    return round((patches * image_HWC.shape[0] / image_HWC.shape[1]) ** .5)
