"""The report's style sheet and its few lines of script; both are written into the page."""

CSS = '''
:root { color-scheme: light dark;
  --ground: #f6f6f4; --card: #ffffff; --ink: #1d1d1f; --soft: #6c6c72; --rule: #e5e4e0; --faint: #efeeeb;
  --accent: #2f5fd0; --band: rgba(47, 95, 208, .16); --right: #1a7f4b; --right-ground: #e5f4eb; --bad: #b3372b;
    --bad-ground: #fbeae7; }
@media (prefers-color-scheme: dark) { :root {
  --ground: #131417; --card: #1c1e22; --ink: #ececee; --soft: #9b9ca4; --rule: #303238; --faint: #26282d;
  --accent: #86a8ff; --band: rgba(134, 168, 255, .2); --right: #62cf94; --right-ground: #17352a; --bad: #ff9184;
    --bad-ground: #402220; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", "Noto Sans", "DejaVu Sans", sans-serif; font-variant-numeric: tabular-nums; }
main { max-width: 1180px; margin: 0 auto; padding: 36px 24px 72px; }
h1 { font-size: 28px; line-height: 1.2; letter-spacing: -.02em; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 19px; letter-spacing: -.01em; margin: 48px 0 14px; }
h3 { font-size: 14px; font-weight: 600; color: var(--soft); margin: 24px 0 10px; }
h2::first-letter, .tile span::first-letter, tr.group b::first-letter { text-transform: uppercase; }
p { margin: 6px 0; } .soft { color: var(--soft); } .bad { color: var(--bad); }
code, pre { font: 12.5px/1.55 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; margin: 0; }
.title { display: flex; flex-wrap: wrap; gap: 6px 14px; align-items: center; }
.status { font-size: 13px; font-weight: 600; padding: 2px 11px; border-radius: 99px; background: var(--faint);
  color: var(--soft); }
.status.running { background: var(--band); color: var(--accent); }
.status.finished { background: var(--right-ground); color: var(--right); }
.status.failed { background: var(--bad-ground); color: var(--bad); }
.error { background: var(--bad-ground); color: var(--bad); border-radius: 10px; padding: 10px 14px; margin: 14px 0;
  overflow-wrap: anywhere; }
.command { display: block; margin: 14px 0; padding: 10px 14px; overflow-x: auto; white-space: pre; }
.bar { height: 6px; border-radius: 3px; background: var(--rule); overflow: hidden; margin: 16px 0 6px; }
.bar i { display: block; height: 100%; background: var(--accent); border-radius: 3px; }
.facts { display: flex; flex-wrap: wrap; gap: 2px 22px; color: var(--soft); font-size: 13.5px; }
.facts b { color: var(--ink); font-weight: 500; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 12px; margin-top: 22px; }
.tile { padding: 12px 16px; } .tile span { display: block; color: var(--soft); font-size: 13px; }
.tile b { font-size: 23px; line-height: 1.35; font-weight: 600; letter-spacing: -.02em; }
.tile small { display: block; color: var(--soft); font-size: 12px; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(330px, 100%), 1fr)); gap: 14px; }
.chart { padding: 12px 12px 8px; min-width: 0; }
.chart figcaption { display: flex; justify-content: space-between; gap: 12px; padding: 0 4px 6px; font-size: 13.5px;
  color: var(--soft); }
.chart figcaption span { overflow-wrap: anywhere; }
.chart figcaption b { color: var(--ink); font-weight: 600; white-space: nowrap; }
.chart .bad { margin: 4px; font-size: 12.5px; }
svg { display: block; width: 100%; height: auto; overflow: visible; touch-action: pan-y; }
svg text { font-size: 11px; fill: var(--soft); } svg .grid { stroke: var(--faint); }
svg .line { fill: none; stroke: var(--accent); stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
svg .raw { fill: none; stroke: var(--band); stroke-width: 1.2; } svg .band { fill: var(--band); stroke: none; }
svg .dot { fill: var(--accent); } svg .ref { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 3 4; }
svg .reflabel { font-size: 10.5px; }
svg .cursor { fill: var(--card); stroke: var(--accent); stroke-width: 2; }
svg .rail { stroke: var(--soft); stroke-width: .7; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: right; padding: 7px 14px; white-space: nowrap; border-top: 1px solid var(--faint);
  font-weight: 400; }
thead th { color: var(--soft); font-size: 12.5px; border-top: 0; vertical-align: bottom; line-height: 1.3;
  padding-top: 12px; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--card); }
tr.group th { color: var(--soft); font-size: 13px; padding-top: 16px; border-top: 1px solid var(--rule); }
tr.group:first-child th { border-top: 0; }
tr.group b { display: inline-block; color: var(--ink); font-weight: 600; margin-right: 8px; }
td:last-child, th:last-child { padding-right: 20px; }
td.best { font-weight: 650; color: var(--right); }
td.best::after { content: "●"; font-size: 7px; vertical-align: middle; margin: 0 -10px 0 4px; }
td.aside, th.aside { color: var(--soft); } td.edge, th.edge { border-right: 1px solid var(--rule); }
.row { display: grid; grid-template-columns: 148px 1fr; gap: 16px; padding: 16px;
  border-top: 1px solid var(--faint); } .row:first-child { border-top: 0; }
.query { min-width: 0; } .query img { width: 112px; border-radius: 6px; display: block; }
.query p { font-weight: 500; line-height: 1.35; overflow-wrap: anywhere; }
.query small { display: block; color: var(--soft); font-size: 12px; margin-top: 6px; line-height: 1.35;
  text-wrap: balance; }
.answers { display: flex; flex-wrap: wrap; gap: 10px; align-items: flex-start; min-width: 0; margin: 0; padding: 0;
  list-style: none; }
.answers.texts { display: block; }
.answers.texts li { display: flex; gap: 10px; padding: 3px 8px; border-radius: 6px; line-height: 1.4;
  margin-bottom: 2px; }
.answers.texts li::before { content: "·"; width: 12px; flex: none; text-align: center; color: var(--soft); }
.answers.texts li.right::before { content: "✓"; color: var(--right); font-weight: 700; }
.answers.texts li.right { background: var(--right-ground); color: var(--right); }
.answers.texts span { flex: 1; min-width: 0; overflow-wrap: anywhere; }
.answers small { color: var(--soft); font-size: 12px; } .answers.texts small { flex: none; }
.answers.images small { display: block; margin-top: 5px; } .answers.images li.captioned small:empty { display: none; }
.answers.images li { width: 100px; font-size: 12.5px; line-height: 1.3; }
.answers.images img { width: 100%; display: block; border-radius: 6px; }
.answers.images li.captioned { width: auto; display: flex; gap: 14px; align-items: center; font-size: 14px; }
.answers.images li.captioned img { width: 112px; }
.answers.images li.right img { outline: 3px solid var(--right); outline-offset: 1px; }
.answers.images li.right small { color: var(--right); font-weight: 600; }
.confusion { display: grid; grid-template-columns: minmax(0, 420px) minmax(0, 1fr); gap: 28px; padding: 20px; }
.heat { display: grid; grid-template-columns: 18px 1fr; gap: 6px; font-size: 12px; color: var(--soft); }
.heat .rows { writing-mode: vertical-rl; transform: rotate(180deg); text-align: center; }
.heat .columns, .heat output { grid-column: 2; text-align: center; }
.heat output { min-height: 3em; color: var(--ink); }
.map { align-self: start; border: 1px solid var(--rule); cursor: crosshair; }
.map img { display: block; width: 100%; image-rendering: pixelated; }
.confusion h3 { margin-top: 0; }
.confusion td, .confusion th { white-space: normal; padding: 6px 10px 6px 0; text-align: left; }
.confusion th { position: static; }
.confusion td:last-child, .confusion th:last-child { text-align: right; white-space: nowrap; padding-right: 0; }
details { padding: 10px 16px; } summary { cursor: pointer; } details pre { overflow-x: auto; margin: 10px 0 4px; }
details + details { border-top: 1px solid var(--faint); }
details ul { margin: 8px 0; padding-left: 20px; color: var(--soft); } details li { overflow-wrap: anywhere; }
.count { float: right; font-weight: 600; } .key { color: var(--soft); }
footer { margin-top: 48px; color: var(--soft); font-size: 13px; }
@media (max-width: 640px) { main { padding: 22px 14px 48px; } h1 { font-size: 23px; } h2 { margin-top: 38px; }
  .tiles { grid-template-columns: repeat(2, 1fr); gap: 10px; }
  th, td { padding: 7px 9px; } .row { grid-template-columns: 1fr; gap: 10px; padding: 14px; }
  .confusion { grid-template-columns: 1fr; padding: 14px; }
  .answers.images li { width: calc(33.3% - 7px); } .answers.images li.captioned { width: auto; }
  th:first-child { min-width: 124px; white-space: normal; line-height: 1.3; } }
@media print { main { max-width: none; } .card { break-inside: avoid; } }
'''

