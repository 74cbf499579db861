"""Curves of several runs in one chart, with the spread of their seeds as a band: inline SVG, as in ``svg``."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from html import escape

import numpy as np

from bigvlm.report import svg
from bigvlm.report.svg import Curve, number

_COLOURS = ('#3f76e0', '#dd8327', '#2d9e63', '#cc4a40', '#8d66d6', '#17a2b0', '#cf5a9b', '#937150', '#9a9a26', '#7c8794')
_DASHES = ('none', '6 3', '2 3')  # once the colours are used up

CSS = ''.join(f'.colour{i} {{ --own: {colour}; }} ' for i, colour in enumerate(_COLOURS)) + ''.join(
    f'.dash{i} {{ stroke-dasharray: {dash}; }} ' for i, dash in enumerate(_DASHES)) + '''
svg .many { fill: none; stroke: var(--own); stroke-width: 1.7; stroke-linejoin: round; stroke-linecap: round; }
svg .around { fill: var(--own); opacity: .15; stroke: none; } svg circle.many { fill: var(--own); stroke: none; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; padding: 10px 16px; font-size: 13.5px; margin-bottom: 14px;
  position: sticky; top: 0; z-index: 2; }
.legend span { cursor: default; overflow-wrap: anywhere; }
.legend svg { display: inline-block; width: 22px; height: 8px; margin-right: 7px; vertical-align: middle; }
.dimmed { opacity: .12; }
'''

SCRIPT = '''
for (const svg of document.querySelectorAll('svg[data-lines]')) {
  const lines = JSON.parse(svg.dataset.lines), out = svg.parentNode.querySelector('figcaption b');
  let dot;
  svg.onpointermove = event => {
    const box = svg.getBoundingClientRect(), k = svg.viewBox.baseVal.width / box.width,
      x = (event.clientX - box.left) * k, y = (event.clientY - box.top) * k, far = p => (p[0] - x) ** 2 + (p[1] - y) ** 2;
    let best;
    for (const [name, points] of lines) for (const p of points) if (!best || far(p) < far(best[1])) best = [name, p];
    if (!best) return;
    if (!dot) { dot = document.createElementNS(svg.namespaceURI, 'circle'); dot.setAttribute('class', 'cursor');
      dot.setAttribute('r', 4); svg.append(dot); }
    dot.setAttribute('cx', best[1][0]); dot.setAttribute('cy', best[1][1]);
    out.textContent = best[0] + ': ' + best[1][3] + ' at ' + best[1][2]; };
  svg.onpointerleave = () => { if (dot) { dot.remove(); dot = null; } out.textContent = ''; };
}
for (const item of document.querySelectorAll('.legend [data-line]')) {
  const others = () => document.querySelectorAll('svg g[data-line]:not([data-line="' + item.dataset.line + '"])');
  item.onpointerenter = () => { for (const e of others()) e.classList.add('dimmed'); };
  item.onpointerleave = () => { for (const e of others()) e.classList.remove('dimmed'); };
}
'''


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve, and half the height of the band around it (its sd) if it is a mean. ``place``: which colour it has."""
    name: str
    curve: Curve
    place: int
    around: np.ndarray | None = None


def mean(name: str, place: int, curves: Sequence[Curve]) -> Line | None:
    """The mean of several seeds where all of them have a value, and their sd; None if there is no such place."""
    curves = [Curve(c.steps[np.isfinite(c.values)], c.values[np.isfinite(c.values)]) for c in curves]
    if not curves or any(not len(c.steps) for c in curves):
        return None
    shared = curves[0].steps
    for curve in curves[1:]:
        shared = np.intersect1d(shared, curve.steps)
    if not len(shared):
        return None
    values_RS = np.stack([c.values[np.isin(c.steps, shared)] for c in curves])  # R: runs, S: steps that all of them have
    around = values_RS.std(axis=0, ddof=1) if len(curves) > 1 else None
    return Line(name, Curve(shared, values_RS.mean(axis=0)), place, around)


def chart(title: str, lines: Sequence[Line], form: Callable[[float], str] = number, *, smooth: bool = False, unit: str = 'step',
          references: Sequence[tuple[str, float]] = ()) -> str:
    """A card: title, the lines and their bands. ``smooth``: moving averages; otherwise each value is a dot on its line."""
    head = f'<figcaption><span>{escape(title)}</span><b></b></figcaption>'
    drawn = [_prepare(line, smooth) for line in lines if len(line.curve.steps)]
    if not drawn:
        return f'<figure class="card chart">{head}</figure>'
    every = [np.concatenate(parts) for parts in zip(*((x, y, low, high) for _, x, y, low, high in drawn))]
    scale = svg.Scale(np.sort(every[0]), *svg.extent(every[1], every[2], every[3], [value for _, value in references]))
    parts, hover = [scale.grid(form), *svg.reference_lines(scale, references)], []
    for line, x, y, low, high in drawn:
        parts.append(f'<g data-line="{escape(line.name)}" class="{_class(line.place)}">{_drawn(scale, line, x, y, low, high, smooth)}</g>')
        hover.append([line.name, [[round(scale.x(a), 1), round(scale.y(b), 1), f'{unit} {a:,.0f}', form(float(b))]
                                  for a, b in zip(x, y)]])
    return (f'<figure class="card chart">{head}<svg viewBox="0 0 {svg.WIDTH} {svg.HEIGHT}" role="img" aria-label="{escape(title)}" '
            f'data-lines="{escape(json.dumps(hover, ensure_ascii=False))}">{"".join(parts)}</svg></figure>')


def legend(names: Sequence[str]) -> str:
    """Which line is whose; pointing at a name leaves only its lines."""
    items = ''.join(f'<span data-line="{escape(name)}"><svg viewBox="0 0 22 8" class="{_class(i)}"><path class="many dash{_dash(i)}" '
                    f'd="M0 4H22"/></svg>{escape(name)}</span>' for i, name in enumerate(names))
    return f'<div class="legend card">{items}</div>'


def _prepare(line: Line, smooth: bool) -> tuple[Line, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(line, x, y, low, high): as many points as can be told apart."""
    around = np.zeros(len(line.curve.values)) if line.around is None else line.around
    x, y, _, _ = svg.buckets(line.curve.steps.astype(float), line.curve.values.astype(float))
    _, half, _, _ = svg.buckets(line.curve.steps.astype(float), around.astype(float))
    if smooth and len(y) > 20:
        y, half = svg.smoothed(y), svg.smoothed(half)
    return line, x, y, y - half, y + half


def _drawn(scale: 'svg.Scale', line: Line, x, y, low, high, smooth: bool) -> str:
    band = ''
    if line.around is not None and len(x) > 1:
        band = f'<polygon class="around" points="{scale.points(x, high)} {scale.points(x[::-1], low[::-1])}"/>'
    dots = '' if smooth and len(x) > 1 else ''.join(
        f'<circle class="many" r="2.6" cx="{scale.x(a):.1f}" cy="{scale.y(b):.1f}"/>' for a, b in zip(x, y))
    return f'{band}<polyline class="many dash{_dash(line.place)}" points="{scale.points(x, y)}"/>{dots}'


def _class(place: int) -> str:
    return f'colour{place % len(_COLOURS)}'


def _dash(place: int) -> int:
    return place // len(_COLOURS) % len(_DASHES)
