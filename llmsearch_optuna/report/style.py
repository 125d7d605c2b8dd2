"""The style sheet and the script of the report page. Both stand alone: no font, image or script from elsewhere."""

CSS = """
:root { color-scheme: light dark;
  --ink: #1d2430; --soft: #5b6575; --paper: #fbfbfa; --card: #ffffff; --line: #e2e5ea; --accent: #2b6cb0;
  --better: #17724d; --worse: #b0402a; --none: #6a5a1e; --ins: #d5f0e0; --del: #fbdfd8; --code: #f2f4f6; }
@media (prefers-color-scheme: dark) { :root {
  --ink: #e4e8ee; --soft: #9aa5b4; --paper: #14171c; --card: #1b2027; --line: #2f3742; --accent: #7db4ec;
  --better: #5fcf9d; --worse: #f0907a; --none: #dcc573; --ins: #1c4a35; --del: #5a2a22; --code: #232a33; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 20px 64px; }
h1 { font-size: 1.65rem; line-height: 1.3; margin: .35em 0 .5em; text-wrap: balance; }
h2 { font-size: 1.15rem; margin: 2.4em 0 .3em; }
p { margin: .4em 0; max-width: 72ch; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
.kicker { color: var(--soft); font-size: .95rem; overflow-wrap: anywhere; }
.badge { display: inline-block; border: 1.5px solid currentColor; border-radius: 99px;
  padding: 0 .7em; font-weight: 600; }
.better { color: var(--better); } .worse { color: var(--worse); } .none { color: var(--none); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 18px 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px 14px; }
.tile b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums; line-height: 1.3; }
.tile span { color: var(--soft); font-size: .85rem; display: block; }
figure { margin: 10px 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 8px; }
figure .plot { width: 100%; min-height: 180px; }
figcaption { padding: 2px 8px 4px; }
pre, code { font: .86rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; background: var(--code); }
pre { padding: 12px 14px; border-radius: 8px; overflow-x: auto; }
code { padding: .1em .3em; border-radius: 4px; overflow-wrap: anywhere; }
pre code { padding: 0; overflow-wrap: normal; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 14px; }
.pair > * { min-width: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th { text-align: left; color: var(--soft); font-weight: 600; font-size: .85rem; }
th, td { padding: 7px 10px; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.facts { width: auto; } .facts td:first-child { color: var(--soft); padding-left: 0; }
.texts { table-layout: fixed; } .texts col.delta { width: 92px; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
.score { color: var(--soft); font-size: .85rem; font-variant-numeric: tabular-nums; display: block;
  margin-bottom: 2px; }
ins { background: var(--ins); text-decoration: none; border-radius: 3px; }
del { background: var(--del); text-decoration: none; border-radius: 3px; }
details { margin: .5em 0; } summary { cursor: pointer; color: var(--accent); }
a { color: var(--accent); }
@media (max-width: 720px) {
  main { padding: 16px 12px 48px; } h1 { font-size: 1.3rem; } .pair { grid-template-columns: 1fr; gap: 0; }
  .tiles { grid-template-columns: 1fr 1fr; } figure { padding: 4px 0; border-radius: 8px; }
  .texts, .texts tbody, .texts tr, .texts td { display: block; width: 100%; }
  .texts thead, .texts colgroup { display: none; }
  .cards, .cards tbody, .cards tr, .cards td { display: block; width: 100%; } .cards thead { display: none; }
  .cards tr { border-bottom: 2px solid var(--line); padding: 6px 0; }
  .cards td, .cards td.number { border: 0; padding: 2px 0; text-align: left; white-space: normal;
    overflow-wrap: anywhere; }
  .cards td[data-label]::before { content: attr(data-label) "  "; color: var(--soft); font-size: .85rem;
    white-space: pre; }
  .texts tr { border-bottom: 2px solid var(--line); padding: 8px 0; } .texts td { border: 0; padding: 4px 0; }
  .texts td.number { text-align: left; } .texts td[data-label]::before { content: attr(data-label); display: block;
    color: var(--soft); font-size: .8rem; font-weight: 600; } }
@media print { figure, .tile { break-inside: avoid; } }
"""

SCRIPT = """
const figures = JSON.parse(document.getElementById("figures").textContent);
const narrow = () => window.innerWidth < 720;
function dressed(layout) {
  const css = getComputedStyle(document.documentElement), ink = css.getPropertyValue("--ink").trim();
  const out = {...layout, font: {...layout.font, color: ink, size: narrow() ? 11 : 13}};
  out.hoverlabel = {...layout.hoverlabel, bgcolor: css.getPropertyValue("--card").trim(), font: {color: ink}};
  if (narrow()) out.margin = {...layout.margin, l: 44, r: 10};
  return out;
}
const modebar = window.matchMedia("(hover: hover)").matches ? "hover" : false;
const config = {responsive: true, displaylogo: false, displayModeBar: modebar};
function draw(how) {
  for (const [name, figure] of Object.entries(figures)) {
    const place = document.getElementById("figure-" + name);
    if (place) how(place, figure.data, dressed(figure.layout), config);
  }
}
draw(Plotly.newPlot);
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw(Plotly.react));
"""
