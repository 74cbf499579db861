"""Line charts and heat maps as inline SVG and PNG: readable without script, coloured by the page's style sheet."""

import base64
import dataclasses
import io
import json
import math
from collections.abc import Callable, Sequence
from html import escape

import numpy as np
from PIL import Image

from bigvlm.figures import Confusion

_POINTS = 240  # more could not be told apart on a screen
WIDTH, HEIGHT = 420, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 24


@dataclasses.dataclass(frozen=True)
class Curve:
    """Values over ascending steps, as float arrays of one length."""
    steps: np.ndarray
    values: np.ndarray


def number(value: float) -> str:
    """Four significant digits, written as short as they can be read."""
    if not math.isfinite(value):
        return str(value)
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        digits = max(0, 3 - math.floor(math.log10(abs(value)))) if value else 0
        text = f'{value:,.{digits}f}'
        return text.rstrip('0').rstrip('.') if '.' in text else text
    if 1e5 <= abs(value) < 1e12:
        unit, name = next((u, n) for u, n in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')) if abs(value) >= u)
        return f'{value / unit:.4g}{name}'
    mantissa, exponent = f'{value:.2e}'.split('e')
    return f'{mantissa.rstrip("0").rstrip(".")}e{int(exponent)}'


def percent(value: float) -> str:
    return f'{100 * value:.1f} %' if math.isfinite(value) else str(value)


def chart(title: str, curve: Curve, form: Callable[[float], str] = number, *, smooth: bool = True, dots: bool = False,
          references: Sequence[tuple[str, float]] = ()) -> str:
    """A card: title, last value, curve. Raw values lie faintly behind smoothed ones; references are dashed lines."""
    keep = np.isfinite(curve.values)
    lost = int((~keep).sum())
    steps, values = curve.steps[keep].astype(float), curve.values[keep].astype(float)
    latest = form(float(curve.values[-1])) if len(curve.values) else ''
    head = f'<figcaption><span>{escape(title)}</span><b>{escape(latest)}</b></figcaption>'
    note = f'<p class="bad">{lost} value{"s" * (lost > 1)} NaN or infinite</p>' if lost else ''
    if not len(values):
        return f'<figure class="card chart">{head}{note}</figure>'
    x, mean, low, high = buckets(steps, values)
    line = smoothed(mean) if smooth and len(mean) > 20 else mean
    scale = Scale(steps, *extent(line, low, high, [v for _, v in references]))
    parts = [scale.grid(form)]
    parts += reference_lines(scale, references)
    if smooth and len(mean) > 20:
        band = scale.points(x, high) + ' ' + scale.points(x[::-1], low[::-1])
        parts.append(f'<polygon class="band" points="{band}"/>' if len(steps) > len(x) else
                     f'<polyline class="raw" points="{scale.points(x, mean)}"/>')
    parts.append(f'<polyline class="line" points="{scale.points(x, line)}"/>')
    if dots or len(x) == 1:
        parts += [f'<circle class="dot" r="3" cx="{scale.x(a):.1f}" cy="{scale.y(b):.1f}"/>' for a, b in zip(x, line)]
    hover = json.dumps([[round(scale.x(a), 1), round(scale.y(b), 1), f'{a:,.0f}', form(float(v))]
                        for a, b, v in zip(x, line, line)], ensure_ascii=False)
    return (f'<figure class="card chart">{head}<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-label="{escape(title)}: last {escape(latest)}" data-points="{escape(hover)}">{"".join(parts)}</svg>'
            f'{note}</figure>')


def reference_lines(scale: 'Scale', references: Sequence[tuple[str, float]]) -> list[str]:
    parts, last_y, x, width = [], math.inf, 0., 0.
    for label, value in sorted(references, key=lambda pair: pair[1]):
        y = scale.y(value)
        x = x - width if last_y - y < 13 else WIDTH - _RIGHT - 2  # labels of close lines stand side by side
        parts.append(f'<line class="ref" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                     f'<text class="reflabel" x="{x:.0f}" y="{y - 4:.1f}" text-anchor="end">{escape(label)}</text>')
        last_y, width = y, 6 * len(label) + 10
    return parts


def buckets(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, ...]:
    """At most _POINTS points: step, mean, lowest, highest of each run of neighbours."""
    size = -(-len(steps) // _POINTS)
    starts = np.arange(0, len(steps), size)
    counts = np.diff(np.append(starts, len(steps)))
    mean = np.add.reduceat(values, starts) / counts
    x = steps[starts + counts - 1] if size > 1 else steps
    return x, mean, np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)


def smoothed(values: np.ndarray) -> np.ndarray:
    """Centred moving average, twice, over about 4 % of the points: unlike a running one it does not lag behind."""
    half = max(1, len(values) // 90)
    i = np.arange(len(values))
    reach = np.minimum(half, np.minimum(i, len(values) - 1 - i))
    for _ in range(2):
        total = np.concatenate([[0.], np.cumsum(values)])
        values = (total[i + reach + 1] - total[i - reach]) / (2 * reach + 1)
    return values


def extent(line, low, high, references) -> tuple[float, float]:
    """What the axis shows: all values, unless a few outliers would flatten the rest."""
    bottom, top = float(low.min()), float(high.max())
    inner = np.percentile(np.concatenate([low, high]), [2, 98])
    width = max(inner[1] - inner[0], 1e-12)
    if len(line) > 20:
        bottom, top = max(bottom, inner[0] - width), min(top, inner[1] + width)
    bottom, top = min([bottom, *references]), max([top, *references])
    if top - bottom < 1e-9 * max(abs(top), 1e-30) or top == bottom:
        pad = abs(top) * .1 or 1.
        return bottom - pad, top + pad
    pad = .04 * (top - bottom)
    return bottom - (pad if bottom < 0 or bottom > pad else bottom), top + pad


class Scale:
    """From steps and values to pixels."""

    def __init__(self, steps: np.ndarray, bottom: float, top: float):
        self.left, self.right = float(steps[0]), float(steps[-1])
        if self.left > 0 and self.left < .1 * self.right:
            self.left = 0.
        if self.left == self.right:
            self.left, self.right = self.left - 1, self.right + 1
        self.bottom, self.top = bottom, top

    def x(self, step: float) -> float:
        return _LEFT + (step - self.left) / (self.right - self.left) * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = (min(max(value, self.bottom), self.top) - self.bottom) / (self.top - self.bottom)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)

    def points(self, steps: np.ndarray, values: np.ndarray) -> str:
        return ' '.join(f'{self.x(a):.1f},{self.y(b):.1f}' for a, b in zip(steps, values))

    def grid(self, form: Callable[[float], str]) -> str:
        parts = []
        for value in _ticks(self.bottom, self.top, 4):
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                         f'<text x="{_LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">'
                         f'{escape(_tick(value, form))}</text>')
        for step in _ticks(self.left, self.right, 5):
            if step == int(step):
                anchor = 'end' if self.x(step) > WIDTH - 24 else 'middle'
                parts.append(f'<text x="{self.x(step):.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">'
                             f'{_short(step)}</text>')
        return ''.join(parts)


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers within [low, high]."""
    rough = (high - low) / about
    power = 10. ** math.floor(math.log10(rough))
    size = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
    first, last = math.ceil(low / size - 1e-9), math.floor(high / size + 1e-9)
    return [round(i * size, 12) for i in range(first, last + 1)]


def _tick(value: float, form: Callable[[float], str]) -> str:
    if form is percent:
        return f'{100 * value:.3g} %'
    return _short(value) if abs(value) >= 1e4 else number(value)


def _short(value: float) -> str:
    for unit, name in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
        if abs(value) >= unit:
            return f'{value / unit:.4g}{name}'
    return f'{value:.4g}'


def data_uri(content: bytes, kind: str = 'jpeg') -> str:
    return f'data:image/{kind};base64,{base64.b64encode(content).decode()}'


def heat_map(figure: Confusion, colour: tuple[int, int, int] = (64, 112, 232)) -> str:
    """Rows true, columns predicted, each row's share as the colour's opacity: it reads on light and dark ground."""
    counts = np.asarray(figure.counts_CC, float)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    pixels = np.zeros((*share.shape, 4), np.uint8)
    pixels[..., :3], pixels[..., 3] = colour, np.round(255 * share ** .6)
    buffer = io.BytesIO()
    Image.fromarray(pixels, 'RGBA').save(buffer, 'PNG', optimize=True)
    content = [list(figure.names), figure.counts_CC.astype(int).tolist()]
    cells = json.dumps(content, ensure_ascii=False, separators=(',', ':'))
    return (f'<div class="heat"><span class="rows">true class</span><div class="map" data-cells="{escape(cells)}">'
            f'<img alt="confusion of {len(figure.names)} classes" src="{data_uri(buffer.getvalue(), "png")}"></div>'
            f'<span class="columns">predicted class</span><output></output></div>')
