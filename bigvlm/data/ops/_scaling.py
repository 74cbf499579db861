"""What resize and random_resized_crop share: antialiased scaling of a region by Pillow."""
import numpy as np
from PIL import Image

from bigvlm.core.parts import RecipeError

FILTERS = {'bicubic': Image.Resampling.BICUBIC, 'bilinear': Image.Resampling.BILINEAR}


def scale(image_HWC: np.ndarray, box: tuple[float, float, float, float], height: int, width: int,
          method: str) -> np.ndarray:
    """The region `box` = (left, top, right, bottom) of uint8 [H, W, 3] as uint8 [height, width, 3]."""
    if box == (0, 0, width, height) == (0, 0, image_HWC.shape[1], image_HWC.shape[0]):
        return image_HWC
    return np.asarray(Image.fromarray(image_HWC).resize((width, height), FILTERS[method], box=box))


def check(size: int, method: str) -> None:
    """Raises RecipeError for an impossible size or method."""
    if not isinstance(size, int) or size < 1:
        raise RecipeError(f'size: a number of pixels, found {size!r}')
    if method not in FILTERS:
        raise RecipeError(f'method: {method!r} is none of {", ".join(FILTERS)}')
