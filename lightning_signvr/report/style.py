"""The style sheet of the page: light, dark, and printed."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --panel: #f6f7f9; --edge: #d9dde3; --text: #1b1f24; --quiet: #57606a; --alarm: #9a3412;
  --s0: #0066b3; --s1: #c2410c; --s2: #047857; --s3: #9333a8; --s4: #85640a; --s5: #4b5563;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #14171b; --panel: #1d2126; --edge: #3a414a; --text: #eceff3; --quiet: #a7b0bb; --alarm: #fdba74;
    --s0: #5db4f5; --s1: #ff9257; --s2: #3fcf9a; --s3: #dd92ec; --s4: #e3b93f; --s5: #c3cad4;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem; max-width: 72rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif;
  overflow-wrap: anywhere;
}
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; border-bottom: 1px solid var(--edge); }
h3 { font-size: 1rem; margin: 0; }
p { margin: 0 0 .75rem; max-width: 46rem; }
code { font-size: .875em; color: var(--quiet); }
.quiet, .note, figcaption p { color: var(--quiet); font-size: .875rem; }
.problems { border-left: 4px solid var(--alarm); background: var(--panel); padding: .75rem 1rem; }
.problems ul { margin: 0; padding-left: 1.25rem; }
.problems strong { color: var(--alarm); }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .75rem; margin: 0; }
dl div {
  background: var(--panel); border: 1px solid var(--edge); border-radius: 6px; padding: .6rem .8rem;
  display: flex; flex-direction: column; justify-content: space-between;
}
dt { color: var(--quiet); font-size: .875rem; }
dd { margin: 0; font-size: 1.2rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); gap: 1rem; }
figure {
  margin: 0; padding: .8rem 1rem; max-width: 44rem; background: var(--panel); border: 1px solid var(--edge);
  border-radius: 6px; display: flex; flex-direction: column; justify-content: space-between;
  break-inside: avoid;
}
figcaption p { margin: .15rem 0 .5rem; }
svg { display: block; width: 100%; height: auto; font-size: 12px; fill: var(--text); }
svg text { dominant-baseline: middle; font-variant-numeric: tabular-nums; }
.grid { stroke: var(--edge); fill: none; }
.tick { fill: var(--quiet); }
.tick.left { text-anchor: end; }
.tick.below { text-anchor: middle; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; stroke-linecap: round; }
.last { font-weight: 600; }
.hover { fill: var(--text); opacity: 0; }
.hover:hover { opacity: .1; }
path.s0 { stroke: var(--s0); }
.dot.s0, .last.s0 { fill: var(--s0); }
path.s1 { stroke: var(--s1); stroke-dasharray: 7 3; }
.dot.s1, .last.s1 { fill: var(--s1); }
path.s2 { stroke: var(--s2); stroke-dasharray: 2 3; }
.dot.s2, .last.s2 { fill: var(--s2); }
path.s3 { stroke: var(--s3); stroke-dasharray: 9 3 2 3; }
.dot.s3, .last.s3 { fill: var(--s3); }
path.s4 { stroke: var(--s4); stroke-dasharray: 14 4; }
.dot.s4, .last.s4 { fill: var(--s4); }
path.s5 { stroke: var(--s5); stroke-dasharray: 4 6; }
.dot.s5, .last.s5 { fill: var(--s5); }
ul.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: 0; padding: 0; list-style: none; }
ul.legend li { display: flex; align-items: center; gap: .4rem; font-size: .875rem; }
ul.legend svg { flex: none; width: 2rem; height: .75rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 0 0 1rem; font-size: .9375rem; overflow-wrap: normal; }
caption { text-align: left; font-weight: 600; padding: .25rem 0; }
th, td { text-align: left; vertical-align: top; padding: .3rem 1.25rem .3rem 0; }
tr { border-bottom: 1px solid var(--edge); }
tbody th { font-weight: 400; }
td { font-variant-numeric: tabular-nums; }
thead th { color: var(--quiet); font-weight: 600; white-space: nowrap; }
td.bar { width: 6rem; vertical-align: middle; }
td.bar svg { height: .6rem; min-width: 5rem; }
.bar rect { fill: var(--edge); }
.bar rect + rect { fill: var(--s0); }
pre { white-space: pre-wrap; }
@media print {
  @page { margin: 14mm; }
  body { padding: 0; max-width: none; font-size: 10pt; }
  .charts { grid-template-columns: 1fr 1fr; gap: 4mm; }
  h2 { break-after: avoid; margin-top: 8mm; }
  tr, dl div { break-inside: avoid; }
  .wide { overflow: visible; grid-column: 1 / -1; }
  figure, dl div, .problems, .bar rect { print-color-adjust: exact; }
}
"""
