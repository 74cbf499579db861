"""Draws a scene with Pillow: supersampled colours, and a mask that says which object each pixel belongs to."""
import io
import math

import numpy as np
from PIL import Image, ImageDraw

from bigvlm.data.scenes.layout import Object, Scene

_SUPERSAMPLING = 4
_RGB = {'red': (215, 32, 38), 'orange': (250, 135, 10), 'yellow': (248, 216, 24), 'green': (36, 150, 60),
        'cyan': (30, 200, 214), 'blue': (38, 74, 214), 'purple': (130, 46, 166), 'pink': (248, 130, 190),
        'black': (24, 24, 26), 'white': (246, 246, 246), 'gray': (196, 198, 202), 'beige': (232, 216, 186)}
_PAPER = (255, 252, 244)  # the second colour of every texture

Contour = list[tuple[float, float]]


def draw(scene: Scene, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`(image uint8 [size, size, 3], mask uint8 [size, size])`; in the mask 0 is ground, k the k-th object, from 1."""
    wide = size * _SUPERSAMPLING
    picture = Image.new('RGB', (wide, wide), _shade(rng, scene.background, 3))
    numbers = Image.new('L', (wide, wide), 0)
    for number, thing in enumerate(scene.objects, start=1):
        patch, inside = _patch(thing, wide, rng)
        corner = (round(thing.x * wide - patch.width / 2), round(thing.y * wide - patch.height / 2))
        picture.paste(patch, corner, inside)
        numbers.paste(number, corner, inside)
    # A pixel belongs to what covers its middle; nearest-neighbour sampling reads just that.
    return (np.asarray(picture.resize((size, size), Image.Resampling.BOX)),
            np.asarray(numbers.resize((size, size), Image.Resampling.NEAREST)))


def boxes(mask: np.ndarray, count: int) -> np.ndarray:
    """float32 [count, 4]: (ymin, xmin, ymax, xmax) of the objects 1..count of `mask`, as fractions of the image."""
    found = []
    for number in range(1, count + 1):
        ys, xs = np.nonzero(mask == number)
        found.append((ys.min(), xs.min(), ys.max() + 1, xs.max() + 1))
    return np.array(found, np.float32) / np.float32([*mask.shape, *mask.shape])


def png(pixels: np.ndarray) -> bytes:
    """Pixels, uint8 [H, W] or [H, W, 3], as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'PNG', compress_level=6)
    return file.getvalue()


def _shade(rng, color: str, spread: int) -> tuple[int, int, int]:
    return tuple(int(v) for v in np.clip(np.array(_RGB[color]) + rng.integers(-spread, spread + 1, 3), 0, 255))


def _patch(thing: Object, wide: int, rng) -> tuple[Image.Image, Image.Image]:
    """The object in colour and where it is, both a little larger than its diameter."""
    radius = thing.diameter * wide / 2
    side = 2 * math.ceil(radius * 1.15)
    cos, sin = math.cos(thing.angle) * radius, math.sin(thing.angle) * radius
    contours = [[(side / 2 + x * cos - y * sin, side / 2 + x * sin + y * cos) for x, y in contour]
                for contour in _CONTOURS[thing.kind.shape]]
    fill, edge = Image.new('1', (side, side)), Image.new('1', (side, side))
    for contour, inside in zip(contours, (1, 0)):  # a second contour is a hole
        ImageDraw.Draw(fill).polygon(contour, fill=inside)
    for contour in contours:
        ImageDraw.Draw(edge).line([*contour, *contour[:2]], fill=1, width=max(1, wide // 80), joint='curve')
    ink = _shade(rng, thing.kind.color, 10)
    patch = Image.new('RGB', (side, side), ink)
    if thing.kind.texture != 'solid':
        patch.paste(_PAPER, (0, 0), Image.fromarray(_gaps(thing, side, wide, rng)))
    patch.paste(tuple(int(.55 * v) for v in ink), (0, 0), edge)
    whole = Image.fromarray(np.asarray(fill) | np.asarray(edge))
    return patch, whole


def _gaps(thing: Object, side: int, wide: int, rng) -> np.ndarray:
    """Where a texture leaves the paper uncoloured: bool [side, side]. Periods stay above two pixels of the image."""
    unit = max(.085 * wide, .2 * thing.diameter * wide)
    turn = thing.angle + (rng.integers(4) * math.pi / 4 if thing.kind.texture == 'striped' else 0)
    u = np.arange(side, dtype=np.float32) - np.float32(side / 2)
    v = u[:, None]
    u, v = (u * math.cos(turn) + v * math.sin(turn)) / unit, (v * math.cos(turn) - u * math.sin(turn)) / unit
    if thing.kind.texture == 'striped':
        return (u + rng.random()) % 1 < .45
    if thing.kind.texture == 'checkered':
        return (np.floor(u / .8) + np.floor(v / .8)) % 2 == 0
    rows = np.floor(v)
    return ((u + rows / 2) % 1 - .5) ** 2 + (v - rows - .5) ** 2 < .31 ** 2  # dots, every second row shifted


def _arc(radius: float, start: float, stop: float, x: float = 0., y: float = 0., steps: int = 40) -> Contour:
    return [(x + radius * math.cos(a), y + radius * math.sin(a)) for a in np.linspace(start, stop, steps)]


def _corners(*points: float) -> Contour:
    return list(zip(points[::2], points[1::2]))


def _star() -> Contour:
    angles = [-math.pi / 2 + k * math.pi / 5 for k in range(10)]
    return [(r * math.cos(a), r * math.sin(a) + .05) for a, r in zip(angles, 5 * (1.05, .45))]


def _heart() -> Contour:
    # The well-known parametric heart, scaled into the unit circle.
    def height(a):
        return (13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 16
    return [(math.sin(a) ** 3, -height(a) - .08) for a in np.linspace(0, 2 * math.pi, 48, endpoint=False)]


def _moon() -> Contour:
    # Two circles through the same horns: the outer from horn to horn round the left, the inner back.
    outer = _arc(.95, .9, 2 * math.pi - .9, x=.1)
    horn_x, horn_y = outer[0]
    centre = .62
    angle = math.atan2(horn_y, horn_x - centre)
    inner = _arc(math.hypot(horn_x - centre, horn_y), -angle, angle - 2 * math.pi, x=centre)
    return outer + inner


# Contours in units of the radius, x to the right and y down; a second contour is a hole.
_CONTOURS: dict[str, list[Contour]] = {
    'circle': [_arc(.9, 0, 2 * math.pi)],
    'square': [_corners(-.8, -.8, .8, -.8, .8, .8, -.8, .8)],
    'triangle': [_corners(0, -.9, .98, .8, -.98, .8)],
    'star': [_star()],
    'heart': [_heart()],
    'cross': [_corners(-.33, -.95, .33, -.95, .33, -.33, .95, -.33, .95, .33, .33, .33,
                       .33, .95, -.33, .95, -.33, .33, -.95, .33, -.95, -.33, -.33, -.33)],
    'ring': [_arc(.95, 0, 2 * math.pi), _arc(.4, 0, 2 * math.pi)],
    'moon': [_moon()],
    'arrow': [_corners(0, -1., .9, -.05, .36, -.05, .36, .95, -.36, .95, -.36, -.05, -.9, -.05)],
}