SCRIPT = '''
const make = (svg, tag, attributes) => { const e = document.createElementNS(svg.namespaceURI, tag);
  for (const k in attributes) e.setAttribute(k, attributes[k]); svg.append(e); return e; };
for (const svg of document.querySelectorAll('svg[data-points]')) {
  const points = JSON.parse(svg.dataset.points), value = svg.parentNode.querySelector('figcaption b'),
    last = value.textContent;
  let rail, dot;
  svg.onpointermove = event => {
    const box = svg.getBoundingClientRect(), x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    const p = points.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a);
    rail = rail || make(svg, 'line', {class: 'rail', y1: 10, y2: 166});
      dot = dot || make(svg, 'circle', {class: 'cursor', r: 4});
    rail.setAttribute('x1', p[0]); rail.setAttribute('x2', p[0]); dot.setAttribute('cx', p[0]);
      dot.setAttribute('cy', p[1]);
    value.textContent = p[3] + ' at step ' + p[2]; };
  svg.onpointerleave = () => { if (rail) { rail.remove(); dot.remove(); rail = dot = null; }
    value.textContent = last; };
}
for (const map of document.querySelectorAll('.map')) {
  const [names, counts] = JSON.parse(map.dataset.cells), out = map.parentNode.querySelector('output'),
    n = names.length;
  map.onpointermove = event => { const box = map.getBoundingClientRect();
    const at = (v, size) => Math.min(n - 1, Math.max(0, Math.floor(v / size * n)));
    const i = at(event.clientY - box.top, box.height), j = at(event.clientX - box.left, box.width);
    const all = counts[i].reduce((a, b) => a + b, 0);
    out.textContent = names[i] + (i == j ? ' recognised: ' : ' taken for ' + names[j] + ': ') + counts[i][j]
      + ' of ' + all; };
  map.onpointerleave = () => { out.textContent = ''; };
}
for (const e of document.querySelectorAll('[data-written]')) {
  const minutes = Math.round((Date.now() / 1000 - e.dataset.written) / 60);
  if (minutes >= 1) e.textContent += ', ' + (minutes < 120 ? minutes + ' min' : Math.round(minutes / 60) + ' h')
    + ' ago';
}
'''
