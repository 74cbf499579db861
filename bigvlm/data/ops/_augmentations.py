"""The image operations that AutoAugment and RandAugment choose from, each with one strength; H, W pixels.

A strength is a number from -1 to 1: the sign matters to SIGNED operations only, 1 is the strongest that the policies know.
What it stands for is AutoAugment's table of magnitudes (arXiv 1805.09501; RandAugment, arXiv 1909.13719, uses it too) in
torchvision's reading: translations are a share of the image (150 of 331 pixels), enhancements are by 1 +- .9.
"""
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from bigvlm.core.parts import RecipeError
from bigvlm.data.ops import _scaling

_FILTERS = {'nearest': Image.Resampling.NEAREST, 'bilinear': Image.Resampling.BILINEAR, 'bicubic': Image.Resampling.BICUBIC}
_SHEAR, _SHIFT, _DEGREES, _ENHANCE, _BITS = .3, 150 / 331, 30., .9, 4


@dataclasses.dataclass(frozen=True)
class Canvas:
    """How moved images are sampled and what colour (red, green, blue) appears behind them."""
    filter: Image.Resampling
    fill: tuple[int, int, int]


def canvas(method: str, fill: int | Sequence[int]) -> Canvas:
    """A Canvas from recipe fields; RecipeError for impossible ones."""
    if method not in _FILTERS:
        raise RecipeError(f'method: {method!r} is none of {", ".join(_FILTERS)}')
    return Canvas(_FILTERS[method], _scaling.color(fill))


Operation = Callable[[Image.Image, float, Canvas], Image.Image]


def apply(image_HWC: np.ndarray, steps: Sequence[tuple[Operation, float]], on: Canvas) -> np.ndarray:
    """uint8 [H, W, 3] through operations with their strengths, in order."""
    image = Image.fromarray(image_HWC)
    for operation, strength in steps:
        image = operation(image, strength, on)
    return np.asarray(image)


def identity(image: Image.Image, strength: float, on: Canvas) -> Image.Image:
    return image


def shear_x(image: Image.Image, strength: float, on: Canvas) -> Image.Image:
    """Rows move left in proportion to their distance from the top."""
    return _affine(image, (1, _SHEAR * strength, 0, 0, 1, 0), on)


def shear_y(image: Image.Image, strength: float, on: Canvas) -> Image.Image:
    """Columns move up in proportion to their distance from the left."""
    return _affine(image, (1, 0, 0, _SHEAR * strength, 1, 0), on)


def translate_x(image: Image.Image, strength: float, on: Canvas) -> Image.Image:
    """To the right, by whole pixels."""
    return _affine(image, (1, 0, -int(_SHIFT * strength * image.width), 0, 1, 0), on)


def translate_y(image: Image.Image, strength: float, on: Canvas) -> Image.Image:
    """Down, by whole pixels."""
    return _affine(image, (1, 0, 0, 0, 1, -int(_SHIFT * strength * image.height)), on)


def rotate(image: Image.Image, strength: float, on: Canvas) -> Image.Image:
    """Anticlockwise around the centre."""
    return image.rotate(_DEGREES * strength, on.filter, fillcolor=on.fill)


def brightness(image: Image.Image, strength: float, on: Canvas) -> Image.Image:
    """Away from black."""
    return ImageEnhance.Brightness(image).enhance(1 + _ENHANCE * strength)


def color(image: Image.Image, strength: float, on: Canvas) -> Image.Image:
    """Away from the grey image."""
    return ImageEnhance.Color(image).enhance(1 + _ENHANCE * strength)


def contrast(image: Image.Image, strength: float, on: Canvas) -> Image.Image:
    """Away from the mean grey."""
    return ImageEnhance.Contrast(image).enhance(1 + _ENHANCE * strength)


def sharpness(image: Image.Image, strength: float, on: Canvas) -> Image.Image:
    """Away from the smoothed image."""
    return ImageEnhance.Sharpness(image).enhance(1 + _ENHANCE * strength)


def posterize(image: Image.Image, strength: float, on: Canvas) -> Image.Image:
    """Fewer bits a channel: from 8 to 4."""
    return ImageOps.posterize(image, 8 - round(_BITS * strength))


def solarize(image: Image.Image, strength: float, on: Canvas) -> Image.Image:
    """Inverts what is not darker than a threshold, from 255 down to 0."""
    return ImageOps.solarize(image, 255 * (1 - strength))


def auto_contrast(image: Image.Image, strength: float, on: Canvas) -> Image.Image:
    """Each channel's range to 0 to 255."""
    return ImageOps.autocontrast(image)


def equalize(image: Image.Image, strength: float, on: Canvas) -> Image.Image:
    """Each channel's histogram made flat."""
    return ImageOps.equalize(image)


def invert(image: Image.Image, strength: float, on: Canvas) -> Image.Image:
    """The negative."""
    return ImageOps.invert(image)


SIGNED = frozenset({shear_x, shear_y, translate_x, translate_y, rotate, brightness, color, contrast, sharpness})


def _affine(image: Image.Image, inverse: tuple[float, ...], on: Canvas) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, inverse, on.filter, fillcolor=on.fill)
