"""Pages about data in the report's style: grids of examples, and histograms of what a data set is made of."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from bigvlm.figures import jpeg
from bigvlm.report.style import CSS
from bigvlm.report.svg import data_uri, number

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 420, 190, 10, 24, 22
_BINS = 40
_NAMES = 20  # bars of a table of names
_CSS = '''
.example { padding: 16px; border-top: 1px solid var(--faint); } .example:first-child { border-top: 0; }
.example header { display: flex; flex-wrap: wrap; gap: 2px 18px; font-size: 13.5px; color: var(--soft); margin-bottom: 10px; }
.example header b { color: var(--ink); font-weight: 600; }
.sides { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 2fr); gap: 24px; } .sides.one { grid-template-columns: 1fr; }
.sides h3 { margin: 0 0 8px; } .pictures { display: flex; flex-wrap: wrap; gap: 10px; margin-bottom: 8px; }
.pictures figure { margin: 0; } .pictures img { display: block; border-radius: 6px; max-width: 128px; }
.pictures figcaption { color: var(--soft); font-size: 12px; max-width: 128px; margin-top: 4px; line-height: 1.3; }
.lines { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 2px 14px; font-size: 13.5px; margin: 0; }
.lines dt { color: var(--soft); } .lines dd { margin: 0; overflow-wrap: anywhere; }
svg .column { fill: var(--accent); } .names td:nth-child(2) { width: 55%; } .names td { text-align: left; white-space: normal; }
.names td:last-child { text-align: right; white-space: nowrap; }
.names i { display: block; height: 9px; border-radius: 3px; background: var(--accent); }
@media (max-width: 640px) { .sides { grid-template-columns: 1fr; } }
'''


@dataclasses.dataclass(frozen=True)
class Side:
    """An example before or after something: pictures (label, uint8 [H, W, 3]) and lines (label, text)."""
    title: str
    pictures: Sequence[tuple[str, np.ndarray]]
    lines: Sequence[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Example:
    """`facts`: (label, text) of its heading; `error`: why there is nothing to show."""
    facts: Sequence[tuple[str, str]]
    sides: Sequence[Side] = ()
    error: str = ''


def page(title: str, about: Sequence[tuple[str, str]], sections: Sequence[str]) -> str:
    """A whole HTML page that needs no other file. `about`: (label, text) under its heading."""
    facts = ''.join(f'<span>{escape(key)} <b>{escape(value)}</b></span>' for key, value in about)
    return (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)} · bigvlm</title>'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{CSS}{_CSS}</style></head><body><main>'
            f'<header><div class="title"><h1>{escape(title)}</h1></div><div class="facts">{facts}</div></header>'
            f'{"".join(sections)}</main></body></html>\n')


def examples(title: str, shown: Sequence[Example]) -> str:
    return f'<h2>{escape(title)}</h2><div class="card">{"".join(map(_example, shown))}</div>'


def _example(example: Example) -> str:
    facts = ''.join(f'<span>{escape(key)} <b>{escape(value)}</b></span>' for key, value in example.facts)
    error = f'<p class="bad">{escape(example.error)}</p>' if example.error else ''
    one = ' one' if len(example.sides) == 1 else ''
    return (f'<section class="example"><header>{facts}</header>{error}<div class="sides{one}">{"".join(map(_side, example.sides))}</div>'
            '</section>')


def _side(side: Side) -> str:
    pictures = ''.join(f'<figure><img alt="{escape(label)}" src="{data_uri(jpeg(image))}"><figcaption>{escape(label)} '
                       f'{image.shape[1]}×{image.shape[0]}</figcaption></figure>' for label, image in side.pictures)
    lines = ''.join(f'<dt>{escape(label)}</dt><dd>{escape(text)}</dd>' for label, text in side.lines)
    return (f'<div><h3>{escape(side.title)}</h3><div class="pictures">{pictures}</div>'
            f'<dl class="lines">{lines}</dl></div>')


def charts(title: str, cards: Sequence[str]) -> str:
    return f'<h2>{escape(title)}</h2><div class="charts">{"".join(cards)}</div>' if cards else ''


def histogram(title: str, values: np.ndarray, log: bool = False) -> str:
    """A card with the distribution of numbers, its median and range; the axis ends where 99.9 % of them lie. `log`: of positive ones."""
    values = np.asarray(values, float)
    if values.min() == values.max():
        return f'<figure class="card chart">{_caption(title, f"always {number(float(values[0]))}")}</figure>'
    low, high = float(values.min()), float(np.quantile(values, .999))
    edges = _edges(low, max(high, low + 1e-9), log, bool(np.all(values == np.round(values))))
    counts, _ = np.histogram(np.minimum(values, edges[-1]), edges)
    columns, width = [], (_WIDTH - 2 * _LEFT) / len(counts)
    for place, count in enumerate(counts.tolist()):
        height = count / counts.max() * (_HEIGHT - _TOP - _BOTTOM)
        said = f'{number(float(edges[place]))} to {number(float(edges[place + 1]))}: {count:,}'
        columns.append(f'<rect class="column" x="{_LEFT + place * width:.1f}" y="{_HEIGHT - _BOTTOM - height:.1f}" '
                       f'width="{max(1., width - 1):.1f}" height="{height:.1f}"><title>{escape(said)}</title></rect>')
    for place in np.linspace(0, len(edges) - 1, 5).round().astype(int).tolist():
        anchor = 'start' if not place else 'end' if place == len(edges) - 1 else 'middle'
        columns.append(f'<text x="{_LEFT + place * width:.1f}" y="{_HEIGHT - 6}" text-anchor="{anchor}">'
                       f'{number(float(edges[place]))}</text>')
    told = f'median {number(float(np.median(values)))}, {number(low)} to {number(float(values.max()))}'
    return (f'<figure class="card chart">{_caption(title, told)}<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
            f'aria-label="{escape(title)}: {escape(told)}">{"".join(columns)}</svg></figure>')


def _caption(title: str, told: str) -> str:
    return f'<figcaption><span>{escape(title)}</span><b>{escape(told)}</b></figcaption>'


def _edges(low: float, high: float, log: bool, whole: bool) -> np.ndarray:
    if whole and high - low < _BINS:
        return np.arange(math.floor(low), math.floor(high) + 2, dtype=float)
    if log and low > 0:
        return np.geomspace(low, high, _BINS + 1)
    return np.linspace(low, high, _BINS + 1)


def names(title: str, counts: Mapping[str, int], of: int = 0) -> str:
    """A card with a bar for each name, the most frequent first, and its share of `of`, or of all."""
    total = of or sum(counts.values())
    ranked = sorted(counts.items(), key=lambda pair: -pair[1])
    rows = ''.join(f'<tr><td>{escape(str(name))}</td><td><i style="width:{100 * count / ranked[0][1]:.1f}%"></i></td>'
                   f'<td>{count:,} ({count / total:.1%})</td></tr>' for name, count in ranked[:_NAMES])
    more = f'<p class="soft">and {len(ranked) - _NAMES:,} more</p>' if len(ranked) > _NAMES else ''
    return (f'<figure class="card chart">{_caption(title, f"{len(ranked):,}")}<table class="names">{rows}</table>{more}</figure>')


def listed(title: str, items: Mapping[str, Sequence[str]], most: int = 200) -> str:
    """Reasons that fold open to what they concern."""
    cards = []
    for reason, found in sorted(items.items(), key=lambda pair: -len(pair[1])):
        lines = ''.join(f'<li><code>{escape(item)}</code></li>' for item in found[:most])
        more = f'<li>and {len(found) - most:,} more</li>' if len(found) > most else ''
        cards.append(f'<details><summary>{escape(reason)} <span class="count">{len(found):,}</span></summary>'
                     f'<ul>{lines}{more}</ul></details>')
    return f'<h2>{escape(title)}</h2><div class="card">{"".join(cards)}</div>' if cards else ''
