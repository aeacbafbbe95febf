"""How the page of a run looks: its style sheet, for screens of any width, light and dark."""

STYLESHEET = """\
:root {
  color-scheme: light dark;
  --ink: #24292f; --soft: #626a73; --line: #dfe3e8; --back: #ffffff; --card: #f6f8fa;
  --dense: #d3d8de; --pruned: #2a7f62; --right: #1e6f54; --wrong: #b3261e;
  --line1: #1f5fa8; --line2: #8e44ad; --line3: #c2690c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e2e6eb; --soft: #9aa4af; --line: #343b44; --back: #14181d; --card: #1c2229;
    --dense: #434c57; --pruned: #4fb791; --right: #67c9a5; --wrong: #ff8a80;
    --line1: #6aa9f0; --line2: #c48ae0; --line3: #f0a04b;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 62rem;
  background: var(--back); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
}
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; }
p { margin: .35rem 0; max-width: 44rem; overflow-wrap: anywhere; }
.soft, figcaption, footer { color: var(--soft); font-size: .9rem; }
.figures { display: grid; gap: .75rem; margin: 1.25rem 0 0; padding: 0;
  grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); }
.figures div { background: var(--card); border-radius: .5rem; padding: .75rem 1rem;
  display: flex; flex-direction: column-reverse; justify-content: flex-end; }
.figures dt { color: var(--soft); font-size: .85rem; }
.figures dd { margin: 0; font-size: 1.6rem; font-weight: 650; line-height: 1.25; }
.scrolls { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .75rem .35rem 0; border-bottom: 1px solid var(--line);
  text-align: right; white-space: nowrap; font-weight: 400; }
thead th { color: var(--soft); font-size: .82rem; vertical-align: bottom; }
th:first-child, td.text, th.text { text-align: left; }
tbody th { white-space: normal; min-width: 6.5rem; }
.blocks tbody th { min-width: 0; }
tr.taken th { font-weight: 650; }
.blocks { width: 100%; }
.blocks td { text-align: left; min-width: 4rem; }
.blocks thead th { text-align: left; white-space: normal; }
.blocks td:nth-child(2) { white-space: normal; }
.swatch { display: inline-block; width: .8em; height: .8em; border-radius: .2em;
  margin-right: .4em; vertical-align: -.05em; }
.bar { display: block; height: .45rem; border-radius: .2rem; background: var(--dense);
  overflow: hidden; }
.bar i { display: block; height: 100%; background: var(--pruned); }
.charts { display: grid; gap: 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
figure { margin: 0; max-width: 34rem; }
figure h3 { font-size: .95rem; margin: 0 0 .25rem; font-weight: 600; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 13px; }
svg .grid { stroke: var(--line); }
svg .mark { stroke: var(--wrong); stroke-dasharray: 5 4; }
svg circle { fill: var(--colour); }
svg polyline { fill: none; stroke: var(--colour); stroke-width: 2; stroke-linejoin: round; }
.line1 { --colour: var(--line1); }
.line2 { --colour: var(--line2); }
.line3 { --colour: var(--line3); }
i[class*=line] { background: var(--colour); }
figcaption span { display: block; }
img.wide { display: block; width: 100%; min-width: 40rem; height: auto; border-radius: .5rem; }
.examples { display: grid; gap: .75rem; padding: 0; list-style: none;
  grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); }
.examples li { background: var(--card); border-radius: .5rem; padding: .75rem;
  font-size: .88rem; overflow-wrap: anywhere; }
.examples img { display: block; width: 100%; max-width: 12rem; height: auto; margin: 0 auto .5rem;
  border-radius: .25rem; }
.examples img.small { image-rendering: pixelated; }
.examples dl { margin: 0; }
.examples dt { color: var(--soft); float: left; clear: left; margin-right: .5em; }
.examples dd { margin: 0; }
.right { color: var(--right); }
.wrong { color: var(--wrong); }
footer { margin-top: 3rem; border-top: 1px solid var(--line); padding-top: .75rem; }
"""
