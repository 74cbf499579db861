"""Images to one size."""
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.data.bad import BadExample
from bigvlm.data.ops import _scaling
from bigvlm.data.ops.decode import MAX_PIXELS

_CROPS, _ROUNDINGS = ('center', 'squash', 'pad'), ('exact', 'floor', 'nearest')


def resize(size: int = 224, crop: str = 'center', method: str = 'bicubic', antialias: bool = True, fill: int | Sequence[int] = 128,
           rounding: str = 'exact', shorter: int = 0, key: str = 'image') -> Callable:
    """uint8 [H, W, 3] to [size, size, 3].

    `crop`: 'center' scales the shorter side to `size` and cuts the middle out; 'squash' changes the aspect ratio; 'pad'
    scales the longer side to `size` and puts `fill` (a grey level or a colour) on both sides of the shorter.
    `antialias`: False is the plain two-by-two bilinear filter of tf.image.resize.
    `rounding`, of 'center': 'exact' scales the middle square, wherever it begins; the others scale the whole image, the longer side
    rounded down, and then cut at a whole pixel: 'floor' rounds it down (transformers), 'nearest' to the nearest, halves to the even one
    (torchvision and open_clip). With these, `shorter` is what the shorter side is scaled to before the cut, where that is more than `size`
    (timm's crop_pct); they raise BadExample for images so long that the scaled one is larger than `decode` would accept.
    """
    _scaling.check(size, method, antialias)
    rgb = _scaling.color(fill)
    if crop not in _CROPS:
        raise RecipeError(f'crop: {crop!r} is none of {", ".join(_CROPS)}')
    if rounding not in _ROUNDINGS or rounding != 'exact' and crop != 'center':
        raise RecipeError(f"rounding: one of {', '.join(_ROUNDINGS)}, and only 'exact' unless crop='center'; found {rounding!r}, {crop!r}")

    if not isinstance(shorter, int) or shorter and (rounding == 'exact' or shorter < size):
        raise RecipeError(f"shorter: a number of pixels, no less than size, and only with rounding='floor' or 'nearest'; found {shorter!r}")

    def op(example: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        image_HWC = example[key]
        height, width = image_HWC.shape[:2]
        box, scaled = (0, 0, width, height), (size, size)
        if crop == 'center' and rounding == 'exact':
            side = min(height, width)
            left, top = (width - side) / 2, (height - side) / 2
            box = (left, top, left + side, top + side)
        elif crop == 'center':
            scaled = tuple(int((shorter or size) * side / min(height, width)) for side in (height, width))
            if scaled[0] * scaled[1] > MAX_PIXELS:
                raise BadExample(f'image of {width} x {height} pixels is too long for rounding={rounding!r}')
        elif crop == 'pad':
            scaled = tuple(max(1, round(side * size / max(height, width))) for side in (height, width))
        small_HWC = _scaling.scale(image_HWC, box, *scaled, method, antialias)
        return {**example, key: _fitted(small_HWC, size, rgb, rounding)}
    return op


def _fitted(image_HWC: np.ndarray, size: int, rgb: tuple[int, int, int], rounding: str) -> np.ndarray:
    """The middle of an image that is longer than `size`; a shorter one with `rgb` around it."""
    height, width = image_HWC.shape[:2]
    if height == width == size:
        return image_HWC
    if height >= size and width >= size:
        left, top = (int(round(rest / 2)) if rounding == 'nearest' else rest // 2 for rest in (width - size, height - size))
        return _scaling.cut(image_HWC, (left, top, left + size, top + size))
    canvas_HWC = np.full((size, size, 3), rgb, np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    canvas_HWC[top:top + height, left:left + width] = image_HWC
    return canvas_HWC
