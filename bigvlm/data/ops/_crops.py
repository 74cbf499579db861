"""Random regions of an image, scaled to a square and mirrored at times: what the cropping ops share. H, W pixels.

The random crop of Inception (Szegedy et al., "Going deeper with convolutions", 2015) in the form everybody uses since.
"""
import dataclasses
import math

import numpy as np

from bigvlm.core.parts import RecipeError
from bigvlm.data.ops import _scaling

_TRIES = 10


@dataclasses.dataclass(frozen=True)
class Crop:
    """Draws crops of one kind: [size, size, 3] from a region with a share `area` of the image and width / height `ratio`."""
    size: int
    area: tuple[float, float]
    ratio: tuple[float, float]
    method: str
    antialias: bool
    flip: float = 0.

    def __post_init__(self):
        _scaling.check(self.size, self.method, self.antialias)
        if len(self.area) != 2 or not 0 < self.area[0] <= self.area[1] <= 1:
            raise RecipeError(f'area: two shares with 0 < low <= high <= 1, found {self.area}')
        if len(self.ratio) != 2 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise RecipeError(f'ratio: two positive numbers, low first, found {self.ratio}')
        if not 0 <= self.flip <= 1:
            raise RecipeError(f'flip: a probability, found {self.flip}')

    def __call__(self, image_HWC: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One crop of uint8 [H, W, 3]."""
        # Cut out before it is scaled: the filter sees nothing outside, as in torchvision, and small regions cost little.
        region_HWC = _scaling.cut(image_HWC, region(rng, *image_HWC.shape[:2], self.area, self.ratio))
        height, width = region_HWC.shape[:2]
        crop_HWC = _scaling.scale(region_HWC, (0, 0, width, height), self.size, self.size, self.method, self.antialias)
        return crop_HWC[:, ::-1] if self.flip and rng.random() < self.flip else crop_HWC


def region(rng: np.random.Generator, height: int, width: int, area: tuple[float, float],
           ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of a region within the bounds; if ten draws do not fit, the largest central one."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_TRIES):
        of_share, of_aspect, of_left, of_top = rng.random(4).tolist()  # one call: each costs microseconds
        share = height * width * (area[0] + (area[1] - area[0]) * of_share)
        aspect = math.exp(low + (high - low) * of_aspect)
        w, h = round(math.sqrt(share * aspect)), round(math.sqrt(share / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int((width - w + 1) * of_left), int((height - h + 1) * of_top)
            return left, top, left + w, top + h
    w, h = min(width, max(1, round(height * ratio[1]))), min(height, max(1, round(width / ratio[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
