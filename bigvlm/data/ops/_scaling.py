"""What the ops that scale images share: a region of an image, scaled. H, W pixels."""
import functools
import importlib.util
import numbers
from collections.abc import Sequence

import numpy as np
from PIL import Image

from bigvlm.core.parts import RecipeError

FILTERS = {'bicubic': Image.Resampling.BICUBIC, 'bilinear': Image.Resampling.BILINEAR}


def scale(image_HWC: np.ndarray, box: tuple[float, float, float, float], height: int, width: int, method: str,
          antialias: bool = True) -> np.ndarray:
    """The region `box` = (left, top, right, bottom) of uint8 [H, W, 3] as uint8 [height, width, 3].

    Antialiased (Pillow), the filter widens as the image shrinks: every pixel of the region counts, and at a region's edge
    its neighbours outside do; `cut` the region out before if they should not. Otherwise (OpenCV) each result is made of the
    two by two pixels around its centre, as tf.image.resize does, and the region is rounded to whole pixels.
    """
    full = (0, 0, image_HWC.shape[1], image_HWC.shape[0])
    if tuple(box) == full == (0, 0, width, height):
        return image_HWC
    if antialias:
        return np.asarray(Image.fromarray(image_HWC).resize((width, height), FILTERS[method], box=tuple(box)))
    region_HWC = cut(image_HWC, tuple(int(side) for side in box))
    cv2 = _opencv()
    return cv2.resize(region_HWC, (width, height), interpolation=cv2.INTER_LINEAR)


@functools.cache
def _opencv():
    """OpenCV, imported when first needed: it is large, and only antialias=False uses it."""
    import cv2
    cv2.setNumThreads(1)  # the stream's threads keep the cores busy already
    return cv2


def cut(image_HWC: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    """The region (left, top, right, bottom), in whole pixels, as a view."""
    left, top, right, bottom = box
    return image_HWC[top:bottom, left:right]


def check(size: int, method: str, antialias: bool = True) -> None:
    """Raises RecipeError for an impossible size or method."""
    if not isinstance(size, int) or size < 1:
        raise RecipeError(f'size: a number of pixels, found {size!r}')
    if method not in FILTERS:
        raise RecipeError(f'method: {method!r} is none of {", ".join(FILTERS)}')
    if not antialias and method != 'bilinear':
        raise RecipeError(f"antialias: only method='bilinear' can do without, found method={method!r}")
    if not antialias and importlib.util.find_spec('cv2') is None:
        raise RecipeError('antialias: False needs OpenCV (pip install opencv-python-headless); True does not')


def color(fill: int | Sequence[int]) -> tuple[int, int, int]:
    """A grey level or a colour as (red, green, blue); RecipeError if it is neither."""
    rgb = (fill,) * 3 if isinstance(fill, numbers.Integral) else tuple(fill)
    if len(rgb) != 3 or not all(isinstance(level, numbers.Integral) and 0 <= level <= 255 for level in rgb):
        raise RecipeError(f'fill: a grey level or (red, green, blue), each 0 to 255, found {fill!r}')
    return rgb
